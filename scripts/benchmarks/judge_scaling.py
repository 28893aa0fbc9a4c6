"""How soon judge actors are there for a backlog and gone after it, and whether they thrash, on a node that is there.

Run as `python -m scripts.benchmarks.judge_scaling --out DIRECTORY` from the repository's root, where the tests' server
lies. A pool that may have none to four actors asks a server on the loopback that takes two seconds to answer: first
from rest, again and again; then under a load that is there for ten seconds and away for ten.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import ray

from actors.judge import Judges, start_judges
from rlaif_ray.config import JudgeConfig
from rlaif_ray.records import Pair, Prompt
from tests.loopback_judge import LoopbackJudge, serving

_ANSWERS_AFTER_S = 2.0
_TICK_S = 0.1
_SWING_S = 10.0

# What four actors have in flight, and pairs, in two orders each, that keep them busy for as long as a swing takes.
_IN_FLIGHT = 128
_PAIRS = round(_IN_FLIGHT / _ANSWERS_AFTER_S * _SWING_S / 2)


@dataclass(frozen=True, slots=True)
class Sight:
    """The pool at a time. Actors are started or starting."""

    s: float
    queued: int
    in_flight: int
    actors: int


@dataclass(frozen=True, slots=True)
class Scaling:
    """Times in seconds. `load_average` is of the machine, when it was done."""

    to_a_working_actor_s: list[float]
    to_none_s: list[float]
    swings: int
    starts_under_swings: int
    sights: list[Sight] = field(repr=False)
    load_average: float = 0.0


class Watched:
    """A pool, and what was seen of it."""

    def __init__(self, judges: Judges, server: LoopbackJudge) -> None:
        self._judges = judges
        self._server = server
        self._begun = time.monotonic()
        self._asked = 0
        self.sights: list[Sight] = []

    async def until(self, done: Callable[[Sight], bool]) -> Sight:
        """Look until it is so."""
        while True:
            progress = await self._judges.progress()
            now = time.monotonic() - self._begun
            sight = Sight(round(now, 2), progress.queued, progress.in_flight, progress.actors)
            self.sights.append(sight)
            if done(sight):
                return sight
            await asyncio.sleep(_TICK_S)

    def ask(self, count: int) -> asyncio.Future[Any]:
        """New questions, none asked before."""
        first, self._asked = self._asked, self._asked + count
        pairs = [
            Pair(f"pair-{n}", Prompt(f"prompt-{n}", f"Say {n}."), "long", "short") for n in range(first, self._asked)
        ]
        return asyncio.ensure_future(self._judges.label(pairs, "collect"))

    async def from_rest(self) -> tuple[float, float]:
        """Seconds from a backlog to its first question at the server, and from its last answer to no actor."""
        seen, asked = len(self._server.arrivals), time.monotonic()
        answers = self.ask(_PAIRS)
        await self.until(lambda _: len(self._server.arrivals) > seen)
        working_s = self._server.arrivals[seen] - asked
        answered = (await self.until(lambda _: answers.done())).s
        await answers
        return working_s, (await self.until(lambda sight: sight.actors == 0)).s - answered

    async def swing(self, times: int) -> None:
        for _ in range(times):
            begun = time.monotonic()
            await asyncio.gather(self.ask(_PAIRS), self._look_for(_SWING_S))
            await self._look_for(begun + 2 * _SWING_S - time.monotonic())

    async def _look_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        await self.until(lambda _: time.monotonic() >= end)


async def measure(repeats: int, swings: int) -> Scaling:
    with serving(LoopbackJudge(latency_s=_ANSWERS_AFTER_S)) as server, tempfile.TemporaryDirectory() as folder:
        config = JudgeConfig.model_validate(
            {
                "model": "loopback",
                "base_url": server.url,
                "mode": "choice",
                "max_concurrency": _IN_FLIGHT,
                "actors": {"min": 0, "max": 4, "cpus": 0.1},
            }
        )
        judges = await start_judges(config, seed=0, run="scaling", ledger_path=Path(folder) / "ledger.sqlite")
        watched = Watched(judges, server)
        times = [await watched.from_rest() for _ in range(repeats)]
        at_rest = len(watched.sights) - 1
        await watched.swing(swings)
        await judges.stop()
    return Scaling(
        [round(working, 2) for working, _ in times],
        [round(none, 2) for _, none in times],
        swings,
        sum(max(0, after.actors - before.actors) for before, after in pairwise(watched.sights[at_rest:])),
        watched.sights,
        os.getloadavg()[0],
    )


def _draw(sights: Sequence[Sight], path: Path) -> None:
    from plotly.subplots import make_subplots

    figure: Any = make_subplots(rows=2, shared_xaxes=True, subplot_titles=["calls", "judge actors"])
    seconds = [sight.s for sight in sights]
    for row, name in ((1, "queued"), (1, "in_flight"), (2, "actors")):
        values = [getattr(sight, name) for sight in sights]
        figure.add_scatter(x=seconds, y=values, name=name.replace("_", " "), mode="lines", row=row, col=1)
    figure.update_xaxes(title="seconds", row=2, col=1)
    figure.update_layout(title="Judge actors from rest, and under a load that swings every ten seconds", height=700)
    figure.write_html(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("runs/judge-scaling"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--swings", type=int, default=6)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    scaling = asyncio.run(measure(arguments.repeats, arguments.swings))
    ray.shutdown()
    (arguments.out / "judge-scaling.json").write_text(json.dumps(asdict(scaling)) + "\n")
    _draw(scaling.sights, arguments.out / "judge-scaling.html")
    print(scaling)


if __name__ == "__main__":
    main()
