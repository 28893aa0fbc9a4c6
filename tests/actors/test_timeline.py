"""A timeline of real actors' work: small ones play the stages of a loop."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.activity import activity_since, call_of
from actors.spawn import spawn
from rlaif_ray.config import ActorResources
from rlaif_ray.loop import OnlineStages, train_on_policy, train_overlapped
from rlaif_ray.records import WeightVersion
from rlaif_ray.rundir import RunDirectory
from rlaif_ray.timeline.recording import timed

# Workers cannot import a test's module: it must travel whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

TICK_S = 0.05
SMALL = ActorResources(cpus=0)


class Engine:
    """Draws two batches at a time."""

    async def load(self, number: int) -> None:
        await asyncio.sleep(TICK_S)

    async def generate(self, requests: Sequence[str]) -> list[str]:
        await asyncio.sleep(TICK_S)
        return [f"answer to {request}" for request in requests]

    async def live(self) -> None:
        await asyncio.Event().wait()


class Idle:
    """Is up, and nobody asks it."""


class Rank:
    def __init__(self) -> None:
        self._version = 0

    async def step(self, iteration: int, rollouts: Sequence[Any], scores: Sequence[Any]) -> dict[str, float]:
        await asyncio.gather(*rollouts, *scores)
        await asyncio.sleep(TICK_S)
        return {}

    def publish(self) -> int:
        self._version += 1
        return self._version

    def save(self, iteration: int) -> None:
        pass


def _score(answers: Sequence[str]) -> list[int]:
    return [len(answer) for answer in answers]


class Stages:
    """Plays every stage over these actors, and the runtime."""

    def __init__(self, engines: Sequence[Any], rank: Any) -> None:
        self._engines = engines
        self._rank = rank
        self._score = ray.remote(num_cpus=0)(_score)
        self.call_of = call_of
        self.activity = activity_since

    async def load(self, version: WeightVersion) -> None:
        await asyncio.gather(*(engine.load.remote(version.number) for engine in self._engines))

    def generate(self, requests: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(engine.generate.remote(requests) for engine in self._engines for _ in range(2))

    def score(self, rollouts: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(self._score.remote(shard) for shard in rollouts)

    async def step(self, iteration: int, rollouts: tuple[Any, ...], scores: tuple[Any, ...]) -> Mapping[str, float]:
        metrics: Mapping[str, float] = await self._rank.step.remote(iteration, list(rollouts), list(scores))
        return metrics

    async def publish(self) -> WeightVersion:
        return WeightVersion(await self._rank.publish.remote(), "", Path(), (), ())

    async def checkpoint(self, iteration: int) -> None:
        await self._rank.save.remote(iteration)

    def close(self) -> None:
        pass


@asynccontextmanager
async def small_actors() -> AsyncIterator[Any]:
    engines = [spawn(Engine, f"rollout-{index}", SMALL) for index in range(2)]
    started = [*engines, spawn(Rank, "learner-0", SMALL), spawn(Idle, "judge-0", SMALL)]
    try:
        await asyncio.gather(*(actor.__ray_ready__.remote() for actor in started))
        living = [engine.live.remote() for engine in engines]
        yield Stages(engines, started[2])
        assert not ray.wait(living, timeout=0)[0]
    finally:
        for actor in started:
            ray.kill(actor)


@pytest.mark.parametrize("staleness", [0, 1])
async def test_every_stage_and_every_actor_of_an_iteration_stand_in_the_file(staleness: int, tmp_path: Path) -> None:
    form = partial(train_overlapped, max_staleness=staleness) if staleness else train_on_policy
    run = RunDirectory(tmp_path)
    async with (
        small_actors() as stages,
        timed(OnlineStages(stages, stages, stages), stages, range(1, 4), 2, run, print) as recorded,
    ):
        await form(
            recorded,
            lambda iteration: [f"prompt {iteration}"],  # type: ignore[list-item]
            range(3),
            checkpoint_every=2,
            on_iteration=lambda iteration, metrics: None,
        )
    events: list[dict[str, Any]] = json.loads(run.timeline(2).read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    names = {
        (event["name"], event["pid"], event["tid"]): event["args"]["name"]
        for event in events
        if event["name"].endswith("_name")
    }
    row = {id(span): names["thread_name", span["pid"], span["tid"]] for span in spans}

    def named(name: str, on: str = "") -> list[dict[str, Any]]:
        return [span for span in spans if span["name"] == name and row[id(span)].startswith(on)]

    for stage in ("generate 2", "score 2", "learn 2", "publish version 3", "load version 2", "checkpoint 2"):
        (span,) = named(stage)
        assert names["process_name", span["pid"], span["pid"]] == "driver"
    (iteration,) = named("iteration 2")
    begin, end = iteration["ts"], iteration["ts"] + iteration["dur"]
    for span in spans:
        assert span["dur"] >= 0
        assert span["ts"] <= end
        assert span["ts"] + span["dur"] >= begin
    for engine in ("rollout-0", "rollout-1"):
        assert named("load", engine)
        assert len(named("generate", engine)) >= 2
        assert not named("live", engine), "what never ends is no work of the iteration"
    for one in ("step", "publish", "save"):
        assert named(one, "learner-0")
    assert named("_score", "tasks")
    assert named("no call", "judge-0")

    # The driver cannot see when answers are there; the actors can.
    (drawn,), drawing = named("generate 2"), [*named("generate", "rollout-0"), *named("generate", "rollout-1")]
    last = drawn["ts"] + drawn["dur"]
    assert last in {span["ts"] + span["dur"] for span in drawing}
    (learnt,) = named("learn 2")
    assert last <= learnt["ts"] + learnt["dur"]
