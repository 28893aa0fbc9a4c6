"""Recording a loop on plain objects: it sees what it saw before, and the wanted iteration is written."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rlaif_ray.config import Stopped
from rlaif_ray.loop import OnlineStages, train_on_policy, train_overlapped
from rlaif_ray.records import WeightVersion
from rlaif_ray.rundir import RunDirectory, write_atomically
from rlaif_ray.timeline.recording import StageRecorder, timed
from rlaif_ray.timeline.trace import Activity, Call, window_of

FORMS: list[Callable[..., Coroutine[Any, Any, None]]] = [train_on_policy, partial(train_overlapped, max_staleness=1)]


@dataclass
class Stages:
    """Plays every stage, and the runtime; a shard is the name of the call that makes it."""

    calls: list[str] = field(default_factory=list)
    version: int = 0
    stops_at: int | None = None
    asked_since: list[float] = field(default_factory=list)

    async def load(self, version: WeightVersion) -> None:
        self.calls.append(f"load {version.number}")

    def generate(self, requests: Any) -> tuple[str, ...]:
        self.calls.append(f"generate {requests}")
        return (f"rollouts of {requests}",)

    def score(self, rollouts: Any) -> tuple[str, ...]:
        return tuple(f"scores of {shard}" for shard in rollouts)

    async def watch(self, rollouts: Any, scores: Any) -> dict[str, float]:
        self.calls.append(f"watch {rollouts[0]}")
        return {}

    async def step(self, iteration: int, rollouts: Any, scores: Any) -> dict[str, float]:
        await asyncio.sleep(0)
        if iteration == self.stops_at:
            raise Stopped("enough")
        self.calls.append(f"step {iteration} on {rollouts[0]}, {scores[0]}")
        return {}

    async def publish(self) -> WeightVersion:
        self.version += 1
        return WeightVersion(self.version, "", Path(), (), ())

    async def checkpoint(self, iteration: int) -> None:
        self.calls.append(f"checkpoint {iteration}")

    def close(self) -> None:
        raise AssertionError("whoever made it closes it")

    def call_of(self, reference: Any) -> str:
        return str(reference)

    async def activity(self, since: float) -> Activity:
        self.asked_since.append(since)
        return Activity(("rollout-0",), (Call("rollouts of batch 3", "rollout-0", "generate", since, since + 1),))

    @property
    def all(self) -> OnlineStages:
        return OnlineStages(self, self, self, self)


async def train(form: Callable[..., Coroutine[Any, Any, None]], stages: OnlineStages) -> None:
    """Iterations 2, 3 and 4 of a loop, of which 3 and 4 are checkpointed."""
    await form(
        stages,
        lambda iteration: f"batch {iteration}",
        range(2, 5),
        checkpoint_every=2,
        on_iteration=lambda iteration, metrics: None,
    )


def ticking() -> Callable[[], float]:
    count = itertools.count()
    return lambda: float(next(count))


@pytest.mark.parametrize("form", FORMS)
async def test_stages_are_asked_for_the_same_with_a_recorder_before_them(form: Any) -> None:
    plain, recorded = Stages(), Stages()
    await train(form, plain.all)
    await train(form, StageRecorder(recorded.all, 13, 14, str).stages)
    assert recorded.calls == plain.calls


async def test_spans_bear_the_numbers_of_the_run() -> None:
    """The loop's iteration 2 is the run's 13th."""
    stages = Stages()
    recorder = StageRecorder(stages.all, 13, 14, stages.call_of, ticking())
    await train(train_on_policy, recorder.stages)
    assert [(span.name, span.iteration) for span in recorder.spans] == [
        ("publish version 1", 12),
        *(("load version 1", 13), ("generate 13", 13), ("score 13", 13), ("learn 13", 13), ("watch 13", 13)),
        ("publish version 2", 13),
        *(("load version 2", 14), ("generate 14", 14), ("score 14", 14), ("learn 14", 14), ("watch 14", 14)),
        *(("publish version 3", 14), ("checkpoint 14", 14)),
        *(("load version 3", 15), ("generate 15", 15), ("score 15", 15), ("learn 15", 15), ("watch 15", 15)),
        *(("publish version 4", 15), ("checkpoint 15", 15)),
    ]
    assert [span.calls for span in recorder.spans if span.iteration == 14 and span.stage in ("generate", "score")] == [
        ("rollouts of batch 3",),
        ("scores of rollouts of batch 3",),
    ]
    assert all(span.end is not None and span.end > span.begin for span in recorder.spans)
    assert recorder.over.is_set()


async def test_a_batch_that_was_drawn_ahead_belongs_to_the_iteration_that_learns_it() -> None:
    stages = Stages()
    recorder = StageRecorder(stages.all, 3, 4, stages.call_of, ticking())
    await train(FORMS[1], recorder.stages)
    window = window_of(recorder.spans, 4)
    inside = [span.name for span in recorder.spans if span.end is not None and window.holds(span.begin, span.end)]
    assert [name for name in inside if not name.startswith("watch")] == [
        *("generate 4", "score 4", "learn 3", "publish version 2", "load version 2", "generate 5", "score 5"),
        *("learn 4", "publish version 3", "checkpoint 4"),
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wanted", [3, 4, 5])
async def test_the_wanted_iteration_is_written(form: Any, wanted: int, tmp_path: Path) -> None:
    stages: Any = Stages()
    said, run = list[str](), RunDirectory(tmp_path)
    async with timed(stages.all, stages, range(3, 6), wanted, run, said.append) as recorded:
        await train(form, recorded)
    (file,) = tmp_path.rglob("*.json")
    assert file == run.timeline(wanted)
    assert said == [f"  timeline of iteration {wanted}: {file}, for https://ui.perfetto.dev"]
    events = json.loads(file.read_text())["traceEvents"]
    (whole,) = [event for event in events if event["name"] == f"iteration {wanted}"]
    assert whole["ts"] == round(stages.asked_since[0] * 1e6)
    assert {f"generate {wanted}", f"score {wanted}", f"learn {wanted}"} <= {event["name"] for event in events}


@pytest.mark.parametrize(
    ("wanted", "told"),
    [(None, []), (6, []), (2, ["  iteration 2 was over before its timeline was asked for: there is none"])],
)
async def test_stages_are_bare_where_no_iteration_of_the_loop_is_wanted(
    wanted: int | None, told: list[str], tmp_path: Path
) -> None:
    stages: Any = Stages()
    bare, said, run = stages.all, list[str](), RunDirectory(tmp_path)
    async with timed(bare, stages, range(3, 6), wanted, run, said.append) as given:
        assert given is bare
    assert said == told
    assert not [*tmp_path.iterdir()]


async def test_a_timeline_of_an_earlier_round_is_not_missed(tmp_path: Path) -> None:
    stages: Any = Stages()
    said, run = list[str](), RunDirectory(tmp_path)
    write_atomically(run.timeline(2), "{}")
    async with timed(stages.all, stages, range(3, 6), 2, run, said.append):
        pass
    assert said == []


async def test_a_loop_that_ends_before_the_iteration_is_over_writes_nothing(tmp_path: Path) -> None:
    stages: Any = Stages(stops_at=3)
    with pytest.raises(Stopped):
        async with timed(stages.all, stages, range(3, 6), 4, RunDirectory(tmp_path), print) as recorded:
            await train(train_on_policy, recorded)
    assert not [*tmp_path.iterdir()]
