"""What actors did and when, as Ray's control store remembers it: each call's begin and end, for a while."""

from __future__ import annotations

import asyncio
from typing import Any

import ray

# The public ways to the same need a dashboard, or tell no actor's name.
from ray._private.state import actors, state
from ray.core.generated.common_pb2 import TaskStatus

from rlaif_ray.timeline.trace import Activity, Call

# Processes report what they did once a second; a busy machine's are late.
_REPORTED_S = 5.0

_BEGUN = TaskStatus.Value("RUNNING")
_ENDS = [TaskStatus.Value("FINISHED"), TaskStatus.Value("FAILED")]


def call_of(reference: Any) -> str:
    """The id of the call whose result a reference stands for."""
    return str(reference.task_id().hex())


async def activity_since(since: float) -> Activity:
    """The calls of this job that were under way at `since` (seconds since the epoch) or later, and the actors that were
    up. Waits until what came before has been reported."""
    await asyncio.sleep(_REPORTED_S)
    return await asyncio.to_thread(_read, since)


def _read(since: float) -> Activity:
    job = ray.get_runtime_context().get_job_id()
    known = actors()
    calls = []
    for attempt in state._get_all_task_events():
        times = attempt.state_updates.state_ts_ns
        if attempt.job_id.hex() != job or _BEGUN not in times:
            continue
        end = next((times[status] / 1e9 for status in _ENDS if status in times), None)
        if end is None or end >= since:
            info = attempt.task_info
            actor = known.get(info.actor_id.hex())
            name = info.name.rpartition(".")[2]
            calls.append(
                Call(attempt.task_id.hex(), "tasks" if actor is None else _name(actor), name, times[_BEGUN] / 1e9, end)
            )
    up = {
        _name(actor)
        for actor in known.values()
        if actor["JobID"] == job
        and actor["StartTime"]
        and (actor["State"] != "DEAD" or actor["EndTime"] / 1e3 >= since)
    }
    return Activity(tuple(up), tuple(calls))


def _name(actor: dict[str, Any]) -> str:
    return str(actor["Name"] or actor["ActorClassName"])
