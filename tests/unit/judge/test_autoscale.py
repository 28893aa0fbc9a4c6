import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.judge.autoscale import SCALE_DOWN_DELAY_S, SCALE_UP_DELAY_S, Bounds, Load, wanted_actors

BOUNDS = Bounds(min=1, max=4, calls_per_actor=100)
LOAD = Load(queued=0, oldest_s=0.0, in_flight=0, actors=1, idle_s=0.0, throttled=False)
OLD = SCALE_UP_DELAY_S
LULL = SCALE_DOWN_DELAY_S


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, 1),
        ({"actors": 0}, 1),  # the smallest number, without a call
        ({"queued": 250, "oldest_s": OLD, "in_flight": 100}, 4),  # 350 calls fill 4 actors
        ({"queued": 150, "oldest_s": OLD, "in_flight": 100}, 3),
        ({"queued": 9_000, "oldest_s": OLD}, 4),  # never above the largest
        ({"queued": 250, "in_flight": 100}, 1),  # too young a backlog
        ({"queued": 250, "oldest_s": OLD, "throttled": True}, 1),  # more actors get no more permits
        ({"queued": 250, "oldest_s": OLD, "actors": 4, "in_flight": 100}, 4),
        ({"actors": 4, "in_flight": 10, "idle_s": LULL / 2}, 4),  # a lull may be short
        ({"actors": 4, "in_flight": 10, "idle_s": LULL}, 1),
        ({"actors": 4, "in_flight": 150, "idle_s": LULL}, 2),
    ],
)
def test_table(changes: dict[str, float], wanted: int) -> None:
    assert wanted_actors(dataclasses.replace(LOAD, **changes), BOUNDS) == wanted


def test_none_at_rest_and_one_for_the_first_call() -> None:
    bounds = Bounds(min=0, max=4, calls_per_actor=100)
    at_rest = dataclasses.replace(LOAD, actors=0)
    assert wanted_actors(at_rest, bounds) == 0
    assert wanted_actors(dataclasses.replace(at_rest, queued=1), bounds) == 1
    assert wanted_actors(dataclasses.replace(at_rest, queued=1, throttled=True), bounds) == 1
    assert wanted_actors(dataclasses.replace(at_rest, actors=1, idle_s=LULL), bounds) == 0


def test_no_more_actors_than_the_endpoint_lets_work() -> None:
    """300 calls would fill 3 actors; 64 may be in flight, which one holds, and 150, which take two."""
    backlog = dataclasses.replace(LOAD, queued=300, oldest_s=OLD)
    assert wanted_actors(backlog, dataclasses.replace(BOUNDS, allowed=64)) == 1
    assert wanted_actors(backlog, dataclasses.replace(BOUNDS, allowed=150)) == 2


loads = st.builds(
    Load,
    queued=st.integers(0, 2_000),
    oldest_s=st.floats(0, 100),
    in_flight=st.integers(0, 400),
    actors=st.integers(0, 4),
    idle_s=st.floats(0, 100),
    throttled=st.booleans(),
)


@given(loads, st.integers(0, 4))
def test_within_bounds_and_at_rest_after_one_step(load: Load, smallest: int) -> None:
    bounds = Bounds(min=smallest, max=4, calls_per_actor=100)
    wanted = wanted_actors(load, bounds)
    assert min(load.actors, bounds.min) <= wanted <= bounds.max
    # What it wants, it still wants when it has it: no flapping under an unchanged load.
    settled = dataclasses.replace(load, actors=wanted, idle_s=0.0)
    assert wanted_actors(settled, bounds) >= wanted
