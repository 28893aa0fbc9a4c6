import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.judge.autoscale import (
    HEAD_START_S,
    SCALE_DOWN_DELAY_S,
    SCALE_UP_DELAY_S,
    Bounds,
    Load,
    MeanLatency,
    Slack,
    allowed_in_flight,
    wanted_actors,
)

BOUNDS = Bounds(min=1, max=4, calls_per_actor=100)
LOAD = Load(queued=0, oldest_s=0.0, in_flight=0, actors=1, starting_s=None, idle_s=0.0, throttled=False)
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
        ({"queued": 250, "oldest_s": OLD, "starting_s": HEAD_START_S / 2}, 1),  # the first one starts faster alone
        ({"queued": 250, "oldest_s": OLD, "starting_s": HEAD_START_S}, 3),
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
    assert wanted_actors(dataclasses.replace(at_rest, queued=400, oldest_s=OLD, starting_s=0.0), bounds) == 1
    assert wanted_actors(dataclasses.replace(at_rest, queued=1, throttled=True), bounds) == 1
    assert wanted_actors(dataclasses.replace(at_rest, actors=1, idle_s=LULL), bounds) == 0


def test_no_more_actors_than_the_endpoint_lets_work() -> None:
    """300 calls would fill 3 actors; 64 may be in flight, which one holds, and 150, which take two."""
    backlog = dataclasses.replace(LOAD, queued=300, oldest_s=OLD)
    assert wanted_actors(backlog, dataclasses.replace(BOUNDS, allowed=64)) == 1
    assert wanted_actors(backlog, dataclasses.replace(BOUNDS, allowed=150)) == 2


def test_a_quota_bounds_the_calls_that_are_of_use() -> None:
    """600 a minute at 3 s a call keep 10 * 3 = 30 calls in flight; a tenth more are 33. An endpoint may allow fewer.
    Without a quota the endpoint's bound is all there is."""
    assert allowed_in_flight(1_000, 600.0, 3.0, at_first=32) == 33
    assert allowed_in_flight(20, 600.0, 3.0, at_first=32) == 20
    assert allowed_in_flight(1_000, 600.0, None, at_first=32) == 32
    assert allowed_in_flight(1_000, None, 3.0, at_first=32) == 1_000


def test_latency_is_a_plain_mean_of_few_replies_and_moves_slowly_after_many() -> None:
    """1, 2 and 6 s are 3 s; a reply of 503 s after 999 of 3 s moves it by 0.002 * 500 s."""
    latency = MeanLatency()
    for seconds in (1.0, 2.0, 6.0):
        latency.hear(seconds)
    assert latency.seconds == pytest.approx(3.0)
    for _ in range(996):
        latency.hear(3.0)
    latency.hear(503.0)
    assert latency.seconds == pytest.approx(4.0)


def test_actors_that_the_quota_does_not_feed_go_though_the_queue_is_long() -> None:
    """A backlog of 10,000; 150 calls in flight are of use, which two actors hold."""
    bounds, slack = dataclasses.replace(BOUNDS, allowed=150), Slack()
    load = dataclasses.replace(LOAD, queued=10_000, oldest_s=600.0, in_flight=400, actors=4, throttled=True)
    assert slack.seconds(10_400, 4, bounds, 0.0) == 0.0
    idle_s = slack.seconds(10_400, 4, bounds, LULL)
    assert wanted_actors(dataclasses.replace(load, idle_s=idle_s), bounds) == 2


loads = st.builds(
    Load,
    queued=st.integers(0, 2_000),
    oldest_s=st.floats(0, 100),
    in_flight=st.integers(0, 400),
    actors=st.integers(0, 4),
    starting_s=st.none() | st.floats(0, 10),
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


def test_slack_lasts_while_the_last_actor_is_not_needed() -> None:
    """Of two actors that hold 100 calls each the second is needed from 101 calls on."""
    slack = Slack()
    seen = [slack.seconds(calls, 2, BOUNDS, now) for now, calls in enumerate([150, 100, 80, 101, 20, 0, 0])]
    assert seen == [0, 0, 1, 0, 0, 1, 2]


def test_a_load_that_swings_every_ten_seconds_keeps_its_actors_and_an_empty_queue_loses_them_within_fifteen() -> None:
    """Ten seconds of a backlog for three actors, ten of nothing, six times, and then nothing more."""
    bounds = Bounds(min=0, max=4, calls_per_actor=100)
    slack, actors, counts = Slack(), 0, []
    for tick in range(1_400):
        now = tick / 10
        calls = 300 if now < 120 and now // 10 % 2 == 0 else 0
        queued, in_flight = max(0, calls - 100 * actors), min(calls, 100 * actors)
        idle_s = slack.seconds(calls, actors, bounds, now)
        oldest_s = now % 10 if queued else 0.0
        actors = wanted_actors(Load(queued, oldest_s, in_flight, actors, None, idle_s, throttled=False), bounds)
        counts.append(actors)
    assert set(counts[10:1_100]) == {3}
    assert counts[1_100 + 150] == 0
