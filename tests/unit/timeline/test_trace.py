"""A timeline's file: golden values, what belongs to an iteration, and rows on which no two calls overlap."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.timeline.trace import Activity, Call, StageSpan, Window, trace, window_of

SPANS = [
    StageSpan("publish", "publish version 1", 0, 0.0, 0.5),
    StageSpan("load", "load version 1", 1, 1.0, 2.0),
    StageSpan("generate", "generate 1", 1, 2.0, 2.001, calls=("a", "b")),
    StageSpan("score", "score 1", 1, 2.001, 2.002, calls=("c",)),
    StageSpan("learn", "learn 1", 1, 2.002, 6.0),
    StageSpan("publish", "publish version 2", 1, 6.0, 6.5),
    StageSpan("load", "load version 2", 2, 6.75, 7.0),
]


def named(events: list[dict[str, Any]]) -> dict[int, str]:
    """Processes and threads by number."""
    return {event["tid"]: event["args"]["name"] for event in events if event["name"].endswith("_name")}


def rows(spans: list[StageSpan], activity: Activity, iteration: int) -> dict[str, list[tuple[str, float, float]]]:
    """What stands on each thread: names, begins and ends in seconds."""
    events = trace(spans, activity, iteration)["traceEvents"]
    names = named(events)
    found: dict[str, list[tuple[str, float, float]]] = {}
    for event in events:
        if event["ph"] == "X":
            begin = event["ts"] / 1e6
            found.setdefault(names[event["tid"]], []).append((event["name"], begin, begin + event["dur"] / 1e6))
    return found


def test_a_small_trace_is_written_as_expected() -> None:
    spans = [StageSpan("learn", "learn 3", 3, 10.0, 12.5)]
    activity = Activity(("learner-0",), (Call("x", "learner-0", "step", 10.25, 12.25),))
    assert trace(spans, activity, 3) == {
        "displayTimeUnit": "ms",
        "traceEvents": [
            {"ph": "M", "name": "process_name", "pid": 1, "tid": 1, "args": {"name": "driver"}},
            {"ph": "M", "name": "process_sort_index", "pid": 1, "tid": 1, "args": {"sort_index": 1}},
            {"ph": "M", "name": "thread_name", "pid": 1, "tid": 2, "args": {"name": "iteration"}},
            {"ph": "M", "name": "thread_sort_index", "pid": 1, "tid": 2, "args": {"sort_index": 2}},
            {"ph": "X", "name": "iteration 3", "pid": 1, "tid": 2, "ts": 10_000_000, "dur": 2_500_000},
            {"ph": "M", "name": "thread_name", "pid": 1, "tid": 3, "args": {"name": "learn"}},
            {"ph": "M", "name": "thread_sort_index", "pid": 1, "tid": 3, "args": {"sort_index": 3}},
            {"ph": "X", "name": "learn 3", "pid": 1, "tid": 3, "ts": 10_000_000, "dur": 2_500_000},
            {"ph": "M", "name": "process_name", "pid": 4, "tid": 4, "args": {"name": "learner"}},
            {"ph": "M", "name": "process_sort_index", "pid": 4, "tid": 4, "args": {"sort_index": 4}},
            {"ph": "M", "name": "thread_name", "pid": 4, "tid": 5, "args": {"name": "learner-0"}},
            {"ph": "M", "name": "thread_sort_index", "pid": 4, "tid": 5, "args": {"sort_index": 5}},
            {"ph": "X", "name": "step", "pid": 4, "tid": 5, "ts": 10_250_000, "dur": 2_000_000},
        ],
    }


def test_an_iteration_is_from_the_loading_of_its_weights_to_its_last_stage() -> None:
    assert window_of(SPANS, 1) == Window(1.0, 6.5)
    checkpointed = [*SPANS, StageSpan("checkpoint", "checkpoint 1", 1, 6.5, 6.7)]
    watched = [*checkpointed, StageSpan("watch", "watch 1", 1, 2.1, 9.0)]
    assert window_of(watched, 1) == Window(1.0, 6.7)


def test_a_stage_lasts_until_the_calls_that_it_began_have_ended() -> None:
    calls = (
        Call("a", "rollout-dispatcher", "call", 2.1, 3.0),
        Call("b", "rollout-dispatcher", "call", 2.2, 4.0),
        Call("c", "tasks", "score", 4.1, 5.0),
    )
    found = rows(SPANS, Activity((), calls), 1)
    assert found["generate"] == [("generate 1", 2.0, 4.0)]
    assert found["score"] == [("score 1", 2.001, 5.0)]
    assert found["learn"] == [("learn 1", 2.002, 6.0)]


def test_what_reaches_over_the_ends_is_whole_and_what_is_elsewhere_is_left_out() -> None:
    calls = (
        Call("1", "rollout-0", "generate", 0.25, 1.5),
        Call("2", "rollout-0", "generate", 6.0, 8.0),
        Call("3", "rollout-0", "generate", 0.0, 0.75),
        Call("4", "rollout-0", "generate", 6.75, 8.5),
    )
    found = rows(SPANS, Activity((), calls), 1)
    assert found["rollout-0"] == [("generate", 0.25, 1.5), ("generate", 6.0, 8.0)]
    assert found["load"] == [("load version 1", 1.0, 2.0)]
    assert found["publish"] == [("publish version 2", 6.0, 6.5)]


def test_what_is_under_way_ends_with_the_iteration_and_says_so() -> None:
    """What an actor began before, and never ends, is none of the iteration's."""
    calls = (Call("1", "rollout-0", "live", 0.25, None), Call("2", "rollout-0", "generate", 6.0, None))
    events = trace(SPANS, Activity((), calls), 1)["traceEvents"]
    (begun,) = [event for event in events if event["name"] == "generate" and event["ph"] == "X"]
    assert (begun["ts"], begun["dur"], begun["args"]) == (6_000_000, 500_000, {"ended": "not yet"})
    assert not [event for event in events if event["name"] == "live"]


def test_an_end_that_another_clock_put_before_the_beginning_is_the_beginning() -> None:
    found = rows(SPANS, Activity((), (Call("1", "rollout-0", "load", 3.0, 2.9),)), 1)
    assert found["rollout-0"] == [("load", 3.0, 3.0)]


def test_rows_stand_in_the_order_of_an_iteration() -> None:
    actors = (
        *("learner-0", "judge-pool", "judge-10", "judge-2", "evaluation-judge-0", "limiter-ab", "ledger-ab"),
        *("rollout-dispatcher", "rollout-0", "reward-0", "reward-mix", "SomethingElse"),
    )
    events = trace(SPANS, Activity(actors, (Call("1", "tasks", "score", 3.0, 4.0),)), 1)["traceEvents"]
    assert [named(events)[number] for number in sorted(named(events))] == [
        *("driver", "iteration", "load", "generate", "score", "learn", "publish"),
        *("rollouts", "rollout-0", "rollout-dispatcher"),
        *("rewards", "reward-0", "reward-mix"),
        *("judges", "evaluation-judge-0", "judge-2", "judge-10", "judge-pool", "ledger-ab", "limiter-ab"),
        *("learner", "learner-0"),
        *("others", "SomethingElse", "tasks"),
    ]
    sorted_by = [event["args"]["sort_index"] for event in events if event["name"].endswith("_sort_index")]
    assert sorted_by == sorted(set(sorted_by))


def test_an_actor_without_a_call_has_its_row() -> None:
    calls = (Call("1", "learner-0", "step", 3.0, 4.0), Call("2", "judge-0", "ask", 0.0, 0.5))
    found = rows(SPANS, Activity(("judge-0", "learner-0"), calls), 1)
    assert found["judge-0"] == [("no call", 1.0, 6.5)]
    assert found["learner-0"] == [("step", 3.0, 4.0)]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_calls_of_a_thread_never_overlap_and_none_is_lost(times: list[tuple[int, int]]) -> None:
    calls = tuple(
        Call(str(number), "judge-0", f"call {number}", float(begin), float(begin + length))
        for number, (begin, length) in enumerate(times)
    )
    found = rows([StageSpan("learn", "learn 1", 1, 0.0, 20.0)], Activity((), calls), 1)
    lanes = {name: lane for name, lane in found.items() if name.startswith("judge-0")}
    assert sorted(one for lane in lanes.values() for one in lane) == sorted(
        (call.name, call.begin, call.end) for call in calls
    )
    for lane in lanes.values():
        assert all(before[2] <= after[1] for before, after in pairwise(lane))
    assert [*lanes] == ["judge-0", *(f"judge-0 ({number})" for number in range(2, len(lanes) + 1))]
