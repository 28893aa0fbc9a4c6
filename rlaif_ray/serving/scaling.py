"""How many actors a server wants: a pure decision on how long answers wait."""

from __future__ import annotations

from dataclasses import dataclass

# Beyond this age of the oldest answer that waits, the actors that are there are too few.
SCALE_UP_AGE_S = 0.5

# An actor costs seconds to start, so it outlives a lull.
SCALE_DOWN_DELAY_S = 30.0


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """What a server sees. Times are in seconds."""

    oldest_s: float  # age of the oldest answer that waits; 0 where none does
    actors: int  # serving or starting
    starting: int
    idle_s: float  # for how long there has always been an actor with nothing to do


def wanted_actors(load: ServerLoad, *, fewest: int, most: int) -> int:
    """Actors that the server should have. One comes or goes at a time, as only then does the age show what it did."""
    wanted = load.actors
    if load.oldest_s >= SCALE_UP_AGE_S and not load.starting:
        wanted += 1
    elif load.idle_s >= SCALE_DOWN_DELAY_S:
        wanted -= 1
    return min(max(wanted, fewest), most)
