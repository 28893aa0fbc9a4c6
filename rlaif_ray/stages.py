"""The stages as the loop sees them: what each promises, and nothing of how it is done.

A `Ref[T]` is opaque: an ObjectRef under Ray, the value itself in a test. A batch is `Shards[T]`, one Ref a shard, in
the order of the prompts. The loop passes shards on and never opens them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from rlaif_ray.constitution.chain import RevisionChain
from rlaif_ray.judge.ledger import LedgerTotals
from rlaif_ray.judge.progress import JudgeProgress
from rlaif_ray.records import (
    Chain,
    Demonstration,
    LabelledPair,
    LearnerModels,
    Pair,
    Preference,
    Prompt,
    RewardData,
    RewardFit,
    Rollouts,
    SampleRequest,
    Scores,
    WeightVersion,
)
from rlaif_ray.rundir import RunDirectory
from rlaif_ray.timeline.trace import Activity

T = TypeVar("T")
Ref: TypeAlias = T | Any
Shards: TypeAlias = tuple[Ref[T], ...]


class RolloutStage(Protocol):
    """Draws answers from the policy."""

    async def load(self, version: WeightVersion) -> None:
        """Serve these weights on every replica. Answers that are being drawn are finished before, or go on under the
        new weights, as the stage was told. Raises WeightMismatch when a replica does not prove that it serves them."""

    def generate(self, requests: Sequence[SampleRequest]) -> Shards[Rollouts]:
        """Start drawing one answer a request; returns at once."""


class RewardStage(Protocol):
    """Scores answers."""

    def score(self, rollouts: Shards[Rollouts]) -> Shards[Scores]:
        """Start scoring, shard by shard; returns at once."""

    def close(self) -> None:
        """Give back what it holds."""


class RewardModels(RewardStage, Protocol):
    """A reward model, or an ensemble of them."""

    def member_scores(self, rollouts: Shards[Rollouts]) -> Shards[NDArray[np.float32]]:
        """Normalised scores (B, members); NaN where there is none."""


class WatchStage(Protocol):
    """Checks rewards against a second opinion, beside training."""

    async def watch(self, rollouts: Shards[Rollouts], scores: Shards[Scores]) -> Mapping[str, float]:
        """What a sample of these answers earns, against what it deserves (names in `metrics.py`). Raises as a judge
        stage does."""

    def close(self) -> None:
        """Give back what it holds."""


class LearnerStage(Protocol):
    """Improves the policy."""

    async def step(self, iteration: int, rollouts: Shards[Rollouts], scores: Shards[Scores]) -> Mapping[str, float]:
        """Take one iteration's updates and return its metrics (names in `metrics.py`).

        Raises Stopped or UserError, with nothing changed, where that is what became of the scores."""

    async def publish(self) -> WeightVersion:
        """The current weights, under a new version number."""

    async def checkpoint(self, iteration: int) -> None:
        """Make everything that the next iteration needs durable."""


class WeightMismatch(RuntimeError):
    """A rollout replica does not serve the weights that it was given."""


class JudgeStage(Protocol):
    """Compares answers."""

    async def label(self, pairs: Sequence[Pair], purpose: str) -> list[Preference]:
        """One preference a pair, in the order of the pairs. Raises UserError when the endpoint cannot be used, and
        Stopped when a guard says so."""

    async def progress(self) -> JudgeProgress:
        """How far the pool is, at any time."""

    async def totals(self) -> LedgerTotals:
        """What the run's ledger has seen, over all its resumptions."""


class RolloutPool(RolloutStage, Protocol):
    """What collecting and evaluating ask of the rollouts beyond the loop."""

    def logprobs(self, rollouts: Shards[Rollouts]) -> Shards[NDArray[np.float32]]:
        """Log-probabilities (sum of answer lengths,) of given answers under the weights that are loaded."""

    def decode(self, rollouts: Shards[Rollouts]) -> Shards[list[str]]:
        """The answers as people and judges read them."""


class ReviserPool(RolloutPool, Protocol):
    """Draws whole conversations."""

    def converse(self, chains: Sequence[RevisionChain]) -> Shards[list[Chain]]:
        """Start drawing the chains, none of which waits for another; returns at once."""

    def close(self) -> None:
        """Give back what it holds."""


class Learner(LearnerStage, Protocol):
    """What the pipeline asks of the learner around the loop."""

    async def resume(self) -> int | None:
        """Restore the last whole checkpoint and return its iteration; None where there is none."""

    async def save_policy(self, directory: Path) -> None:
        """Write the policy as a Hugging Face directory, whole or not at all."""

    def close(self) -> None:
        """Give back what it holds."""


class Runtime(Protocol):
    """The cluster, as the pipeline sees it: it runs trainers and hands out stages. Rollouts and judges are started once
    and kept; what is made for one round is its caller's to close."""

    async def fit_sft(self, demonstrations: Sequence[Demonstration]) -> None:
        """Fill models/sft: train on demonstrations, or, where there are none, take the given model as it is."""

    async def fit_reward(self, data: RewardData, directory: RunDirectory) -> list[RewardFit]:
        """Fill a round's models/reward, and tell how each model of it was fitted."""

    async def fit_dpo(
        self, train: Sequence[LabelledPair], held_out: Sequence[LabelledPair], directory: RunDirectory
    ) -> None:
        """Fill a round's models/policy: train models/sft on preferences."""

    async def keep_model(self, name: str, key: str, directory: Path) -> None:
        """Write the model that `key` names to `directory`, as it is. Raises UserError where it cannot be used."""

    async def revisers(self, model: Path) -> ReviserPool:
        """Engines for conversations with a model, with its weights loaded; the caller's to close."""

    async def rollouts(self) -> RolloutPool: ...

    async def judges(self) -> JudgeStage:
        """Those whose verdicts training learns from."""

    async def evaluation_judges(self) -> JudgeStage:
        """Those that evaluation asks: `evaluation.judge`, else the ones of training."""

    async def reward_models(self, directory: Path, prompts: Sequence[Prompt]) -> RewardModels:
        """A reward model to score answers to these prompts with."""

    async def rewards(self, directory: Path, prompts: Sequence[Prompt]) -> RewardStage:
        """All that answers to these prompts are rewarded by; `directory` is the reward model's, where one is used."""

    async def watch(self, prompts: Sequence[Prompt]) -> WatchStage | None:
        """The judge's eye on the rewards of answers to these prompts, where the config wants it."""

    async def learner(self, models: LearnerModels, checkpoints: Path) -> Learner: ...

    async def directory_version(self, directory: Path, number: int) -> WeightVersion:
        """A model directory as a version to load."""

    async def fetch(self, shards: Shards[T]) -> list[T]:
        """The shards' values, here. For collecting and evaluating; the loop never calls it."""

    def put(self, value: T) -> Ref[T]:
        """The value as a reference."""

    def call_of(self, reference: Ref[Any]) -> str:
        """The id of the call that makes what a stage's reference stands for."""

    async def activity(self, since: float) -> Activity:
        """What the actors have done for this run since then (seconds since the epoch). Takes some seconds."""
