"""What a reward server promises its callers, and nothing of actors or HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rlaif_ray.records import AnswerToScore, Outcome


@dataclass(frozen=True, slots=True)
class RewardVersion:
    """One reward model that was loaded. Numbers count from 1, a load each."""

    number: int
    fingerprint: str  # SHA-256 of all its files
    directory: Path
    members: int


@dataclass(frozen=True, slots=True)
class AnswerReward:
    """What became of one answer: `SCORED` or `FAILED`. A failure carries no number."""

    outcome: Outcome
    reason: str  # why it was not scored; empty where it was
    version: RewardVersion  # that scored it, or was to
    score: float | None = None  # normalised; of an ensemble the mean
    disagreement: float | None = None  # standard deviation over an ensemble; None for one model
    raw: tuple[float, ...] | None = None  # each model's own logit


@dataclass(frozen=True, slots=True)
class ServerState:
    """Counts of actors that serve and of those that start, and of answers."""

    version: RewardVersion
    actors: int
    starting: int
    waiting: int
    in_flight: int


class Overloaded(Exception):
    """More answers wait than may. Its text says how many."""


class RewardService(Protocol):
    """Scores answers, and takes new models while it does."""

    async def score(self, answers: Sequence[AnswerToScore]) -> list[AnswerReward]:
        """One outcome an answer, in order, all by the version that is current when the call comes. Raises
        Overloaded."""

    async def load(self, directory: Path) -> RewardVersion:
        """Load a reward model beside the current one, and score by it what comes from then on.

        Raises UserError where it cannot be loaded; the current version then goes on.
        """

    def versions(self) -> Sequence[RewardVersion]:
        """Those that are loaded, the current one last. Others finish what came before it."""

    def state(self) -> ServerState: ...
