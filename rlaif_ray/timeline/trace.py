"""What stages and actors did around one iteration, as the JSON that Perfetto opens.

Times are seconds since the epoch, each by the clock of the machine that it was taken on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, TypeAlias, get_args

StageName: TypeAlias = Literal["load", "generate", "score", "learn", "publish", "checkpoint", "watch"]


@dataclass(frozen=True, slots=True)
class StageSpan:
    """A stage at work, as the loop sees it."""

    stage: StageName
    name: str
    iteration: int  # whose part it is; the weights that are there at the start are published by the one before
    begin: float
    end: float | None  # None while it is under way
    calls: tuple[str, ...] = ()  # of the cluster, that go on when the stage has returned


@dataclass(frozen=True, slots=True)
class Call:
    """An actor's method at work, or a task."""

    id: str
    actor: str  # "tasks" for a task
    name: str
    begin: float
    end: float | None  # None while it is under way


@dataclass(frozen=True, slots=True)
class Activity:
    """What the cluster did for a run in some time."""

    actors: tuple[str, ...]  # that were up, at work or not
    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """An iteration, from the loading of weights for its batch, or the drawing of it, to its last stage's end."""

    begin: float
    end: float

    def holds(self, begin: float, end: float | None) -> bool:
        """Whether some of it lies inside. What is under way does not count where it began before: an actor's loops
        never end."""
        return begin <= self.end and (begin if end is None else end) >= self.begin


def window_of(spans: Sequence[StageSpan], iteration: int) -> Window:
    """Of an iteration that is over. The watch, which runs beside, does not prolong it."""
    own = [span for span in spans if span.iteration == iteration and span.stage != "watch"]
    return Window(min(span.begin for span in own), max(span.end for span in own if span.end is not None))


def trace(spans: Sequence[StageSpan], activity: Activity, iteration: int) -> dict[str, Any]:
    """The timeline of an iteration that is over, as a Chrome trace: a process for the driver, with a thread for each
    stage, and one for each kind of actor, with a thread for each actor and more where its calls overlap.

    What reaches over the iteration's ends is there in full, and what is still under way ends with the iteration."""
    window = window_of(spans, iteration)
    slices = [
        _Slice("driver", "iteration", f"iteration {iteration}", window.begin, window.end),
        *(one for one in _stages(spans, activity) if window.holds(one.begin, one.end)),
        *_calls(activity, window),
    ]
    return {"traceEvents": list(_events(slices, window)), "displayTimeUnit": "ms"}


@dataclass(frozen=True, slots=True)
class _Slice:
    process: str
    row: str
    name: str
    begin: float
    end: float | None


# In the order of an iteration. The first whose pattern an actor's name begins with is its kind.
_KINDS = {
    "rollouts": re.compile("rollout"),
    "rewards": re.compile("reward"),
    "judges": re.compile("(evaluation-)?judge|limiter|ledger"),
    "learner": re.compile("learner"),
    "others": re.compile(""),
}
_PROCESSES = ("driver", *_KINDS)
_STAGES = ("iteration", *get_args(StageName))


def _stages(spans: Sequence[StageSpan], activity: Activity) -> Iterator[_Slice]:
    """One with calls lasts until the last of them has ended."""
    ends = {call.id: call.end for call in activity.calls}
    for span in spans:
        end = span.end
        if span.calls:
            later = [ends.get(call) for call in span.calls]
            known = [one for one in later if one is not None]
            end = max(known) if len(known) == len(later) else None
        yield _Slice("driver", span.stage, span.name, span.begin, end)


def _calls(activity: Activity, window: Window) -> Iterator[_Slice]:
    """An actor that did nothing has its row too."""
    calls = [call for call in activity.calls if window.holds(call.begin, call.end)]
    for call in calls:
        yield _Slice(_kind(call.actor), call.actor, call.name, call.begin, call.end)
    for actor in {*activity.actors} - {call.actor for call in calls}:
        yield _Slice(_kind(actor), actor, "no call", window.begin, window.end)


def _kind(actor: str) -> str:
    return next(kind for kind, pattern in _KINDS.items() if pattern.match(actor))


def _events(slices: Sequence[_Slice], window: Window) -> Iterator[dict[str, Any]]:
    """Numbers of processes and threads are in the order in which they are to stand, and no two are the same: Perfetto
    takes a thread with its process's number for the main one."""
    number = 0
    for process, inside in groupby(sorted(slices, key=_place), key=lambda one: one.process):
        number += 1
        pid = number
        yield from _named("process", process, pid, pid)
        for row, of_row in groupby(inside, key=lambda one: one.row):
            for lane, side_by_side in enumerate(_lanes(list(of_row), window)):
                number += 1
                yield from _named("thread", row if lane == 0 else f"{row} ({lane + 1})", pid, number)
                yield from (_complete(one, pid, number, window) for one in side_by_side)


def _place(one: _Slice) -> tuple[int, int, list[tuple[str, int]], float]:
    stage = _STAGES.index(one.row) if one.process == "driver" else 0
    # By name, and numbers in it by size.
    words = [(word, int(digits or 0)) for word, digits in re.findall(r"(\D+)(\d*)", one.row)]
    return _PROCESSES.index(one.process), stage, words, one.begin


def _lanes(slices: Sequence[_Slice], window: Window) -> list[list[_Slice]]:
    """Slices in the order of their beginnings, so that none of a lane overlaps another: a thread's would have to lie
    one inside the other."""
    lanes: list[list[_Slice]] = []
    for one in slices:
        free = (lane for lane in lanes if _end(lane[-1], window) <= _microseconds(one.begin))
        lane = next(free, None)
        if lane is None:
            lanes.append([one])
        else:
            lane.append(one)
    return lanes


def _named(what: Literal["process", "thread"], name: str, pid: int, tid: int) -> Iterator[dict[str, Any]]:
    for key, args in ((f"{what}_name", {"name": name}), (f"{what}_sort_index", {"sort_index": tid})):
        yield {"ph": "M", "name": key, "pid": pid, "tid": tid, "args": args}


def _complete(one: _Slice, pid: int, tid: int, window: Window) -> dict[str, Any]:
    begin = _microseconds(one.begin)
    event = {"ph": "X", "name": one.name, "pid": pid, "tid": tid, "ts": begin, "dur": _end(one, window) - begin}
    return event if one.end is not None else event | {"args": {"ended": "not yet"}}


def _end(one: _Slice, window: Window) -> int:
    """In microseconds; never before the beginning, which another machine's clock may have told."""
    return _microseconds(max(one.begin, window.end if one.end is None else one.end))


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
