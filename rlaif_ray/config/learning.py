"""The learner: its ranks, learning from scores, and learning from preferences."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlaif_ray.config.fitting import FitConfig, PreferenceFileConfig
from rlaif_ray.config.section import (
    ActorResources,
    Fraction,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
)


class LearnerConfig(Section):
    ranks: Positive = 1
    """Data-parallel DeepSpeed ranks."""
    resources: ActorResources = ActorResources()
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed's ZeRO stage, for the policy and the value model."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What lies in the host's memory instead of the GPU's: the optimizer's state (ZeRO 1 and up), or that and the
    parameters (ZeRO 3)."""
    gradient_checkpointing: bool = False
    """Compute activations anew in the backward pass: less memory, a third more work."""
    max_grad_norm: PositiveFloat = 1.0
    """Bound on the gradient's norm, for each of the two."""
    weight_transfer: Literal["object_store", "nccl", "ipc"] = "object_store"
    """How new weights reach the rollouts: through Ray's object store, over NCCL between GPUs, or through the memory of
    a GPU that both share."""
    weight_bucket_mib: Positive = 256
    """Weights leave in buckets of this size; no more of a partitioned model is ever whole on one rank."""

    @model_validator(mode="after")
    def _offloadable(self) -> LearnerConfig:
        needed = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.zero_stage < needed:
            raise ValueError(f"learner.offload={self.offload} needs learner.zero_stage of {needed} or more")
        return self


class PpoConfig(Section):
    """PPO (Schulman et al. 2017) as used on language models (Ziegler et al. 2019; Huang et al. 2024). The other
    algorithms that learn from scores read the same keys, as far as they concern them."""

    iterations: Positive = 100
    """Times to sample, score, update and publish, a round."""
    prompts_per_iteration: Positive = 64
    answers_per_prompt: Positive = 1
    epochs: Positive = 2
    """Passes over the answers of an iteration."""
    minibatch_size: Positive = 64
    """Answers to one optimizer step, over all ranks."""
    micro_batch_tokens: Positive = 8192
    """Tokens of one forward on one rank, prompts included. Sequences are packed: none of it is padding."""
    learning_rate: NonNegativeFloat = 1e-6
    """AdamW's. With 0 nothing is trained, and the gap between rollouts and learner should stay at rounding noise."""
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How both rates fall over the iterations of a round."""
    learning_rate_warmup: NonNegative = 0
    """Iterations over which they rise first."""
    value_learning_rate: PositiveFloat = 1e-5
    value_warmup_iterations: NonNegative = 0
    """Iterations at the start that fit the value model alone."""
    value_model: Literal["reward", "sft", "trunk"] = "reward"
    """What the value model is: the reward model with its head at every token, where there is one that reads the
    policy's tokens, else as `sft`; the policy's SFT model with a new head; or a head on the policy itself, which is
    trained with it."""
    value_coefficient: PositiveFloat = 0.1
    """Weight of the value loss beside the policy's, with `value_model=trunk`."""
    adam_epsilon: PositiveFloat = 1e-5
    clip: PositiveFloat = 0.2
    """Bound on how far the probability ratio may leave 1 and still earn a gradient."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound on the ratio where the advantage is negative, which `clip` leaves open (Ye et al. 2020)."""
    value_clip: PositiveFloat = 0.2
    """Bound on how far a value may move in one iteration, likewise."""
    aggregation: Literal["token_mean", "answer_mean", "length_constant"] = "token_mean"
    """What the loss averages over: tokens; answers, each the mean of its tokens (GRPO's paper); or answers, each the
    sum of its tokens over `policy.max_answer_tokens` (Liu et al. 2025)."""
    gamma: Fraction = 1.0
    """Discount of later rewards."""
    lam: Fraction = 0.95
    """GAE's mixing of short and long estimates."""
    old_logprobs: Literal["rollout", "recompute"] | None = None
    """Whose log-probabilities stand for the policy before an update: those of the rollouts, or the learner's own, at
    the price of a forward, with importance weights between the two. Without it: the rollouts' in float32, where they
    differ from the learner's by rounding alone, and recomputed ones in bfloat16 and with `max_staleness`."""
    importance_cap: PositiveFloat = 2.0
    """Bound on the weight of a token by which recomputed log-probabilities correct for the rollouts' (Yao et al.
    2025)."""
    kl: Literal["reward", "k2", "k3"] | None = None
    """Where the KL from the reference enters: in the reward, or as a loss of this estimate (Schulman 2020). Without
    it: `k3` in GRPO, as its paper has it, and the reward elsewhere."""
    kl_coefficient: NonNegativeFloat = 0.05
    """Weight of the KL from the reference, a token."""
    kl_target: PositiveFloat | None = None
    """KL of an answer, in nats, towards which the coefficient is steered (Ziegler et al. 2019)."""
    kl_horizon: Positive = 10_000
    """Answers over which it is steered."""
    stop_at_kl: PositiveFloat | None = None
    """End an iteration's updates of the policy once a minibatch is so far from the policy before them, in nats a
    token."""
    reward_clip: PositiveFloat = 10.0
    """Bound on the normalised reward's size, before KL is taken off."""
    truncated: Literal["penalty", "mask", "bootstrap"] = "penalty"
    """What becomes of an answer that hit the length limit: its score is `truncation_score`; it is left out; or the
    value model says what would have followed."""
    truncation_score: float = -1.0
    """In units of the normalised reward."""
    checkpoint_every: Positive = 10
    """Iterations between checkpoints; a run that is killed loses fewer than these, and one that is interrupted none."""
    evaluate_every: Positive | None = None
    """Iterations between evaluations on held-out prompts against SFT, by `evaluation.instrument`. The best policy by
    them is the one that the run makes; the last is kept beside it."""
    timeline_of: Positive | None = None
    """An iteration of which a timeline is written, for ui.perfetto.dev, counted through the rounds as the report counts
    them."""
    max_staleness: NonNegative = 0
    """Versions by which rollouts may lag behind the learner. From 1 on they are drawn while the learner takes its
    step; 0 is exactly on-policy."""

    @model_validator(mode="after")
    def _importance_corrected(self) -> PpoConfig:
        if self.max_staleness and self.old_logprobs == "rollout":
            raise ValueError("ppo.max_staleness needs ppo.old_logprobs=recompute, which weighs stale answers")
        return self


class DpoConfig(FitConfig):
    """Direct preference optimisation (Rafailov et al. 2023), with soft labels where there are any."""

    preferences: tuple[PreferenceFileConfig, ...] = ()
    """Files of preferences to train on. Without one the run collects its own."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """DPO's, or identity preference optimisation's (Azar et al. 2023)."""
    beta: PositiveFloat = 0.1
    """How much the KL from the reference costs."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Conservative DPO: the share of labels that are taken to be flipped."""
    labels: Literal["soft", "hard"] = "soft"
    """Train on the probability that an answer is better, or on which one is."""
    held_out: Fraction = 0.1
    """Share of the prompts whose pairs measure and do not train."""
