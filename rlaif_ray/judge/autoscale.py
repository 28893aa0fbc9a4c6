"""How many judge actors a pool wants: a pure decision on what the pool sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# A backlog younger than this may yet be worked off by the actors that are there.
SCALE_UP_DELAY_S = 0.5

# Side by side processes start slowly, and the first may work the backlog off: so long the others wait for it.
HEAD_START_S = 2.0

# Latencies vary: so many times the calls that the quota keeps busy on average. An actor holds more, where it must.
_MARGIN = 1.1

# Of a reply in the mean latency.
_LEAST_WEIGHT = 0.002

# An actor costs seconds to start, so it outlives a lull between the batches of an iteration; not much longer, as its
# node may go with it.
SCALE_DOWN_DELAY_S = 12.0


@dataclass(frozen=True, slots=True)
class Load:
    """What a pool sees. Counts are of calls; times in seconds."""

    queued: int
    oldest_s: float  # age of the oldest queued call
    in_flight: int
    actors: int  # started or starting
    starting_s: float | None  # for how long the first of them has been starting; None where one is up
    idle_s: float  # how long fewer calls than the actors can hold have been there
    throttled: bool  # the endpoint refuses calls for now, or its quota is the bound


@dataclass(frozen=True, slots=True)
class Bounds:
    """A pool's smallest and largest number of actors, how many calls one holds at a time, and beyond how many in flight
    more are of no use; None for no bound."""

    min: int
    max: int
    calls_per_actor: int
    allowed: int | None = None

    def useful(self, calls: int) -> int:
        return calls if self.allowed is None else min(calls, self.allowed)


def allowed_in_flight(most: int, per_minute: float | None, latency_s: float | None, at_first: int) -> int:
    """Calls in flight beyond which an endpoint answers no more a minute: its own bound, or by Little's law what keeps
    its quota busy. `at_first`: before a reply has shown the latency."""
    if per_minute is None:
        return most
    busy = at_first if latency_s is None else math.ceil(_MARGIN * per_minute / 60 * latency_s)
    return min(most, busy)


class MeanLatency:
    """Of all replies at first, then of some hundred of late: actors must not come and go with its noise."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._replies = 0

    def hear(self, latency_s: float) -> None:
        self._replies += 1
        before = self.seconds or 0.0
        self.seconds = before + max(_LEAST_WEIGHT, 1 / self._replies) * (latency_s - before)


def starting_s(starts: Sequence[float | None], now: float) -> float | None:
    """`Load.starting_s`, from when each actor was started; None for one that is up."""
    begun = [start for start in starts if start is not None]
    return None if len(begun) < len(starts) else now - min(begun, default=now)


class Slack:
    """For how long a pool could have done with an actor less."""

    def __init__(self) -> None:
        self._since: float | None = None

    def seconds(self, calls: int, actors: int, bounds: Bounds, now: float) -> float:
        """`calls` are those queued and in flight. To be asked at every step."""
        if bounds.useful(calls) > (actors - 1) * bounds.calls_per_actor:
            self._since = None
        elif self._since is None:
            self._since = now
        return 0.0 if self._since is None else now - self._since


def wanted_actors(load: Load, bounds: Bounds) -> int:
    """Actors that the pool should have.

    One at once where there is none. Grows to hold all calls that are of use in flight, when a backlog has lasted and
    the first actor is up or has had its head start; not while throttled, as more actors get no more permits. Shrinks to
    what is needed after a lull.
    """
    calls = load.queued + load.in_flight
    needed = min(max(math.ceil(bounds.useful(calls) / bounds.calls_per_actor), bounds.min), bounds.max)
    if needed > load.actors:
        first = load.starting_s is not None and load.starting_s < HEAD_START_S
        grows = not first and not load.throttled and load.oldest_s >= SCALE_UP_DELAY_S
        return needed if grows else max(load.actors, bounds.min, 1 if calls else 0)
    if needed < load.actors and load.idle_s >= SCALE_DOWN_DELAY_S:
        return needed
    return min(load.actors, bounds.max)
