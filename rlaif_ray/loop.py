"""The story of online training, on one page. It knows stages and records, and nothing of how either is made."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeAlias

from rlaif_ray.config import Stopped, UserError
from rlaif_ray.metrics import ITERATION_SECONDS, LOAD_SECONDS, PUBLISH_SECONDS
from rlaif_ray.records import Rollouts, SampleRequest, Scores, WeightVersion
from rlaif_ray.stages import LearnerStage, RewardStage, RolloutStage, Shards, WatchStage

OnMetrics: TypeAlias = Callable[[int, Mapping[str, float]], None]
OnPublished: TypeAlias = Callable[[int, WeightVersion], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class OnlineStages:
    """What the loop drives."""

    rollouts: RolloutStage
    reward: RewardStage
    learner: LearnerStage
    watch: WatchStage | None = None


async def _unused(iteration: int, version: WeightVersion) -> None:
    """What to do with published weights beyond training on."""


async def train_on_policy(
    stages: OnlineStages,
    requests: Callable[[int], Sequence[SampleRequest]],
    iterations: range,
    *,
    checkpoint_every: int,
    on_iteration: OnMetrics,
    on_watched: OnMetrics = lambda iteration, metrics: None,
    on_published: OnPublished = _unused,
) -> None:
    """Every iteration samples from the newest weights, scores, takes the learner's step and publishes.

    No batch passes through here: shards are opaque, and only metrics and a version are awaited. The last iteration
    is always checkpointed, and so is the last whole one where a budget, a guard or a user's error ends the run. The
    watch runs beside all this: `on_watched` hears of an iteration when its watch is done, before this returns.
    `on_published` is awaited with each iteration's weights before its checkpoint, and at the start with those of the
    iteration before, so that an interruption never comes between a checkpoint and what was owed to its weights.
    """
    async with _training(stages, iterations, checkpoint_every, on_iteration, on_watched, on_published) as training:
        version = await training.begin()
        for iteration in iterations:
            start = time.monotonic()
            load_seconds = await training.load(version)
            batch = training.draw(requests(iteration))
            version, metrics = await training.step(iteration, batch)
            await training.finish(iteration, start, {**metrics, LOAD_SECONDS: load_seconds})


async def train_overlapped(
    stages: OnlineStages,
    requests: Callable[[int], Sequence[SampleRequest]],
    iterations: range,
    *,
    max_staleness: int,
    checkpoint_every: int,
    on_iteration: OnMetrics,
    on_watched: OnMetrics = lambda iteration, metrics: None,
    on_published: OnPublished = _unused,
) -> None:
    """The same with up to `max_staleness` batches drawn ahead, while the learner takes its steps: when it comes to a
    batch, it has published no more than so many versions since the batch was begun.

    New weights are loaded before the next batch is begun. What a load does to answers that are still being drawn is
    the rollout stage's affair. Nothing is drawn beyond the last iteration.
    """
    async with _training(stages, iterations, checkpoint_every, on_iteration, on_watched, on_published) as training:
        to_draw = iter(iterations)
        ahead: deque[_Batch] = deque()
        await training.load(await training.begin())
        ahead.extend(training.draw(requests(later)) for later in islice(to_draw, 1 + max_staleness))
        for iteration in iterations:
            start = time.monotonic()
            version, metrics = await training.step(iteration, ahead.popleft())
            load_seconds = 0.0
            for later in islice(to_draw, 1):
                load_seconds = await training.load(version)
                ahead.append(training.draw(requests(later)))
            await training.finish(iteration, start, {**metrics, LOAD_SECONDS: load_seconds})


_Batch: TypeAlias = tuple[Shards[Rollouts], Shards[Scores]]


@asynccontextmanager
async def _training(
    stages: OnlineStages,
    iterations: range,
    checkpoint_every: int,
    on_iteration: OnMetrics,
    on_watched: OnMetrics,
    on_published: OnPublished,
) -> AsyncIterator[_Training]:
    """What both forms do in one way. Where it is left, all that is owed to whole iterations has been done."""
    watching = _Watching(stages.watch, on_watched)
    training = _Training(stages, iterations, checkpoint_every, on_iteration, on_published, watching)
    try:
        yield training
        await watching.finish()
    except (Stopped, UserError):
        if training.unsaved is not None:
            await stages.learner.checkpoint(training.unsaved)
        raise
    finally:
        watching.cancel()


@dataclass(slots=True)
class _Training:
    """The parts of an iteration, and the last one that is whole but not yet checkpointed."""

    stages: OnlineStages
    iterations: range
    checkpoint_every: int
    on_iteration: OnMetrics
    on_published: OnPublished
    watching: _Watching
    unsaved: int | None = None

    async def begin(self) -> WeightVersion:
        version = await self.stages.learner.publish()
        await self.on_published(self.iterations.start - 1, version)
        return version

    async def load(self, version: WeightVersion) -> float:
        """Serve these weights; returns the seconds that it took."""
        start = time.monotonic()
        await self.stages.rollouts.load(version)
        return time.monotonic() - start

    def draw(self, requests: Sequence[SampleRequest]) -> _Batch:
        """Start drawing and scoring; returns at once."""
        rollouts = self.stages.rollouts.generate(requests)
        return rollouts, self.stages.reward.score(rollouts)

    async def step(self, iteration: int, batch: _Batch) -> tuple[WeightVersion, Mapping[str, float]]:
        """Learn from a batch and publish."""
        self.watching.begin(iteration, *batch)
        metrics = await self.stages.learner.step(iteration, *batch)
        stepped = time.monotonic()
        version = await self.stages.learner.publish()
        published = time.monotonic()
        self.unsaved = iteration
        await self.on_published(iteration, version)
        return version, {**metrics, PUBLISH_SECONDS: published - stepped}

    async def finish(self, iteration: int, start: float, metrics: Mapping[str, float]) -> None:
        """Tell of an iteration that began at `start` and of the watches that are done, and checkpoint when that is due:
        what a checkpoint holds has been told."""
        self.on_iteration(iteration, {**metrics, ITERATION_SECONDS: time.monotonic() - start})
        self.watching.report()
        if iteration % self.checkpoint_every == self.checkpoint_every - 1 or iteration == self.iterations[-1]:
            await self.stages.learner.checkpoint(iteration)
            self.unsaved = None


@dataclass(slots=True)
class _Watching:
    """The watches under way, by iteration."""

    stage: WatchStage | None
    on_watched: OnMetrics
    tasks: dict[int, asyncio.Task[Mapping[str, float]]] = field(default_factory=dict)

    def begin(self, iteration: int, rollouts: Shards[Rollouts], scores: Shards[Scores]) -> None:
        if self.stage is not None:
            self.tasks[iteration] = asyncio.ensure_future(self.stage.watch(rollouts, scores))

    def report(self) -> None:
        """Tell of those that are done. Raises what one of them raised."""
        for iteration in [iteration for iteration, task in self.tasks.items() if task.done()]:
            self.on_watched(iteration, self.tasks.pop(iteration).result())

    async def finish(self) -> None:
        for iteration in list(self.tasks):
            self.on_watched(iteration, await self.tasks.pop(iteration))

    def cancel(self) -> None:
        for task in self.tasks.values():
            if not task.cancel():
                task.exception()  # another error came first, and this one is no surprise either
