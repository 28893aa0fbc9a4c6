"""Contenders in processes of their own, which take turns while the others wait, and what their turns add up to.

Beside each turn stands what share of the machine others took meanwhile: a turn that was disturbed does not count.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import psutil

MOST_FOREIGN: Final = 0.06
"""Share of all cores' time."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One contender's work. Its own figures, and the share of the machine that others took."""

    seconds: float
    tokens: int  # answer tokens drawn, those of no answer not counted
    steps: int  # optimizer steps of a model
    parts: Mapping[str, float]  # seconds
    peak_mib: Mapping[str, float]  # of memory, by process
    foreign: float

    @property
    def rate(self) -> float:
        """Tokens a second, over the whole iteration."""
        return self.tokens / self.seconds


class Contender:
    """A process that takes a turn for each line on its stdin, and then prints a line `turn {...}`. It runs while the
    block does, and logs to `log`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._command = command
        self._environment = environment
        self._log = log

    def __enter__(self) -> Contender:
        with self._log.open("w") as errors:
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, **self._environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The end of its stdin ends it."""
        self._process.communicate()

    def take(self) -> Turn:
        """Raises RuntimeError where the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        meter = Meter(self._process.pid)
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said last is read below
        for line in self._process.stdout:
            if line.startswith("turn "):
                return Turn(**json.loads(line[5:]), foreign=meter.foreign())
        raise RuntimeError(f"a contender ended with {self._process.wait()}: {self._log.read_text()[-3000:]}")


def tell(seconds: float, tokens: int, steps: int, parts: Mapping[str, float], peak_mib: Mapping[str, float]) -> None:
    """What a contender says of its turn."""
    turn = {"seconds": seconds, "tokens": tokens, "steps": steps, "parts": parts, "peak_mib": peak_mib}
    print("\nturn", json.dumps(turn), flush=True)


class Meter:
    """Reads how the machine's time is spent from its making on. `pid` and what it starts are no strangers."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._begun = time.monotonic()
        self._busy = _busy_s()
        self._own = _tree_s(pid)

    def foreign(self) -> float:
        own = sum(seconds - self._own.get(pid, 0.0) for pid, seconds in _tree_s(self._pid).items())
        whole = (time.monotonic() - self._begun) * (psutil.cpu_count() or 1)
        return max(0.0, _busy_s() - self._busy - own) / whole


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def _tree_s(pid: int) -> dict[int, float]:
    """Seconds that a process and its descendants have computed."""
    root = psutil.Process(pid)
    spent = {}
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        spent[process.pid] = times.user + times.system
    return spent


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and range of a figure over rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.least:.3g} to {self.most:.3g}]"


@dataclass(frozen=True, slots=True)
class Rounds:
    """The rounds that count, each a turn of every contender, by name; and how many were disturbed."""

    turns: Mapping[str, Sequence[Turn]]
    rejected: int

    def spread(self, contender: str, figure: str) -> Spread:
        """Of an attribute of its turns."""
        return Spread.of([getattr(turn, figure) for turn in self.turns[contender]])

    def ratio(self, one: str, other: str, figure: str = "rate") -> Spread:
        """Of the two figures of each round."""
        pairs = zip(self.turns[one], self.turns[other], strict=True)
        return Spread.of([getattr(first, figure) / getattr(second, figure) for first, second in pairs])

    def part(self, contender: str, name: str) -> Spread:
        return Spread.of([turn.parts[name] for turn in self.turns[contender]])


def play(contenders: Mapping[str, Contender], rounds: int, *, most_foreign: float = MOST_FOREIGN) -> Rounds:
    """Start the contenders, one after the other's first turn, which does not count; then take turns until `rounds` were
    undisturbed. Raises RuntimeError where more than as many again were disturbed."""
    kept: dict[str, list[Turn]] = {name: [] for name in contenders}
    rejected = 0
    with ExitStack() as stack:
        for name, contender in contenders.items():
            stack.enter_context(contender)
            print(f"  warm-up: {name} {contender.take().seconds:.2f} s", flush=True)
        while len(next(iter(kept.values()))) < rounds:
            turns = {name: contender.take() for name, contender in contenders.items()}
            disturbed = max(turn.foreign for turn in turns.values()) > most_foreign
            figures = ", ".join(
                f"{name} {turn.seconds:.2f} s ({turn.foreign:.0%} foreign)" for name, turn in turns.items()
            )
            print(f"  {figures}{': disturbed' if disturbed else ''}", flush=True)
            if disturbed:
                rejected += 1
                if rejected > rounds:
                    raise RuntimeError(f"{rejected} rounds were disturbed by other work on this machine")
            else:
                for name, turn in turns.items():
                    kept[name].append(turn)
    return Rounds(kept, rejected)
