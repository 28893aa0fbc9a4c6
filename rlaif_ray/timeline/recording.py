"""Recording when each stage of the loop works, for the iteration that the config wants a timeline of."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlaif_ray.loop import OnlineStages
from rlaif_ray.records import Rollouts, SampleRequest, Scores, WeightVersion
from rlaif_ray.rundir import RunDirectory, write_atomically
from rlaif_ray.stages import Runtime, Shards
from rlaif_ray.timeline.trace import StageName, StageSpan, trace, window_of


@asynccontextmanager
async def timed(
    stages: OnlineStages,
    runtime: Runtime,
    numbers: range,
    wanted: int | None,
    run: RunDirectory,
    say: Callable[[str], None],
) -> AsyncIterator[OnlineStages]:
    """The stages for a loop over the iterations of these numbers. Where one of them is wanted they are recorded, and
    its timeline is written while the loop goes on; no later than where this is left, unless an error ended the loop."""
    if wanted is None or wanted not in numbers:
        if wanted is not None and wanted < numbers.start and not run.timeline(wanted).exists():
            say(f"  iteration {wanted} was over before its timeline was asked for: there is none")
        yield stages
        return
    recorder = StageRecorder(stages, numbers.start, wanted, runtime.call_of)
    writing = asyncio.ensure_future(_write(recorder, runtime, wanted, run.timeline(wanted), say))
    try:
        yield recorder.stages
        recorder.over.set()
        await writing
    finally:
        if not writing.cancel() and not writing.cancelled():
            writing.exception()  # where another error came first, this one is no surprise


async def _write(
    recorder: StageRecorder, runtime: Runtime, wanted: int, path: Path, say: Callable[[str], None]
) -> None:
    await recorder.over.wait()
    activity = await runtime.activity(window_of(recorder.spans, wanted).begin)
    write_atomically(path, json.dumps(trace(recorder.spans, activity, wanted)))
    say(f"  timeline of iteration {wanted}: {path}, for https://ui.perfetto.dev")


class StageRecorder:
    """Stands before every stage of a loop and passes on what it is asked. `over` is set when the wanted iteration is,
    or, where it is the last, by whoever sees the loop end."""

    def __init__(
        self,
        stages: OnlineStages,
        first: int,
        wanted: int,
        call_of: Callable[[Any], str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Iterations bear numbers of the run, of which the loop's first has `first`. `call_of` gives the id of the call
        that makes a shard."""
        self.spans: list[StageSpan] = []
        self.over = asyncio.Event()
        self._stages = stages
        self._wanted = wanted
        self._call_of = call_of
        self._clock = clock
        self._drawing = first  # whose batch is drawn next
        self._learning = first - 1

    @property
    def stages(self) -> OnlineStages:
        return OnlineStages(self, self, self, None if self._stages.watch is None else self)

    async def load(self, version: WeightVersion) -> None:
        with self._recorded("load", self._drawing, name=f"load version {version.number}"):
            await self._stages.rollouts.load(version)

    def generate(self, requests: Sequence[SampleRequest]) -> Shards[Rollouts]:
        with self._recorded("generate", self._drawing) as place:
            shards = self._stages.rollouts.generate(requests)
            self._amend(place, calls=tuple(map(self._call_of, shards)))
        return shards

    def score(self, rollouts: Shards[Rollouts]) -> Shards[Scores]:
        with self._recorded("score", self._drawing) as place:
            shards = self._stages.reward.score(rollouts)
            self._amend(place, calls=tuple(map(self._call_of, shards)))
        self._drawing += 1
        return shards

    async def watch(self, rollouts: Shards[Rollouts], scores: Shards[Scores]) -> Mapping[str, float]:
        assert self._stages.watch is not None
        with self._recorded("watch", self._learning):
            return await self._stages.watch.watch(rollouts, scores)

    async def step(self, iteration: int, rollouts: Shards[Rollouts], scores: Shards[Scores]) -> Mapping[str, float]:
        self._learning += 1
        if self._learning > self._wanted:
            self.over.set()
        with self._recorded("learn", self._learning):
            return await self._stages.learner.step(iteration, rollouts, scores)

    async def publish(self) -> WeightVersion:
        with self._recorded("publish", self._learning) as place:
            version = await self._stages.learner.publish()
            self._amend(place, name=f"publish version {version.number}")
        return version

    async def checkpoint(self, iteration: int) -> None:
        with self._recorded("checkpoint", self._learning):
            await self._stages.learner.checkpoint(iteration)

    def close(self) -> None:
        """Stages are closed by whoever made them."""

    @contextmanager
    def _recorded(self, stage: StageName, iteration: int, name: str = "") -> Iterator[int]:
        """The block as a span; gives its place among them."""
        place = len(self.spans)
        self.spans.append(StageSpan(stage, name or f"{stage} {iteration}", iteration, self._clock(), None))
        try:
            yield place
        finally:
            self._amend(place, end=self._clock())

    def _amend(self, place: int, **changes: Any) -> None:
        self.spans[place] = replace(self.spans[place], **changes)
