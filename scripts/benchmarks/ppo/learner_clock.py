"""Where a learner rank's time goes, read from inside its process. It changes nothing of what the rank does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Learning:
    """Of the steps since the last reading: optimizer steps of the policy, and seconds."""

    steps: int
    seconds: dict[str, float]


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    begun: float = 0.0
    in_update: bool = False

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


def start_clock(rank: Any) -> None:
    """Time the rank's update: the models' forwards before it, its backward passes and its optimizer steps."""
    clock = _Clock()
    rank.benchmark_clock = clock
    update = rank._update.step

    def step(*args: Any) -> Any:
        clock.begun, clock.in_update = time.perf_counter(), False
        result = update(*args)
        clock.add("update", time.perf_counter() - clock.begun)
        return result

    rank._update.step = step

    def on_forward(*_: Any) -> None:
        # The first forward with a gradient ends the experience.
        if torch.is_grad_enabled() and not clock.in_update:
            clock.in_update = True
            now = time.perf_counter()
            clock.add("experience", now - clock.begun)
            clock.begun = now

    for engine in rank._models.engines.values():
        engine.module.register_forward_pre_hook(on_forward)
        engine.backward = _timed(engine.backward, clock, "backward")
        engine.step = _timed(engine.step, clock, "optimizer")
    stepped = rank._models.policy.step

    def count() -> Any:
        clock.steps += 1
        return stepped()

    rank._models.policy.step = count


def read_clock(rank: Any) -> Learning:
    """What it shows; then it is back at zero. `update` is all after the experience, its parts included."""
    clock: _Clock = rank.benchmark_clock
    learning = Learning(clock.steps, dict(clock.seconds))
    clock.seconds, clock.steps = {}, 0
    return learning


def peak_mib(_: Any) -> float:
    """The most memory that this process has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def _timed(function: Callable[..., Any], clock: _Clock, name: str) -> Callable[..., Any]:
    def timed(*args: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        result = function(*args, **options)
        clock.add(name, time.perf_counter() - begun)
        return result

    return timed
