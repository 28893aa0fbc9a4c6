"""The stages as the loop sees them: what each promises, and nothing of how it is done.

A `Ref[T]` is opaque: an ObjectRef under Ray, the value itself in a test. A batch is `Shards[T]`, one Ref a shard, in
the order of the prompts. The loop passes shards on and never opens them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

from rlaif_ray.records import Rollouts, SampleRequest, Scores, WeightVersion

T = TypeVar("T")
Ref: TypeAlias = T | Any
Shards: TypeAlias = tuple[Ref[T], ...]


class RolloutStage(Protocol):
    """Draws answers from the policy."""

    async def load(self, version: WeightVersion) -> None:
        """Serve these weights on every replica. Raises WeightMismatch when a replica does not prove that it does."""

    def generate(self, requests: Sequence[SampleRequest]) -> Shards[Rollouts]:
        """Start drawing one answer a request; returns at once."""


class RewardStage(Protocol):
    """Scores answers."""

    def score(self, rollouts: Shards[Rollouts]) -> Shards[Scores]:
        """Start scoring, shard by shard; returns at once."""


class LearnerStage(Protocol):
    """Improves the policy."""

    async def step(
        self, iteration: int, rollouts: Shards[Rollouts], scores: Shards[Scores]
    ) -> Mapping[str, float]:
        """Take one iteration's updates and return its metrics (names in `metrics.py`)."""

    async def publish(self) -> WeightVersion:
        """The current weights, under a new version number."""

    async def checkpoint(self, iteration: int) -> None:
        """Make everything that the next iteration needs durable."""


class WeightMismatch(RuntimeError):
    """A rollout replica does not serve the weights that it was given."""
