"""The story of online training, on one page. It knows stages and records, and nothing of how either is made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
    watching = _Watching(stages.watch, on_watched)
    unsaved: int | None = None
    try:
        version = await stages.learner.publish()
        await on_published(iterations.start - 1, version)
        for iteration in iterations:
            start = time.monotonic()
            await stages.rollouts.load(version)
            loaded = time.monotonic()
            rollouts = stages.rollouts.generate(requests(iteration))
            scores = stages.reward.score(rollouts)
            watching.begin(iteration, rollouts, scores)
            metrics = await stages.learner.step(iteration, rollouts, scores)
            stepped = time.monotonic()
            version = await stages.learner.publish()
            published = time.monotonic()
            unsaved = iteration
            await on_published(iteration, version)
            if iteration % checkpoint_every == checkpoint_every - 1 or iteration == iterations[-1]:
                await stages.learner.checkpoint(iteration)
                unsaved = None
            seconds = {
                LOAD_SECONDS: loaded - start,
                PUBLISH_SECONDS: published - stepped,
                ITERATION_SECONDS: time.monotonic() - start,
            }
            on_iteration(iteration, {**metrics, **seconds})
            watching.report()
        await watching.finish()
    except (Stopped, UserError):
        if unsaved is not None:
            await stages.learner.checkpoint(unsaved)
        raise
    finally:
        watching.cancel()


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
