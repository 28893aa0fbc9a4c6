"""Passing on what a run logs, while it goes on, to whoever else wants it: trackers, and Ray's export.

Whoever writes a log, in whatever process, only appends to its file; this reads along from the file's end. The log is
the record: what was appended while nobody followed is passed on to nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from rlaif_ray.metrics.log import MetricsRow, parse_row, whole_bytes

_EVERY_S = 1.0

# A run's own log, and those of its rounds before the last.
_LOGS = ("metrics.jsonl", "rounds/*/metrics.jsonl")


class Tracker(Protocol):
    """Is told the rows of a run's logs. It may block, and raise whatever its service does."""

    def log(self, rows: Sequence[MetricsRow]) -> None: ...

    def close(self) -> None: ...


class LogFollower:
    """The rows that are appended to the logs of a run from now on."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._read = {path: whole_bytes(path) for path in self._logs()}

    def poll(self) -> list[MetricsRow]:
        """Those since the last time; a line that is being written comes when it is whole. Raises ValueError as
        `MetricsLog.read` does."""
        rows = []
        for path in self._logs():
            start = self._read.get(path, 0)
            with path.open("rb") as file:
                file.seek(start)
                *lines, torn = file.read().split(b"\n")
                self._read[path] = file.tell() - len(torn)
            rows += [parse_row(line, f"{path}, after byte {start}") for line in lines]
        return rows

    def _logs(self) -> list[Path]:
        return [path for pattern in _LOGS for path in sorted(self._run_dir.glob(pattern))]


@asynccontextmanager
async def followed(run_dir: Path, trackers: Sequence[Tracker], say: Callable[[str], None]) -> AsyncIterator[None]:
    """While the block runs, and once more at its end, pass what is logged on to the trackers; then close them.

    One that fails is told of by `say` and gets nothing more: a service that is down must not end the training.
    """
    ended = asyncio.Event()
    passing = asyncio.create_task(_pass_on(LogFollower(run_dir), list(trackers), say, ended))
    try:
        yield
    finally:
        ended.set()
        await passing


async def _pass_on(
    follower: LogFollower, trackers: list[Tracker], say: Callable[[str], None], ended: asyncio.Event
) -> None:
    async def tried(tracker: Tracker, action: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(action)
        except Exception as error:
            trackers.remove(tracker)
            say(f"  {type(tracker).__name__} failed and is told no more: {error}")

    ending = asyncio.create_task(ended.wait())
    is_last = False
    while not is_last:
        is_last = bool((await asyncio.wait([ending], timeout=_EVERY_S))[0])
        rows = await asyncio.to_thread(follower.poll)
        for tracker in list(trackers) if rows else []:
            await tried(tracker, partial(tracker.log, rows))
    for tracker in list(trackers):
        await tried(tracker, tracker.close)
