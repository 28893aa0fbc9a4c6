"""What every part of the configuration stands on: a frozen, strict section, kinds of numbers, and the user's errors."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class UserError(Exception):
    """The user's input is wrong. Its text is one sentence that names the key, the file or the line, and the remedy."""


class Stopped(Exception):
    """A budget, a quota or a guard stopped the run. Everything is saved; its text says why and how to go on."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ActorResources(Section):
    """What one actor of a pool is given."""

    cpus: NonNegativeFloat = 0.2
    """Ray's CPU grant. Small grants let actors that work in turn share a small machine; raise them to spread out."""
    gpus: NonNegativeFloat = 0.0
    """Ray's GPU grant: a share of one GPU, or whole ones."""
    threads: Positive = 1
    """OpenMP threads, set before torch is imported."""
    custom: dict[str, PositiveFloat] = {}
    """Ray's custom resources, such as `{judge: 0.01}`: the actor lives where nodes declare them."""

    @field_validator("gpus")
    @classmethod
    def _share_or_whole(cls, gpus: float) -> float:
        if gpus > 1 and not gpus.is_integer():
            raise ValueError(f"{gpus:g} is neither a share of one GPU nor a whole number of them")
        return gpus

    @property
    def workers(self) -> int:
        """Processes that a vLLM engine with this grant has: one for each whole GPU."""
        return max(1, int(self.gpus))


class Replicas(ActorResources):
    """A pool of one size, and what each of its actors is given."""

    count: Positive = 1
    """Actors in the pool."""


class PoolSize(ActorResources):
    """An autoscaling pool's bounds, and what each of its actors is given."""

    min: NonNegative = 1
    """Actors that stay when there is nothing to do."""
    max: Positive = 1
    """Actors at most, whatever the backlog."""

    @model_validator(mode="after")
    def _ordered(self) -> PoolSize:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) must not exceed max ({self.max})")
        return self
