"""Weights & Biases and MLflow, offline: what a run logged is there, under the run's own id, and goes on there."""

import importlib.util
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlaif_ray.config import RunConfig, UserError, load_config
from rlaif_ray.metrics import MetricsRow
from rlaif_ray.metrics.trackers import MlflowTracker, WandbTracker, trackers_of
from rlaif_ray.rundir import RunDirectory

DEMO = Path(__file__).parents[3] / "rlaif_ray" / "toyworld" / "demo.yaml"
_BLOCK = 32_768
_LAST_PARTS = (1, 4)  # a whole record, or the last of several parts

ROWS = [
    MetricsRow("sft", 1, 2, 1_700_000_000.0, {"loss": 2.5, "gradient_norm": math.nan}),
    MetricsRow("ppo", 7, 9, 1_700_000_001.5, {"kl": 0.5, "reward/brief": -1.0}),
]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return load_config(DEMO, [f"run_dir={tmp_path / 'run'}", "tracking=[mlflow]"])


def test_nothing_is_tracked_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert trackers_of(load_config(DEMO, [f"run_dir={tmp_path}"])) == []


def test_a_tracker_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tracking\.0"):
        load_config(DEMO, [f"run_dir={tmp_path}", "tracking=[comet]"])


def test_a_missing_package_is_one_sentence(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^tracking: mlflow is not installed here; install it .* or leave it out$"):
        trackers_of(config)


def test_a_tracker_whose_run_logs_nothing_leaves_nothing(config: RunConfig, tmp_path: Path) -> None:
    MlflowTracker(config).close()
    assert not (tmp_path / "run").exists()


def test_mlflow_has_the_values_by_stage_and_step(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlruns"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for rows in (ROWS[:1], ROWS[1:]):  # as two commands of one run do
        tracker = MlflowTracker(config)
        tracker.log(rows)
        tracker.close()
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("rlaif-ray")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics == {"sft/loss": 2.5, "ppo/kl": 0.5, "ppo/reward/brief": -1.0}
    (point,) = client.get_metric_history(run.info.run_id, "ppo/kl")
    assert (point.step, point.timestamp) == (7, 1_700_000_001_500)
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    assert run.data.tags["rlaif_ray.run"] == RunDirectory(config.run_dir).id
    assert run.data.params["ppo.kl_coefficient"] == "0.1"


def wandb_records(path: Path) -> Iterator[Any]:
    """The protocol buffers of an offline run: LevelDB's log format, after seven bytes of wandb's own."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, record, at = path.read_bytes(), b"", 7
    while at + 7 <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in _LAST_PARTS:
            yield Record.FromString(record)
            record = b""


def test_wandb_has_them_by_the_stages_own_steps(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracker = WandbTracker(config)
    for rows in (ROWS[:1], ROWS[1:]):
        tracker.log(rows)
    tracker.close()
    records = [record for path in sorted(tmp_path.rglob("*.wandb")) for record in wandb_records(path)]
    history = [
        {".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    logged = [{name: value for name, value in row.items() if not name.startswith("_")} for row in history]
    assert logged == [{"sft/step": 1, "sft/loss": 2.5}, {"ppo/step": 7, "ppo/kl": 0.5, "ppo/reward/brief": -1.0}]
    runs = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert {(run.run_id, run.project, run.display_name) for run in runs} == {
        (RunDirectory(config.run_dir).id, "rlaif-ray", "run")
    }
    steps = {record.metric.glob_name: record.metric.step_metric for record in records if record.HasField("metric")}
    assert steps == {"sft/*": "sft/step", "ppo/*": "ppo/step"}
