"""Experiment trackers beside TensorBoard: Weights & Biases and MLflow, where their packages are installed.

Each reads its own environment variables for where it writes and by which key; a run that goes on goes on there too.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rlaif_ray.config import RunConfig, UserError
from rlaif_ray.metrics.following import Tracker
from rlaif_ray.metrics.log import MetricsRow
from rlaif_ray.rundir import RunDirectory

_PROJECT = "rlaif-ray"
_RUN_TAG = "rlaif_ray.run"

# MLflow takes no more in one request.
_PARAMS_AT_ONCE = 100


class WandbTracker:
    """A run of Weights & Biases under this run's id. It begins at the first row."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._run: Any = None
        self._stages: set[str] = set()

    def log(self, rows: Sequence[MetricsRow]) -> None:
        import wandb

        if self._run is None:
            directory = RunDirectory(self._config.run_dir)
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT),
                id=directory.id,
                resume="allow",
                name=directory.path.name,
                dir=directory.path,
                config=self._config.model_dump(mode="json"),
                settings=wandb.Settings(console="off"),
            )
        for row in rows:
            # Stages count their steps each from 1, and wandb's own step only grows.
            if row.stage not in self._stages:
                self._stages.add(row.stage)
                self._run.define_metric(f"{row.stage}/*", step_metric=f"{row.stage}/step")
            self._run.log({f"{row.stage}/step": row.step} | _finite(row))

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


class MlflowTracker:
    """A run of MLflow that bears this run's id as a tag. It begins at the first row."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._run: str | None = None

    def log(self, rows: Sequence[MetricsRow]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        client = MlflowClient()
        if self._run is None:
            self._run = self._begun(client)
        for row in rows:
            milliseconds = round(row.time * 1000)
            values = [Metric(name, value, milliseconds, row.step) for name, value in _finite(row).items()]
            client.log_batch(self._run, metrics=values)

    def close(self) -> None:
        if self._run is not None:
            from mlflow import MlflowClient

            MlflowClient().set_terminated(self._run)

    def _begun(self, client: Any) -> str:
        """The id of the run that bears ours; a new one where there is none."""
        from mlflow.entities import Param

        directory = RunDirectory(self._config.run_dir)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = client.get_experiment_by_name(name)
        experiment_id = client.create_experiment(name) if experiment is None else experiment.experiment_id
        found = client.search_runs([experiment_id], f"tags.`{_RUN_TAG}` = '{directory.id}'")
        if found:
            known: str = found[0].info.run_id
            client.update_run(known, status="RUNNING")
            return known
        tags = {_RUN_TAG: directory.id}
        begun: str = client.create_run(experiment_id, tags=tags, run_name=directory.path.name).info.run_id
        settings = [Param(key, str(value)) for key, value in _flat(self._config.model_dump(mode="json"))]
        for start in range(0, len(settings), _PARAMS_AT_ONCE):
            client.log_batch(begun, params=settings[start : start + _PARAMS_AT_ONCE])
        return begun


_TRACKERS: Mapping[str, Callable[[RunConfig], Tracker]] = {"wandb": WandbTracker, "mlflow": MlflowTracker}


def trackers_of(config: RunConfig) -> list[Tracker]:
    """Those that `tracking` names. Raises UserError where a package is missing."""
    for name in config.tracking:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"tracking: {name} is not installed here; install it (pip install {name}) or leave it out")
    return [_TRACKERS[name](config) for name in config.tracking]


def _finite(row: MetricsRow) -> dict[str, float]:
    return {f"{row.stage}/{name}": value for name, value in row.values.items() if math.isfinite(value)}


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves that are set, by their keys."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else key)
    elif tree is not None:
        yield prefix, tree
