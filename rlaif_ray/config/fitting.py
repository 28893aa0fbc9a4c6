"""How batch trainers run, and the preferences that they take."""

from __future__ import annotations

from typing import Literal

from rlaif_ray.config.section import (
    ActorResources,
    Fraction,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
)


class FitConfig(Section):
    """How a batch trainer (SFT, reward model, DPO) runs."""

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


class PreferenceFileConfig(Section):
    """A file of preferences to fit on."""

    path: str
    """JSONL, parquet or a dataset's name, with `prompt`, `chosen`, `rejected` and perhaps `p`, or a preference file of
    another run; or `toyworld:headlines` or `toyworld:discretion`, whose raters are simulated."""
    source: Literal["human", "ai"] = "human"
    """Who gave the labels. A file with a column `label_source` says it itself."""
    weight: PositiveFloat = 1.0
    """What a pair counts for in the loss, on top of a weight of its own."""
    limit: Positive | None = None
    """Read at most so many pairs."""
