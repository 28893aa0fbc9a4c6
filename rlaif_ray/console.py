"""What a person sees while a run goes on: the stage, how far it is, how long it still takes.

On a terminal, bars that move; elsewhere (a job's log, CI) a line every few seconds.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

_LINE_INTERVAL_S = 5.0


@dataclass(frozen=True, slots=True)
class _Progress:
    done: int
    total: int
    at: float


class Console:
    """Progress of a run. Use as a context manager; one stage is shown at a time."""

    def __init__(self, stages: int, stream: TextIO | None = None) -> None:
        self._rich = RichConsole(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._stages = stages
        self._started = 0
        self._stage = ""
        self._begun = 0.0
        self._next_line = 0.0
        self._shown: tuple[int, str] | None = None
        self._first: _Progress | None = None
        self._bars: RichProgress | None = None
        self._task: TaskID | None = None
        if self._rich.is_terminal:
            self._bars = RichProgress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=False),
                TextColumn("{task.fields[note]}"),
                console=self._rich,
            )

    def __enter__(self) -> Console:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def stage(self, name: str, what: str) -> None:
        """Begin a stage."""
        self._started += 1
        self._stage, self._begun, self._next_line = name, time.monotonic(), 0.0
        self._shown, self._first = None, None
        self._rich.print(f"[bold]\\[{self._started}/{self._stages}] {name}[/bold]: {what}")
        if self._bars is not None:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task = self._bars.add_task(name, total=None, note="")

    def skip(self, name: str) -> None:
        """A stage whose results are there already."""
        self._started += 1
        self._rich.print(f"[dim]\\[{self._started}/{self._stages}] {name}: done before[/dim]")

    def advance(self, done: int, total: int, note: str = "") -> None:
        """How far the stage is."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, total=total, note=note)
            return
        now = time.monotonic()
        begins_anew = self._shown is not None and done < self._shown[0]
        if self._first is None or self._first.total != total or begins_anew:
            # Start-up is no measure of the work's pace.
            self._first = _Progress(done, total, now)
        if (done, note) == self._shown or (now < self._next_line and done < total):
            return
        self._shown = (done, note)
        self._next_line = now + _LINE_INTERVAL_S
        moved = done - self._first.done
        left = f", {(now - self._first.at) / moved * (total - done):.0f} s left" if moved > 0 and done < total else ""
        self._rich.print(f"  {self._stage} {done}/{total} after {now - self._begun:.0f} s{left}  {note}", markup=False)

    def say(self, text: str) -> None:
        """A line that stays."""
        self._rich.print(text, markup=False)
