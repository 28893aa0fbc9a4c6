"""The story of online training, on one page. It knows stages and records, and nothing of how either is made."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rlaif_ray.metrics import ITERATION_SECONDS, LOAD_SECONDS, PUBLISH_SECONDS
from rlaif_ray.records import SampleRequest
from rlaif_ray.stages import LearnerStage, RewardStage, RolloutStage


@dataclass(frozen=True, slots=True)
class OnlineStages:
    """What the loop drives."""

    rollouts: RolloutStage
    reward: RewardStage
    learner: LearnerStage


async def train_on_policy(
    stages: OnlineStages,
    requests: Callable[[int], Sequence[SampleRequest]],
    iterations: range,
    *,
    checkpoint_every: int,
    on_iteration: Callable[[int, Mapping[str, float]], None],
) -> None:
    """Every iteration samples from the newest weights, scores, takes the learner's step and publishes.

    No batch passes through here: shards are opaque, and only metrics and a version are awaited. The last iteration
    is always checkpointed.
    """
    version = await stages.learner.publish()
    for iteration in iterations:
        start = time.monotonic()
        await stages.rollouts.load(version)
        loaded = time.monotonic()
        rollouts = stages.rollouts.generate(requests(iteration))
        scores = stages.reward.score(rollouts)
        metrics = await stages.learner.step(iteration, rollouts, scores)
        stepped = time.monotonic()
        version = await stages.learner.publish()
        published = time.monotonic()
        if iteration % checkpoint_every == checkpoint_every - 1 or iteration == iterations[-1]:
            await stages.learner.checkpoint(iteration)
        seconds = {
            LOAD_SECONDS: loaded - start,
            PUBLISH_SECONDS: published - stepped,
            ITERATION_SECONDS: time.monotonic() - start,
        }
        on_iteration(iteration, {**metrics, **seconds})
