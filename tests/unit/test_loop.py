"""The loop on plain objects: the order of what it asks for, and what it passes on unopened."""

import asyncio
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.config import Stopped, UserError
from rlaif_ray.loop import OnlineStages, train_on_policy, train_overlapped
from rlaif_ray.records import Prompt, SampleRequest, WeightVersion


@dataclass
class Recorder:
    """Plays every stage; a batch is a string, so that opening it would fail."""

    calls: list[str] = field(default_factory=list)
    version: int = 0
    loaded: int | None = None
    fails: dict[int, Exception] = field(default_factory=dict)  # of the learner's step, by iteration

    async def load(self, version: WeightVersion) -> None:
        self.calls.append(f"load {version.number}")
        self.loaded = version.number

    def generate(self, requests: Any) -> tuple[str, ...]:
        self.calls.append(f"generate {[request.sample_id for request in requests]}")
        return (f"rollouts of version {self.loaded}",)

    def score(self, rollouts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"scores of {shard}" for shard in rollouts)

    async def step(self, iteration: int, rollouts: Any, scores: Any) -> dict[str, float]:
        if iteration in self.fails:
            raise self.fails[iteration]
        self.calls.append(f"step {iteration} on {rollouts[0]}, {scores[0]}")
        return {"reward_mean": float(iteration)}

    async def publish(self) -> WeightVersion:
        self.version += 1
        return WeightVersion(self.version, "", Path(), (), ())

    async def checkpoint(self, iteration: int) -> None:
        self.calls.append(f"checkpoint {iteration}")


def request(name: str) -> SampleRequest:
    return SampleRequest(name, name, Prompt("p", "text"), seed=0)


async def test_each_iteration_samples_from_the_newest_weights_and_checkpoints_when_due() -> None:
    stages = Recorder()
    seen = []
    await train_on_policy(
        OnlineStages(stages, stages, stages),
        lambda iteration: [request(f"s{iteration}")],
        range(3, 6),
        checkpoint_every=4,
        on_iteration=lambda iteration, metrics: seen.append((iteration, metrics["reward_mean"])),
    )
    assert stages.calls == [
        "load 1",
        "generate ['s3']",
        "step 3 on rollouts of version 1, scores of rollouts of version 1",
        "checkpoint 3",
        "load 2",
        "generate ['s4']",
        "step 4 on rollouts of version 2, scores of rollouts of version 2",
        "load 3",
        "generate ['s5']",
        "step 5 on rollouts of version 3, scores of rollouts of version 3",
        "checkpoint 5",
    ]
    assert seen == [(3, 3.0), (4, 4.0), (5, 5.0)]


async def test_batches_are_drawn_ahead_while_the_learner_steps() -> None:
    """At staleness 1: s1 is begun before step 0, s2 before step 1, and nothing more before step 2."""
    stages = Recorder()
    await train(stages, range(3), max_staleness=1, checkpoint_every=2)
    assert stages.calls == [
        "load 1",
        "generate ['s0']",
        "generate ['s1']",
        "step 0 on rollouts of version 1, scores of rollouts of version 1",
        "load 2",
        "generate ['s2']",
        "logged 0",
        "step 1 on rollouts of version 1, scores of rollouts of version 1",
        "logged 1",
        "checkpoint 1",
        "step 2 on rollouts of version 2, scores of rollouts of version 2",
        "logged 2",
        "checkpoint 2",
    ]


@given(st.integers(0, 4), st.integers(0, 5), st.integers(1, 9))
def test_no_batch_is_staler_than_allowed_and_each_is_drawn_once(staleness: int, first: int, count: int) -> None:
    lags: list[int] = []

    class Lagging(Recorder):
        async def step(self, iteration: int, rollouts: Any, scores: Any) -> dict[str, float]:
            lags.append(self.version - int(rollouts[0].rpartition(" ")[2]))
            return await super().step(iteration, rollouts, scores)

    stages = Lagging()
    asyncio.run(train(stages, range(first, first + count), max_staleness=staleness))
    assert len(lags) == count
    assert max(lags) == min(staleness, count - 1)
    drawn = [call for call in stages.calls if call.startswith("generate")]
    assert drawn == [f"generate ['s{iteration}']" for iteration in range(first, first + count)]


async def test_without_staleness_both_forms_ask_for_the_same_in_the_same_order() -> None:
    """But for loads and checkpoints: the second form draws the next batch before it tells of the last one."""
    on_policy, overlapped = Recorder(), Recorder()
    await train(on_policy, range(2, 7), checkpoint_every=3)
    await train(overlapped, range(2, 7), checkpoint_every=3, max_staleness=0)
    for kinds in (("generate", "step"), ("step", "logged", "checkpoint")):
        one, other = ([call for call in stages.calls if call.startswith(kinds)] for stages in (on_policy, overlapped))
        assert one == other


async def train(
    stages: Recorder,
    iterations: range,
    watch: Any = None,
    *,
    checkpoint_every: int = 10,
    max_staleness: int | None = None,
) -> list[tuple[int, dict[str, float]]]:
    """Runs the loop, in its second form where a staleness is allowed; returns what was watched, in the order that it
    was told of."""
    watched: list[tuple[int, dict[str, float]]] = []
    form: Any = train_on_policy if max_staleness is None else partial(train_overlapped, max_staleness=max_staleness)
    await form(
        OnlineStages(stages, stages, stages, watch),
        lambda iteration: [request(f"s{iteration}")],
        iterations,
        checkpoint_every=checkpoint_every,
        on_iteration=lambda iteration, metrics: stages.calls.append(f"logged {iteration}"),
        on_watched=lambda iteration, metrics: watched.append((iteration, dict(metrics))),
    )
    return watched


FORMS = pytest.mark.parametrize("max_staleness", [None, 2], ids=["on_policy", "overlapped"])


@FORMS
@pytest.mark.parametrize("error", [Stopped("the budget is spent"), UserError("the key is refused")])
async def test_a_run_that_is_stopped_keeps_its_last_whole_iteration(
    error: Exception, max_staleness: int | None
) -> None:
    stages = Recorder(fails={5: error})
    with pytest.raises(type(error), match=str(error)):
        await train(stages, range(3, 20), max_staleness=max_staleness)
    assert stages.calls[-1] == "checkpoint 4"
    assert [call for call in stages.calls if call.startswith(("step", "checkpoint"))][-2].startswith("step 4")


async def test_what_is_checkpointed_already_is_not_written_again() -> None:
    stages = Recorder(fails={4: Stopped("the budget is spent")})
    with pytest.raises(Stopped):
        await train(stages, range(2, 20), checkpoint_every=2)
    assert [call for call in stages.calls if call.startswith("checkpoint")] == ["checkpoint 3"]


async def test_a_run_that_is_stopped_at_once_has_nothing_to_keep() -> None:
    stages = Recorder(fails={3: Stopped("the budget is spent")})
    with pytest.raises(Stopped):
        await train(stages, range(3, 20))
    assert not [call for call in stages.calls if call.startswith("checkpoint")]


@FORMS
async def test_a_defect_keeps_nothing_that_it_may_have_spoilt(max_staleness: int | None) -> None:
    stages = Recorder(fails={5: RuntimeError("a defect")})
    with pytest.raises(RuntimeError, match="a defect"):
        await train(stages, range(3, 20), max_staleness=max_staleness)
    assert not [call for call in stages.calls if call.startswith("checkpoint")]


@dataclass
class SlowWatch:
    """Ends when it is told to; then says how many batches it has begun to watch."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None
    begun: list[tuple[Any, Any]] = field(default_factory=list)

    async def watch(self, rollouts: Any, scores: Any) -> dict[str, float]:
        self.begun.append((rollouts[0], scores[0]))
        number = len(self.begun)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return {"watched": float(number)}


async def test_the_watch_runs_beside_training_and_is_told_of_in_the_end() -> None:
    """Its gate opens once all steps are taken: training did not wait for it."""
    watch = SlowWatch()

    class Opening(Recorder):
        async def checkpoint(self, iteration: int) -> None:
            watch.gate.set()

    watched = await train(Opening(), range(3), watch)
    assert watched == [(0, {"watched": 1.0}), (1, {"watched": 2.0}), (2, {"watched": 3.0})]
    assert watch.begun[1] == ("rollouts of version 2", "scores of rollouts of version 2")


async def test_a_watch_that_the_judge_stops_ends_the_run_with_all_saved() -> None:
    watch = SlowWatch(error=Stopped("the budget is spent"))
    watch.gate.set()

    class Yielding(Recorder):
        async def step(self, iteration: int, rollouts: Any, scores: Any) -> dict[str, float]:
            await asyncio.sleep(0)
            return await super().step(iteration, rollouts, scores)

    stages = Yielding()
    with pytest.raises(Stopped, match="the budget is spent"):
        await train(stages, range(5), watch)
    assert stages.calls[-2:] == ["logged 0", "checkpoint 0"]
