"""The log of a run's metrics: a file of JSON lines, so that a crash costs at most its last line.

TensorBoard events lie beside it, written with TensorBoard's own writer: this knows nothing of Ray, torch or any engine.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]


@dataclass(frozen=True, slots=True)
class MetricsRow:
    """The values of one step of one stage. `step` counts from 1 to `total`; `time` is in seconds since the epoch."""

    stage: str
    step: int
    total: int
    time: float
    values: Mapping[str, float]


class MetricsLog:
    """An append-only log of metrics, one JSON object a line, with TensorBoard events in `tensorboard/` beside it.

    A resumed run appends to the same file and may log a step again: the later line counts. A value that is not
    finite is written as null, which JSON can carry, and read back as NaN.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._events: EventFileWriter | None = None

    def append(self, stage: str, step: int, total: int, values: Mapping[str, float]) -> None:
        """Log the values of one step: on return the line is with the operating system, whole."""
        row = MetricsRow(stage, step, total, time.time(), {name: float(value) for name, value in values.items()})
        record = {
            "stage": row.stage,
            "step": row.step,
            "total": row.total,
            "time": row.time,
            "values": {name: value if math.isfinite(value) else None for name, value in row.values.items()},
        }
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        if self._descriptor is None:
            self._descriptor = self._open()
        # One write of a whole line: another process that appends to the file cannot come between.
        if os.write(self._descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, "only a part of a line of metrics could be written", str(self.path))
        self._write_events(row)

    def read(self) -> list[MetricsRow]:
        """Every step's values, in the order of their first appearance; of a step logged twice, the later ones.

        A torn last line (a crash, or a writer at work) is left out. Raises ValueError, naming the file and the line,
        where any other line is not a row of metrics.
        """
        *lines, _torn = self.path.read_bytes().split(b"\n")
        rows: dict[tuple[str, int], MetricsRow] = {}
        for number, line in enumerate(lines, start=1):
            row = parse_row(line, f"{self.path}, line {number}")
            rows[row.stage, row.step] = row
        return list(rows.values())

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._events is not None:
            self._events.close()
            self._events = None

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        # A line that a crash tore would swallow the next one: cut it off.
        os.ftruncate(descriptor, whole_bytes(self.path))
        return descriptor

    def _write_events(self, row: MetricsRow) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if self._events is None:
            self._events = EventFileWriter(str(self.path.parent / "tensorboard"))
        values = [Summary.Value(tag=f"{row.stage}/{name}", simple_value=value) for name, value in row.values.items()]
        self._events.add_event(Event(wall_time=row.time, step=row.step, summary=Summary(value=values)))
        self._events.flush()


def whole_bytes(path: Path) -> int:
    """Bytes of the file's whole lines."""
    return path.read_bytes().rfind(b"\n") + 1


def parse_row(line: bytes, where: str) -> MetricsRow:
    """A line of the log. Raises ValueError, saying `where`, where it is not a row of metrics."""
    try:
        record = json.loads(line)
        values = {name: math.nan if value is None else float(value) for name, value in record["values"].items()}
        return MetricsRow(
            stage=str(record["stage"]),
            step=int(record["step"]),
            total=int(record["total"]),
            time=float(record["time"]),
            values=values,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: not a row of metrics ({error!r})") from error
