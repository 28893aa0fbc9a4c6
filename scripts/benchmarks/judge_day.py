"""A day of judging in minutes: the decisions of the limiter, the pool and the autoscaler, on a clock of their own.

Run as `python -m scripts.benchmarks.judge_day --out DIRECTORY`. Ten endpoints, each with its own quota and latency,
have 1,000 judge actors between them at most. Work comes as a night's labels in bulk and a day's training iterations
bring it; at noon every endpoint refuses all calls for a minute. No Ray runs and nobody is called: what decides is what
decides in a run, `RateLimiter`, `Slack` and `wanted_actors`. Actors take seconds to start, and longer where a node has
to come first. A call here stands for 32, of the quota, of an actor's hands and of the work alike.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlaif_ray.judge.autoscale import Bounds, Load, MeanLatency, Slack, allowed_in_flight, starting_s, wanted_actors
from rlaif_ray.judge.rate_headers import SILENT
from rlaif_ray.judge.rate_limit import Ending, Lease, Limits, Priority, RateLimiter, Settlement
from rlaif_ray.judge.token_estimate import CallSize, Usage

DAY_S = 86_400.0
SCALE = 32
ACTORS = 100  # of each endpoint, at most

_TICK_S = 0.2
_ROW_S = 300.0

# What an actor holds, and the calls for which another is worth starting (`actors.call_pool`).
_HELD, _WORTH = 128 // SCALE, 32 // SCALE

# From a decision to a working actor: on a node that is there, and on one that has to come first. A node bears ten, and
# goes when it has been empty for so long.
_ACTOR_STARTS_S, _NODE_STARTS_S, _ACTORS_A_NODE, _NODE_IDLE_S = 3.0, 90.0, 10, 300.0

_SIZE, _USAGE = CallSize(prompt_bytes=4_000, max_tokens=512), Usage(prompt_tokens=1_000, completion_tokens=300)
_NOON = (12 * 3_600.0, 12 * 3_600.0 + 60.0)


@dataclass(frozen=True, slots=True)
class Endpoint:
    per_s: float  # real calls that its quota permits
    latency_s: float  # the median


# From one that some fifty actors exhaust to those that want more than their hundred.
ENDPOINTS = [Endpoint(per_s, latency) for per_s in (100.0, 150.0, 200.0, 250.0, 300.0) for latency in (15.0, 30.0)]


@dataclass(frozen=True, slots=True)
class Row:
    """Five minutes of one endpoint. Calls are real ones."""

    hour: float
    queued: int
    oldest_s: float
    sent_per_s: float
    actors: float  # mean
    needed: float  # mean: what would carry the calls that are out
    nodes: int


@dataclass(frozen=True, slots=True)
class Result:
    endpoint: Endpoint
    calls: int
    used: float  # of the permitted rate, while calls waited and the endpoint did not refuse
    refused: int
    excess_p50_s: float  # waiting beyond what the quota alone would impose
    excess_p99_s: float
    actor_hours: float
    wasted: float  # share of them beyond what was needed
    starts: int
    rows: list[Row]


def arrivals(endpoint: Endpoint, rng: random.Random) -> Iterator[tuple[float, int]]:
    """When so many real calls come: two hours' quota at midnight; from six to ten at night an iteration every one to
    five minutes, worth a tenth to all of the quota until the next."""
    yield 0.0, round(endpoint.per_s * 7_200)
    now = 6 * 3_600.0
    while now < 22 * 3_600.0:
        pause = rng.uniform(60.0, 300.0)
        yield now, round(endpoint.per_s * pause * rng.uniform(0.1, 1.0))
        now += pause


@dataclass
class _Actor:
    started: float
    up: bool = False
    held: int = 0
    draining: bool = False


@dataclass
class _Window:
    """What becomes a row. Calls are of this simulation, times in seconds."""

    sent: int = 0
    sent_from_backlog: int = 0
    backlog: float = 0.0
    actors: float = 0.0
    needed: float = 0.0
    wasted: float = 0.0


class _Pool:
    """One endpoint's calls: a pool's decisions, and a world that answers."""

    def __init__(self, endpoint: Endpoint, seed: int) -> None:
        self.rows: list[Row] = []
        self.windows: list[_Window] = [_Window()]
        self.sent: list[tuple[float, float]] = []  # when each call that was answered had come, and had been sent
        self.refused = self.starts = 0
        self._endpoint = endpoint
        self._rng = random.Random(seed)
        self._limiter = RateLimiter(Limits(endpoint.per_s * 60 / SCALE, None, 10_000), 120.0, 0.0)
        self._latency = MeanLatency()
        self._slack = Slack()
        self._queue: deque[float] = deque()  # when each came
        self._held = 0
        self._actors: dict[str, _Actor] = {}
        self._starting: list[tuple[float, str]] = []  # when they are up
        self._hungry: dict[str, None] = {}  # who is up and may hold more
        self._asked: dict[int, tuple[str, deque[float]]] = {}  # by ticket: whose, and when its calls came
        self._replies: list[tuple[float, int, str, float, float, Lease]] = []  # until, lease, whose, came, sent
        self._nodes: list[float] = []  # when each is up
        self._spare_since = 0.0

    @property
    def at_rest(self) -> bool:
        return not self._actors and not self._queue

    def come(self, now: float, calls: int) -> None:
        self._queue.extend([now] * calls)

    def step(self, now: float) -> None:
        while self._replies and self._replies[0][0] <= now:
            self._end(*heapq.heappop(self._replies), now)
        self._scale(now)
        while self._starting and self._starting[0][0] <= now:
            _, name = heapq.heappop(self._starting)
            if name in self._actors:
                self._actors[name].up = True
                self._hungry[name] = None
        while self._queue and self._hungry:
            self._feed(next(iter(self._hungry)))
        sent = 0
        for ticket, grants in self._limiter.serve(now):
            name, came = self._asked.pop(ticket)
            for lease in grants:
                assert isinstance(lease, Lease)
                self._send(name, came.popleft(), lease, now)
            sent += len(grants)
            self._ask(name, came)
        self._count(now, sent)

    def _feed(self, name: str) -> None:
        actor = self._actors[name]
        taken = min(_HELD - actor.held, len(self._queue))
        actor.held += taken
        self._held += taken
        self._ask(name, deque(self._queue.popleft() for _ in range(taken)))
        if actor.held == _HELD:
            del self._hungry[name]

    def _ask(self, name: str, came: deque[float]) -> None:
        if came:
            self._asked[self._limiter.ask(name, Priority.BULK, [_SIZE] * len(came))] = (name, came)

    def _send(self, name: str, came: float, lease: Lease, now: float) -> None:
        sent = now + lease.delay_s
        takes = 0.1 if _refuses(sent) else self._endpoint.latency_s * self._rng.lognormvariate(0.0, 0.5)
        heapq.heappush(self._replies, (sent + takes, lease.id, name, came, sent, lease))

    def _end(self, at: float, _id: int, name: str, came: float, sent: float, lease: Lease, now: float) -> None:
        if _refuses(sent):
            self.refused += 1
            self._limiter.settle(Settlement(lease, Ending.REFUSED, None, SILENT), now)
            self._ask(name, deque([came]))
            return
        self._limiter.settle(Settlement(lease, Ending.REPLIED, _USAGE, SILENT), now)
        self.sent.append((came, sent))
        self._latency.hear(at - sent)
        self._held -= 1
        actor = self._actors[name]
        actor.held -= 1
        if actor.draining:
            if not actor.held:
                del self._actors[name]
        else:
            self._hungry[name] = None

    def _scale(self, now: float) -> None:
        """As `actors.call_pool` does."""
        per_minute = self._endpoint.per_s * 60 / SCALE
        bounds = Bounds(0, ACTORS, _WORTH, allowed_in_flight(10_000, per_minute, self._latency.seconds, _WORTH))
        active = {name: actor for name, actor in self._actors.items() if not actor.draining}
        queued, calls = len(self._queue), len(self._queue) + self._held
        load = Load(
            queued=queued,
            oldest_s=now - self._queue[0] if queued else 0.0,
            in_flight=self._held,
            actors=len(active),
            starting_s=starting_s([None if actor.up else actor.started for actor in active.values()], now),
            idle_s=self._slack.seconds(calls, len(active), bounds, now),
            throttled=bool(queued) and self._limiter.throttled(now),
        )
        wanted = wanted_actors(load, bounds)
        for _ in range(wanted - len(active)):
            self._start(now)
        if wanted < len(active):
            for name in sorted(active, key=lambda name: self._actors[name].held)[: len(active) - wanted]:
                self._hungry.pop(name, None)
                self._actors[name].draining = True
                if not self._actors[name].held:
                    del self._actors[name]
        used = math.ceil(len(self._actors) / _ACTORS_A_NODE)
        if used >= len(self._nodes):
            self._spare_since = now
        elif now - self._spare_since >= _NODE_IDLE_S:
            del self._nodes[used:]

    def _start(self, now: float) -> None:
        name = str(self.starts)
        self.starts += 1
        self._actors[name] = _Actor(now)
        node = (len(self._actors) - 1) // _ACTORS_A_NODE
        if node == len(self._nodes):
            self._nodes.append(now + _NODE_STARTS_S)
        heapq.heappush(self._starting, (max(now, self._nodes[node]) + _ACTOR_STARTS_S, name))

    def _count(self, now: float, sent: int) -> None:
        window = self.windows[-1]
        window.sent += sent
        present, needed = len(self._actors), math.ceil(len(self._replies) / _WORTH)
        window.actors += present * _TICK_S
        window.needed += needed * _TICK_S
        window.wasted += max(0, present - needed) * _TICK_S
        if self._queue and not _refuses(now):
            window.backlog += _TICK_S
            window.sent_from_backlog += sent
        if now >= len(self.windows) * _ROW_S:
            self.rows.append(
                Row(
                    hour=now / 3_600,
                    queued=len(self._queue) * SCALE,
                    oldest_s=now - self._queue[0] if self._queue else 0.0,
                    sent_per_s=window.sent * SCALE / _ROW_S,
                    actors=window.actors / _ROW_S,
                    needed=window.needed / _ROW_S,
                    nodes=len(self._nodes),
                )
            )
            self.windows.append(_Window())


def _refuses(now: float) -> bool:
    return _NOON[0] <= now < _NOON[1]


def a_day(endpoint: Endpoint, seed: int) -> Result:
    pool = _Pool(endpoint, seed)
    work = deque(arrivals(endpoint, random.Random(seed)))
    for tick in range(round(DAY_S / _TICK_S) + 1):
        now = tick * _TICK_S
        while work and work[0][0] <= now:
            pool.come(now, work.popleft()[1] // SCALE)
        pool.step(now)
    windows = pool.windows
    excess = _excess(pool.sent, SCALE / endpoint.per_s)
    permitted = sum(window.backlog for window in windows) * endpoint.per_s / SCALE
    actor_s = sum(window.actors for window in windows)
    return Result(
        endpoint,
        calls=len(pool.sent) * SCALE,
        used=sum(window.sent_from_backlog for window in windows) / permitted,
        refused=pool.refused * SCALE,
        excess_p50_s=excess[len(excess) // 2],
        excess_p99_s=excess[len(excess) * 99 // 100],
        actor_hours=actor_s / 3_600,
        wasted=sum(window.wasted for window in windows) / actor_s,
        starts=pool.starts,
        rows=pool.rows,
    )


def _excess(sent: Sequence[tuple[float, float]], apart_s: float) -> list[float]:
    """In order of size: how much later each call went out than it would have if the quota alone had held it up."""
    due, late = -math.inf, []
    for came, gone in zip(sorted(came for came, _ in sent), sorted(gone for _, gone in sent), strict=True):
        due = max(came, due + apart_s)
        late.append(max(0.0, gone - due))
    return sorted(late)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("runs/judge-day"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    results = []
    for seed, endpoint in enumerate(ENDPOINTS):
        results.append(a_day(endpoint, seed))
        (out / "judge-day.json").write_text(json.dumps([asdict(one) for one in results], indent=1) + "\n")
    _show(results)
    _draw(results, out / "judge-day.html")


def _show(results: Sequence[Result]) -> None:
    table = Table(
        *("quota, calls/s", "latency, s", "calls", "rate used", "refused", "late p50, s", "p99"),
        *("actor hours", "of them wasted", "starts"),
        box=None,
    )
    for one in results:
        table.add_row(
            *(f"{one.endpoint.per_s:g}", f"{one.endpoint.latency_s:g}", f"{one.calls:,}", f"{one.used:.1%}"),
            *(f"{one.refused:,}", f"{one.excess_p50_s:.1f}", f"{one.excess_p99_s:.1f}"),
            *(f"{one.actor_hours:,.0f}", f"{one.wasted:.1%}", f"{one.starts}"),
        )
    Console(width=140).print(table)


def _draw(results: Sequence[Result], path: Path) -> None:
    """All endpoints together, over the day."""
    from plotly.subplots import make_subplots

    hours = [row.hour for row in results[0].rows]

    def total(name: str) -> list[float]:
        return [sum(getattr(one.rows[n], name) for one in results) for n in range(len(hours))]

    oldest = [max(one.rows[n].oldest_s for one in results) for n in range(len(hours))]
    quota = sum(one.endpoint.per_s for one in results)
    titles = ["calls sent per second", "age of the oldest call that waits, s", "judge actors", "nodes"]
    figure: Any = make_subplots(rows=4, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.06)
    lines = [
        (1, "sent", total("sent_per_s")),
        (1, "all quotas", [quota] * len(hours)),
        (2, "oldest", oldest),
        (3, "present", total("actors")),
        (3, "needed", total("needed")),
        (4, "nodes", total("nodes")),
    ]
    for row, name, values in lines:
        figure.add_scatter(x=hours, y=values, name=name, row=row, col=1, mode="lines")
    figure.update_xaxes(title="hour", row=4, col=1)
    figure.update_layout(title="A day of judging: ten endpoints, at most 1,000 judge actors", height=1_000)
    figure.write_html(path)


if __name__ == "__main__":
    main()
