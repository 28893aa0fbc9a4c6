"""A run's configuration, stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlaif_ray.config.judge import JudgeConfig
from rlaif_ray.config.section import (
    ActorResources,
    Fraction,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Replicas,
    Section,
)


class PromptsConfig(Section):
    path: str
    """A JSONL or parquet file, the name of a `datasets` dataset, or `toyworld:headlines`."""
    field: str = "prompt"
    """The column that holds a text, or a list of {role, content} messages."""
    reference: str | None = None
    """The column that holds a reference answer, for rewards that compare with one. In the toy world, whatever is set
    here: a demonstrator's answer."""
    limit: Positive | None = None
    """Read at most so many prompts."""
    held_out: Positive | None = None
    """Prompts kept from every training stage, for the evaluation. Without it a fifth, at most 1,000."""


class ScratchModelConfig(Section):
    """A small Llama, built with a word-level tokenizer from the demonstrations."""

    hidden_size: Positive = 64
    layers: Positive = 2
    heads: Positive = 2
    intermediate_size: Positive = 176


class PolicyConfig(Section):
    model: str | None = None
    """A Hugging Face causal LM: a directory or a name. Without it `scratch` builds one."""
    scratch: ScratchModelConfig | None = None
    algorithm: Literal["ppo", "rloo", "grpo"] = "ppo"
    """How the policy learns from scores. `rloo` and `grpo` need no value model, and several answers to a prompt."""
    reference: Literal["sft", "previous"] = "sft"
    """What the KL holds the policy to in a later round: the SFT model, or the policy that the round before made."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights that are served and trained; the optimizer keeps float32 beside bfloat16."""
    max_prompt_tokens: Positive = 512
    """Longer prompts are left out, and counted."""
    max_answer_tokens: Positive = 128
    """Longer answers are cut off, and count as truncated."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""

    @property
    def context_tokens(self) -> int:
        """Positions that an engine needs: the longest prompt and answer, and the token that scoring them draws."""
        return self.max_prompt_tokens + self.max_answer_tokens + 1

    @model_validator(mode="after")
    def _one_origin(self) -> PolicyConfig:
        if (self.model is None) == (self.scratch is None):
            raise ValueError("set policy.model to a model, or policy.scratch to build a small one, and not both")
        return self


class FitConfig(Section):
    """How a batch trainer (SFT, reward model) runs."""

    epochs: PositiveFloat = 1.0
    """Passes over the data; a fraction ends within one."""
    batch_size: Positive = 64
    """Examples to one optimizer step, over all workers."""
    micro_batch_size: Positive = 64
    """Examples to one forward, on one worker."""
    learning_rate: PositiveFloat = 1e-5
    """AdamW's peak rate: a linear rise, then a linear fall to nothing."""
    warmup_fraction: Fraction = 0.05
    """Share of the steps over which the rate rises."""
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    """Bound on the gradient's norm."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed's ZeRO stage."""
    workers: Positive = 1
    """Data-parallel workers."""
    resources: ActorResources = ActorResources()


class SftConfig(FitConfig):
    demonstrations: str | None = None
    """Where demonstrations come from: a JSONL or parquet file with `prompt` and `answer`, or `toyworld:headlines`.
    Without it the given model is taken as it is."""
    limit: Positive | None = None
    """Read at most so many demonstrations."""


class CollectConfig(Section):
    prompts: Positive = 1000
    """Prompts to draw answers for."""
    answers_per_prompt: Annotated[int, Field(ge=2)] = 4
    """Answers to draw to each."""
    pairing: Literal["random", "all", "best_worst", "active"] = "random"
    """Which answers to a prompt are compared: random pairs; all pairs; the best against the worst by a reward model; or
    those on which an ensemble of reward models disagrees most, and one alone is least sure. A round that has no reward
    model yet draws at random."""
    pairs_per_prompt: Positive = 3
    """Pairs of one prompt where they are drawn at random; as many on average where they are chosen by `active`."""
    temperature: PositiveFloat = 1.0
    from_round: Positive = 1
    """The first round that collects. Those before it fit on `reward.preferences` alone."""


class PreferenceFileConfig(Section):
    """A file of preferences to fit on."""

    path: str
    """JSONL, parquet or a dataset's name, with `prompt`, `chosen`, `rejected` and perhaps `p`, or a preference file of
    another run; or `toyworld:headlines`, whose raters are simulated."""
    source: Literal["human", "ai"] = "human"
    """Who gave the labels. A file with a column `label_source` says it itself."""
    weight: PositiveFloat = 1.0
    """What a pair counts for in the loss, on top of a weight of its own."""
    limit: Positive | None = None
    """Read at most so many pairs."""


class PretrainingConfig(FitConfig):
    """Preference-model pretraining, before the fit on the run's own labels (Askell et al. 2021)."""

    path: str
    """JSONL, parquet or a dataset's name: rows with `prompt` and `answers`, a list of {text, rank} (1 is the best),
    {text, score} or {text, votes, accepted}; or a preference file, as in `reward.preferences`."""
    binarised: bool = False
    """Make two pairs of each: good:chosen over bad:chosen, and bad:rejected over good:rejected."""
    limit: Positive | None = None
    """Read at most so many rows."""


class RewardSourceConfig(Section):
    """One of several rewards that add up."""

    kind: Literal["reward_model", "judge_score", "judge_pairs", "rubric", "rule"]
    """The reward model; the judge's score of an answer alone; its verdicts between the answers to one prompt, which a
    Bradley-Terry fit turns into scores; its scores by the criteria of `judge.rubric`; a Python function."""
    weight: float = 1.0
    """Of this reward in the sum."""
    name: str | None = None
    """What the metrics call it. Without it: its kind, or the function's name."""
    against: Literal["siblings", "reference"] = "siblings"
    """Of judge_pairs: compare with each other answer to the prompt, or with the prompt's reference answer."""
    function: str | None = None
    """Of a rule: FILE.py:NAME, a function of (prompt, answer, reference) that returns a number, or None where it has
    nothing to say."""

    @model_validator(mode="after")
    def _whole(self) -> RewardSourceConfig:
        if (self.kind == "rule") != (self.function is not None):
            raise ValueError("kind: rule and function need each other")
        return self

    @property
    def label(self) -> str:
        """What the metrics call it."""
        return self.name or (self.kind if self.function is None else self.function.rpartition(":")[2])


class RewardConfig(FitConfig):
    source: Literal["reward_model", "judge"] = "reward_model"
    """What answers are rewarded by: a reward model of the judge's preferences, or the judge's own score of each (1 to
    10, weighted by likelihood), with no reward model."""
    mix: tuple[RewardSourceConfig, ...] = ()
    """Rewards to add up, in place of `source` alone."""
    model: str | None = None
    """What the reward model starts from: a Hugging Face model, of the policy's architecture or any other. Without it
    the SFT model."""
    preferences: tuple[PreferenceFileConfig, ...] = ()
    """Files of preferences to fit on, beside what is collected."""
    labels: Literal["soft", "hard"] = "soft"
    """Fit on the judge's probability, or on which answer it prefers."""
    held_out: Fraction = 0.1
    """Share of the prompts whose pairs measure the reward model and do not fit it."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Moves every label so far towards 1/2: p becomes (1 - s) p + s / 2."""
    margin: NonNegativeFloat = 0.0
    """Times |2p - 1|: how far the better answer must lead (Touvron et al. 2023)."""
    centring: NonNegativeFloat = 0.0
    """Weight of the mean of (r_a + r_b)^2."""
    magnitude: NonNegativeFloat = 0.0
    """Weight of (mean r_a^2 + mean r_b^2)."""
    by_prompt: bool = False
    """Score all answers to a prompt in one forward, and let all its pairs together weigh as one (Ouyang et al.
    2022)."""
    evaluate_every: Positive | None = None
    """Optimizer steps between measurements on the held-out pairs; the weights that did best are kept. Without it: at
    the end alone."""
    patience: Positive | None = None
    """Stop after so many measurements without a better one."""
    ensemble: Positive = 1
    """Reward models, of different seeds. Their mean is the reward."""
    disagreement_penalty: NonNegativeFloat = 0.0
    """Times the standard deviation over the ensemble, taken off the reward."""
    pretraining: PretrainingConfig | None = None
    watch: NonNegative = 0
    """Answers of an iteration, drawn at random, that the judge scores too, to be compared with their rewards."""
    actors: Replicas = Replicas()
    max_batch_tokens: Positive = 8192
    """Tokens that one forward of a reward actor takes, padding included."""

    @property
    def sources(self) -> tuple[RewardSourceConfig, ...]:
        """What the reward of an answer is made of."""
        return self.mix or (
            RewardSourceConfig(kind="reward_model" if self.source == "reward_model" else "judge_score"),
        )

    @property
    def fits_a_model(self) -> bool:
        """Whether a reward model is needed, and preferences to fit it on."""
        return any(source.kind == "reward_model" for source in self.sources)

    @property
    def is_mixed(self) -> bool:
        """Whether there is more to an answer's reward than what the reward model says."""
        return [(source.kind, source.weight) for source in self.sources] != [("reward_model", 1.0)]

    @property
    def asks_the_judge(self) -> bool:
        """Whether the judge is asked while the policy is trained."""
        return self.watch > 0 or any(source.kind not in ("reward_model", "rule") for source in self.sources)

    @model_validator(mode="after")
    def _whole(self) -> RewardConfig:
        if self.patience is not None and self.evaluate_every is None:
            raise ValueError("reward.patience needs reward.evaluate_every")
        if self.disagreement_penalty and self.ensemble == 1:
            raise ValueError("reward.disagreement_penalty needs reward.ensemble of 2 or more")
        if not any(source.weight for source in self.sources):
            raise ValueError("reward.mix: all weights are 0, so nothing would be learnt; give one another")
        names = [source.label for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"reward.mix: two rewards are called {name}; give one a name of its own")
        return self


class RolloutConfig(Section):
    replicas: Positive = 1
    """vLLM engines that hold the policy."""
    resources: ActorResources = ActorResources()
    temperature: PositiveFloat = 1.0
    """Of training's rollouts; evaluation always draws at 1."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Share of a GPU's memory that one engine takes."""
    kv_cache_gib: Positive = 1
    """Memory for the KV cache of one engine on a CPU."""
    enforce_eager: bool = True
    """Skip compilation: faster to start, slower to run."""


class LearnerConfig(Section):
    ranks: Positive = 1
    """Data-parallel DeepSpeed ranks."""
    resources: ActorResources = ActorResources()
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed's ZeRO stage, for the policy and the value model."""
    max_grad_norm: PositiveFloat = 1.0
    """Bound on the gradient's norm, for each of the two."""


class PpoConfig(Section):
    """PPO (Schulman et al. 2017) as used on language models (Ziegler et al. 2019; Huang et al. 2024). RLOO and GRPO
    read the same keys, without those of the value model."""

    iterations: Positive = 100
    """Times to sample, score, update and publish, a round."""
    prompts_per_iteration: Positive = 64
    answers_per_prompt: Positive = 1
    epochs: Positive = 2
    """Passes over the answers of an iteration."""
    minibatch_size: Positive = 64
    """Answers to one optimizer step, over all ranks."""
    micro_batch_size: Positive = 64
    """Answers to one forward, on one rank."""
    learning_rate: PositiveFloat = 1e-6
    value_learning_rate: PositiveFloat = 1e-5
    value_warmup_iterations: NonNegative = 0
    """Iterations at the start that fit the value model alone."""
    adam_epsilon: PositiveFloat = 1e-5
    clip: PositiveFloat = 0.2
    """Bound on how far the probability ratio may leave 1 and still earn a gradient."""
    value_clip: PositiveFloat = 0.2
    """Bound on how far a value may move in one iteration, likewise."""
    gamma: Fraction = 1.0
    """Discount of later rewards."""
    lam: Fraction = 0.95
    """GAE's mixing of short and long estimates."""
    kl_coefficient: NonNegativeFloat = 0.05
    """Weight of the KL from SFT, a token, in the reward."""
    reward_clip: PositiveFloat = 10.0
    """Bound on the normalised reward's size, before KL is taken off."""
    truncated: Literal["penalty", "mask"] = "penalty"
    """What becomes of an answer that hit the length limit: its score is `truncation_score`, or it is left out."""
    truncation_score: float = -1.0
    """In units of the normalised reward."""
    checkpoint_every: Positive = 10
    """Iterations between checkpoints; an interrupted run loses fewer than these."""


class EvaluationConfig(Section):
    instrument: Literal["gold", "judge"] = "judge"
    """Who decides who wins: the data source's gold utility, or the judge (which is labelled as the training judge)."""


class RunConfig(Section):
    seed: NonNegative = 0
    """What every random choice of the run derives from."""
    run_dir: Path
    """Where everything of the run is kept. `{seed}` in it stands for the seed."""
    prompts: PromptsConfig
    policy: PolicyConfig
    rounds: Positive = 1
    """Times to collect, fit the reward model and train the policy. From the second on the policy's own answers are
    judged, and the reward model is fitted anew on the preferences of all rounds."""
    sft: SftConfig = SftConfig()
    judge: JudgeConfig
    collect: CollectConfig = CollectConfig()
    reward: RewardConfig = RewardConfig()
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig = LearnerConfig()
    ppo: PpoConfig = PpoConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.policy.scratch is not None and self.sft.demonstrations is None:
            raise ValueError("policy.scratch builds an untrained model: set sft.demonstrations to train it on")
        possible = self.collect.answers_per_prompt * (self.collect.answers_per_prompt - 1) // 2
        if self.collect.pairing in ("random", "active") and self.collect.pairs_per_prompt > possible:
            raise ValueError(
                f"collect.pairs_per_prompt ({self.collect.pairs_per_prompt}) exceeds the {possible} pairs that "
                f"collect.answers_per_prompt ({self.collect.answers_per_prompt}) can form"
            )
        self._check_rewards()
        return self

    def _check_rewards(self) -> None:
        kinds = {source.kind for source in self.reward.sources}
        if self.reward.fits_a_model and self.collect.from_round > 1 and not self.reward.preferences:
            raise ValueError(
                f"collect.from_round={self.collect.from_round} leaves the first round without preferences; "
                "name some in reward.preferences"
            )
        if not self.reward.fits_a_model and self.rounds > 1:
            raise ValueError("rounds: without a reward model there is nothing to fit anew; set rounds to 1")
        if "rubric" in kinds and self.judge.rubric is None:
            raise ValueError("reward.mix: a rubric needs judge.rubric")
        grouped = self.policy.algorithm != "ppo" or any(
            source.kind == "judge_pairs" and source.against == "siblings" for source in self.reward.sources
        )
        if grouped and self.ppo.answers_per_prompt < 2:
            raise ValueError(
                "ppo.answers_per_prompt must be 2 or more where answers to one prompt are compared with each other"
            )
        if any(source.against == "reference" for source in self.reward.sources) and self.prompts.reference is None:
            raise ValueError("reward.mix: to compare with a reference answer needs prompts.reference")


class JudgeRunConfig(Section):
    """What labelling a file needs of a config. A run's config holds more, which stays unread."""

    seed: NonNegative = 0
    run_dir: Path | None = None
    judge: JudgeConfig
