"""The reward model, and the rewards that add up."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlaif_ray.config.fitting import FitConfig, PreferenceFileConfig
from rlaif_ray.config.section import (
    Fraction,
    NonNegative,
    NonNegativeFloat,
    Positive,
    Replicas,
    Section,
)


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
