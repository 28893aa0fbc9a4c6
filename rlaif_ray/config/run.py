"""A run's configuration, stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlaif_ray.config.constitution import ConstitutionConfig
from rlaif_ray.config.fitting import FitConfig
from rlaif_ray.config.judge import JudgeConfig
from rlaif_ray.config.learning import DpoConfig, LearnerConfig, PpoConfig
from rlaif_ray.config.prompts import PromptsConfig
from rlaif_ray.config.reward import RewardConfig
from rlaif_ray.config.section import (
    ActorResources,
    NonNegative,
    Positive,
    PositiveFloat,
    Section,
)


class ScratchModelConfig(Section):
    """A small Llama, built with a word-level tokenizer from the demonstrations."""

    hidden_size: Positive = 64
    layers: Positive = 2
    heads: Positive = 2
    intermediate_size: Positive = 176


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2022) on the policy's linear layers; its own weights stay as they are."""

    rank: Positive = 16
    alpha: PositiveFloat = 32.0
    """The adapters' output is scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Names of the layers that get one, such as q_proj. Without it every linear layer but the head."""


class PolicyConfig(Section):
    model: str | None = None
    """A Hugging Face causal LM: a directory or a name. Without it `scratch` builds one."""
    scratch: ScratchModelConfig | None = None
    algorithm: Literal["ppo", "reinforce", "a2c", "rloo", "grpo", "dpo"] = "ppo"
    """How the policy learns. `ppo`, `reinforce` and `a2c` learn from scores with a value model; `rloo` and `grpo` need
    none, but several answers to a prompt; `dpo` learns from preferences, with no reward model."""
    reference: Literal["sft", "previous"] = "sft"
    """What the KL holds the policy to in a later round: the SFT model, or the policy that the round before made."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights that are served and trained; the optimizer keeps float32 beside bfloat16."""
    max_prompt_tokens: Positive = 512
    """Longer prompts are left out, and counted."""
    max_answer_tokens: Positive = 128
    """Longer answers are cut off, and count as truncated."""
    lora: LoraConfig | None = None
    """Train adapters alone. The reference is then the same model without them, where it is the SFT model."""
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


class SftConfig(FitConfig):
    demonstrations: str | None = None
    """Where demonstrations come from: a JSONL or parquet file with `prompt` and `answer`, or `toyworld:headlines` or
    `toyworld:discretion`. Without it the given model is taken as it is."""
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


class PlacementConfig(Section):
    """Where actors live. What each is given is in its own section, `resources` or `actors`."""

    share_gpus: bool = False
    """Put every rollout replica on a GPU with a rank of the learner. Replicas sleep while nobody asks them, and leave
    its memory to the learner."""
    timeout_s: PositiveFloat = 1800.0
    """How long a run waits for nodes that bear its actors, before it stops."""


class RolloutConfig(Section):
    replicas: Positive = 1
    """vLLM engines that hold the policy."""
    min_replicas: Positive | None = None
    """A run begins with so many of them, and the others join when they are up. Without it: all."""
    resources: ActorResources = ActorResources()
    temperature: PositiveFloat = 1.0
    """Of training's rollouts; evaluation always draws at 1."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Share of a GPU's memory that one engine takes."""
    kv_cache_gib: Positive = 1
    """Memory for the KV cache of one engine on a CPU."""
    enforce_eager: bool = True
    """Skip compilation: faster to start, slower to run."""
    on_update: Literal["drain", "keep"] = "drain"
    """What becomes of answers that are being drawn when new weights come, with `ppo.max_staleness`: they are finished
    first, or go on under the new weights."""

    @property
    def fewest_replicas(self) -> int:
        return self.replicas if self.min_replicas is None else self.min_replicas

    @model_validator(mode="after")
    def _enough(self) -> RolloutConfig:
        if self.fewest_replicas > self.replicas:
            raise ValueError(
                f"rollout.min_replicas ({self.min_replicas}) must not exceed rollout.replicas ({self.replicas})"
            )
        return self


class EvaluationConfig(Section):
    instrument: Literal["gold", "judge"] = "judge"
    """Who decides who wins: the data source's gold utility, or a judge: `evaluation.judge`, else the one that labels
    for training, and the summary says so."""
    judge: JudgeConfig | None = None
    """A judge that has no part in training."""
    validation_prompts: Positive = 256
    """Held-out prompts that `ppo.evaluate_every` chooses the best policy by; the final evaluation leaves them out."""


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
    constitution: ConstitutionConfig | None = None
    """Revise the answers to red-team prompts before SFT, and fine-tune on the revisions. What is collected then are
    comparisons of answers to red-team prompts; the policy is trained and evaluated on those and on `prompts`."""
    placement: PlacementConfig = PlacementConfig()
    sft: SftConfig = SftConfig()
    judge: JudgeConfig
    collect: CollectConfig = CollectConfig()
    reward: RewardConfig = RewardConfig()
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig = LearnerConfig()
    ppo: PpoConfig = PpoConfig()
    dpo: DpoConfig = DpoConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Trackers that are told what the run logs, beside TensorBoard. Each needs its package, and reads its own
    environment variables for where it writes and by which key."""

    @property
    def fits_a_reward_model(self) -> bool:
        return self.policy.algorithm != "dpo" and self.reward.fits_a_model

    @property
    def collects_preferences(self) -> bool:
        """Whether the judge compares answers of the policy before it is trained."""
        return self.fits_a_reward_model or (self.policy.algorithm == "dpo" and not self.dpo.preferences)

    @property
    def has_value_model(self) -> bool:
        return self.policy.algorithm in ("ppo", "reinforce", "a2c")

    @property
    def recomputes_old_logprobs(self) -> bool:
        """Whether the learner's own log-probabilities stand for the policy before an update."""
        if self.ppo.old_logprobs is None:
            return self.policy.dtype == "bfloat16" or self.ppo.max_staleness > 0
        return self.ppo.old_logprobs == "recompute"

    @property
    def kl(self) -> Literal["reward", "k2", "k3"]:
        """Where the KL from the reference enters."""
        return self.ppo.kl or ("k3" if self.policy.algorithm == "grpo" else "reward")

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.policy.scratch is not None and self.sft.demonstrations is None:
            raise ValueError("policy.scratch builds an untrained model: set sft.demonstrations to train it on")
        if self.constitution is not None and self.policy.model is None:
            raise ValueError("constitution: an untrained model cannot revise its answers; set policy.model")
        if self.constitution is not None and self.constitution.max_context_tokens < self.policy.context_tokens:
            raise ValueError(
                f"constitution.max_context_tokens ({self.constitution.max_context_tokens}) bears no answer: a prompt "
                f"with its answer may take {self.policy.context_tokens} tokens by policy.max_prompt_tokens and "
                "policy.max_answer_tokens; raise it"
            )
        possible = self.collect.answers_per_prompt * (self.collect.answers_per_prompt - 1) // 2
        if self.collect.pairing in ("random", "active") and self.collect.pairs_per_prompt > possible:
            raise ValueError(
                f"collect.pairs_per_prompt ({self.collect.pairs_per_prompt}) exceeds the {possible} pairs that "
                f"collect.answers_per_prompt ({self.collect.answers_per_prompt}) can form"
            )
        self._check_rewards()
        self._check_learning()
        self._check_placement()
        return self

    def _check_rewards(self) -> None:
        kinds = {source.kind for source in self.reward.sources}
        if self.reward.fits_a_model and self.collect.from_round > 1 and not self.reward.preferences:
            raise ValueError(
                f"collect.from_round={self.collect.from_round} leaves the first round without preferences; "
                "name some in reward.preferences"
            )
        if not self.fits_a_reward_model and self.rounds > 1:
            raise ValueError("rounds: without a reward model there is nothing to fit anew; set rounds to 1")
        if "rubric" in kinds and self.judge.rubric is None:
            raise ValueError("reward.mix: a rubric needs judge.rubric")
        grouped = self.policy.algorithm in ("rloo", "grpo") or any(
            source.kind == "judge_pairs" and source.against == "siblings" for source in self.reward.sources
        )
        if grouped and self.ppo.answers_per_prompt < 2:
            raise ValueError(
                "ppo.answers_per_prompt must be 2 or more where answers to one prompt are compared with each other"
            )
        if any(source.against == "reference" for source in self.reward.sources) and self.prompts.reference is None:
            raise ValueError("reward.mix: to compare with a reference answer needs prompts.reference")

    def _check_learning(self) -> None:
        transfer = self.learner.weight_transfer
        if transfer != "object_store" and not (self.learner.resources.gpus and self.rollout.resources.gpus):
            raise ValueError(
                f"learner.weight_transfer={transfer} needs GPUs on both sides: set learner.resources.gpus and "
                "rollout.resources.gpus, or take object_store"
            )
        if not self.has_value_model and self.ppo.truncated == "bootstrap":
            raise ValueError(f"ppo.truncated=bootstrap needs a value model, and {self.policy.algorithm} has none")
        if not self.has_value_model and self.ppo.value_model == "trunk":
            raise ValueError(f"ppo.value_model=trunk: {self.policy.algorithm} has no value model")
        if self.ppo.value_model == "trunk" and self.ppo.value_warmup_iterations:
            raise ValueError("ppo.value_warmup_iterations needs a value model of its own, not ppo.value_model=trunk")
        if self.ppo.evaluate_every is not None and self.evaluation.instrument == "judge" and not self.evaluation.judge:
            raise ValueError(
                "ppo.evaluate_every needs an instrument that training does not use: set evaluation.judge, or "
                "evaluation.instrument=gold where the prompts' source knows it"
            )
        if self.ppo.evaluate_every is not None and self.policy.algorithm == "dpo":
            raise ValueError("ppo.evaluate_every: dpo has no iterations to evaluate between; leave it out")
        if self.ppo.timeline_of is not None and self.policy.algorithm == "dpo":
            raise ValueError("ppo.timeline_of: dpo has no iterations; leave it out")
        if self.ppo.timeline_of is not None and self.ppo.timeline_of > self.rounds * self.ppo.iterations:
            raise ValueError(
                f"ppo.timeline_of ({self.ppo.timeline_of}) exceeds the {self.rounds * self.ppo.iterations} iterations "
                "of the run"
            )
        training = {(judge.base_url, judge.model) for judge in self.judge.judges}
        for judge in () if self.evaluation.judge is None else self.evaluation.judge.judges:
            if (judge.base_url, judge.model) in training:
                raise ValueError(
                    f"evaluation.judge: {judge.model} labels for training too; name a judge that does not, or leave it "
                    "out to evaluate by the training judge"
                )

    def _check_placement(self) -> None:
        transfer = self.learner.weight_transfer
        if transfer != "object_store" and self.rollout.fewest_replicas < self.rollout.replicas:
            raise ValueError(
                f"rollout.min_replicas: weights that are sent by {transfer} reach all replicas together; leave it out, "
                "or set learner.weight_transfer=object_store"
            )
        rollout, learner = self.rollout.resources.gpus, self.learner.resources.gpus
        if transfer == "ipc" and rollout + learner > 1:
            raise ValueError(
                "learner.weight_transfer=ipc goes through a GPU that a replica shares with a rank: set "
                "rollout.resources.gpus and learner.resources.gpus, which add up to 1 at most, or "
                "learner.weight_transfer to nccl or object_store"
            )
        if not self.placement.share_gpus:
            return
        if not (rollout and learner) or rollout + learner > 1:
            raise ValueError(
                "placement.share_gpus divides one GPU between a replica and a rank: set rollout.resources.gpus and "
                "learner.resources.gpus, which add up to 1 at most"
            )
        if self.policy.algorithm == "dpo":
            raise ValueError("placement.share_gpus: dpo has no learner beside its rollouts; leave it out")
        if self.rollout.replicas != self.learner.ranks:
            raise ValueError(
                f"placement.share_gpus puts one replica and one rank on each GPU: set rollout.replicas "
                f"({self.rollout.replicas}) and learner.ranks ({self.learner.ranks}) to the same number"
            )
        if self.ppo.max_staleness:
            raise ValueError(
                "placement.share_gpus: with ppo.max_staleness replicas draw while the learner takes its step, and "
                "never sleep; set it to 0, or give each side GPUs of its own"
            )


class JudgeRunConfig(Section):
    """What labelling a file needs of a config. A run's config holds more, which stays unread."""

    seed: NonNegative = 0
    run_dir: Path | None = None
    judge: JudgeConfig
