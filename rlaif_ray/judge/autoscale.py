"""How many judge actors a pool wants: a pure decision on what the pool sees."""

from __future__ import annotations

import math
from dataclasses import dataclass

# A backlog younger than this may yet be worked off by the actors that are there.
SCALE_UP_DELAY_S = 0.5

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
    idle_s: float  # how long fewer calls than the actors can hold have been there
    throttled: bool  # the endpoint refuses calls for now, or its quota is the bound


@dataclass(frozen=True, slots=True)
class Bounds:
    """A pool's smallest and largest number of actors, how many calls one holds at a time, and how many the endpoint
    lets be in flight; None for no bound."""

    min: int
    max: int
    calls_per_actor: int
    allowed: int | None = None


def wanted_actors(load: Load, bounds: Bounds) -> int:
    """Actors that the pool should have.

    Grows to hold all calls that the endpoint lets be in flight, when a backlog has lasted or nobody works; not while
    throttled, as more actors get no more permits. Shrinks to what is needed after a lull.
    """
    calls = load.queued + load.in_flight
    useful = calls if bounds.allowed is None else min(calls, bounds.allowed)
    needed = min(max(math.ceil(useful / bounds.calls_per_actor), bounds.min), bounds.max)
    if needed > load.actors:
        floor = max(bounds.min, 1 if calls else 0)
        if load.actors < floor:
            return floor if load.throttled or load.oldest_s < SCALE_UP_DELAY_S else needed
        if load.throttled or load.oldest_s < SCALE_UP_DELAY_S:
            return load.actors
        return needed
    if needed < load.actors and load.idle_s >= SCALE_DOWN_DELAY_S:
        return needed
    return min(load.actors, bounds.max)
