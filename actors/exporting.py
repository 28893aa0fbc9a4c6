"""Metrics on their way to Prometheus. This is the one place that uses Ray's metrics.

Ray's agent on each node serves what the node's processes tell, some seconds later, and forgets a process that has
ended. What is told where no Ray runs is lost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import cache
from threading import Lock, Thread
from typing import Any, TypeAlias

from ray.util.metrics import Counter, Gauge, Histogram

from rlaif_ray import metrics
from rlaif_ray.metrics import METRICS, Kind, MetricsRow
from rlaif_ray.rundir import RunDirectory

_EVERY_S = 1.0

# A metric's name and its tags.
_Series: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]


class Exporter:
    """Tells of metrics under the same tags. Names are those of `rlaif_ray.metrics`."""

    def __init__(self, **tags: str) -> None:
        self._tags = tags

    def set(self, name: str, value: float, /, **tags: str) -> None:
        """A gauge's value, until the next one. What is no number ends the series."""
        _outbox().set(self._series(name, tags), float(value))

    def add(self, name: str, amount: float = 1.0, /, **tags: str) -> None:
        """To a counter."""
        _outbox().add(self._series(name, tags), float(amount))

    def observe(self, name: str, value: float, /, **tags: str) -> None:
        """One value of a histogram."""
        _outbox().observe(self._series(name, tags), float(value))

    def _series(self, name: str, tags: dict[str, str]) -> _Series:
        tags = self._tags | tags
        return name, tuple((tag, tags[tag]) for tag in METRICS[name].tags)


class LogExport:
    """A tracker of a run's log: its newest values, in the driver's name. From its making on the run is known."""

    def __init__(self, run: RunDirectory) -> None:
        self._exporter = Exporter(run=run.id)
        self._exporter.set(metrics.RUN_INFO, 1, name=run.path.name)
        self._exporter.set(metrics.STEP_TIME, time.time())

    def log(self, rows: Sequence[MetricsRow]) -> None:
        for row in rows:
            self._exporter.set(metrics.STEP, row.step, stage=row.stage)
            self._exporter.set(metrics.STEPS, row.total, stage=row.stage)
            self._exporter.set(metrics.STEP_TIME, row.time)
            for name, value in row.values.items():
                family, part = metrics.family_of(name)
                self._exporter.set(family, value, stage=row.stage, part=part)

    def close(self) -> None:
        """Nothing is held."""


class _Outbox:
    """What this process tells: a thread passes it on, once a second. Ray exports a gauge once for each time that it is
    set, so that those are set again and again."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._gauges: dict[_Series, float] = {}
        self._counters: dict[_Series, float] = {}
        self._observed: list[tuple[_Series, float]] = []
        Thread(target=self._pass_on_always, name="metrics", daemon=True).start()

    def set(self, series: _Series, value: float) -> None:
        with self._lock:
            if math.isnan(value):
                self._gauges.pop(series, None)
            else:
                self._gauges[series] = value

    def add(self, series: _Series, amount: float) -> None:
        with self._lock:
            self._counters[series] = self._counters.get(series, 0.0) + amount

    def observe(self, series: _Series, value: float) -> None:
        with self._lock:
            self._observed.append((series, value))

    def _pass_on_always(self) -> None:
        while True:
            time.sleep(_EVERY_S)
            self._pass_on()

    def _pass_on(self) -> None:
        with self._lock:
            gauges, counters, observed = dict(self._gauges), self._counters, self._observed
            self._counters, self._observed = {}, []
        for (name, tags), value in gauges.items():
            _instrument(name).set(value, dict(tags))
        for (name, tags), amount in counters.items():
            if amount > 0:
                _instrument(name).inc(amount, dict(tags))
        for (name, tags), value in observed:
            _instrument(name).observe(value, dict(tags))


@cache
def _outbox() -> _Outbox:
    return _Outbox()


@cache
def _instrument(name: str) -> Any:
    """Ray's own, which wants to be made once in a process."""
    metric = METRICS[name]
    description = f"{metric.meaning} ({metric.unit})" if metric.unit else metric.meaning
    if metric.kind is Kind.HISTOGRAM:
        return Histogram(metric.exported, description, list(metric.bounds), metric.tags)
    kind = Counter if metric.kind is Kind.COUNTER else Gauge
    return kind(metric.exported, description, metric.tags)
