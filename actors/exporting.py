"""Metrics on their way to Prometheus. This is the one place that uses Ray's metrics.

Ray's agent on each node serves what the node's processes tell, some seconds later, and forgets a process that has
ended. What is told where no Ray runs is lost.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from rlaif_ray import metrics
from rlaif_ray.config import RunConfig
from rlaif_ray.metrics import METRICS, Kind, Metric, MetricsRow
from rlaif_ray.rundir import RunDirectory


class Exporter:
    """Tells of metrics under the same tags. Names are those of `rlaif_ray.metrics`."""

    def __init__(self, **tags: str) -> None:
        self._tags = tags
        self._told: dict[tuple[str, ...], float] = {}

    def set(self, name: str, value: float, /, **tags: str) -> None:
        """A gauge's value, from now on."""
        self._tell("set", METRICS[name], value, tags)

    def add(self, name: str, amount: float = 1.0, /, **tags: str) -> None:
        """To a counter."""
        if amount > 0:
            self._tell("inc", METRICS[name], amount, tags)

    def total(self, name: str, value: float, /, **tags: str) -> None:
        """What a counter has come to since this exporter was made."""
        key = (name, *tags.values())
        self.add(name, value - self._told.get(key, 0.0), **tags)
        self._told[key] = value

    def observe(self, name: str, value: float, /, **tags: str) -> None:
        """One value of a histogram."""
        self._tell("observe", METRICS[name], value, tags)

    def _tell(self, method: str, metric: Metric, value: float, tags: dict[str, str]) -> None:
        all_tags = self._tags | tags
        getattr(_instrument(metric), method)(float(value), {tag: all_tags[tag] for tag in metric.tags})


class LogExport:
    """A tracker of a run's log: its newest values, in the driver's name."""

    def __init__(self, config: RunConfig) -> None:
        directory = RunDirectory(config.run_dir)
        self._exporter = Exporter(run=directory.id)
        policy = config.policy
        self._exporter.set(
            metrics.RUN_INFO,
            1.0,
            name=directory.path.name,
            algorithm=policy.algorithm,
            model=policy.model or "scratch",
        )
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


@cache
def _instrument(metric: Metric) -> Any:
    """This process's own; Ray wants each made once."""
    description = f"{metric.meaning} ({metric.unit})" if metric.unit else metric.meaning
    if metric.kind is Kind.HISTOGRAM:
        return Histogram(metric.exported, description, list(metric.bounds), metric.tags)
    kind = Counter if metric.kind is Kind.COUNTER else Gauge
    return kind(metric.exported, description, metric.tags)
