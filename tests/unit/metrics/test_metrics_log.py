"""The metrics log: what is appended is read back, across resumption and torn lines."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from rlaif_ray import metrics
from rlaif_ray.metrics import MetricsLog


@pytest.fixture
def log(tmp_path: Path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    yield log
    log.close()


def test_a_row_is_one_json_line_with_the_agreed_keys(log: MetricsLog) -> None:
    log.append(metrics.PPO, 3, 100, {metrics.KL: 1.5, metrics.REWARD_MEAN: -0.25})
    (line,) = log.path.read_text().splitlines()
    record = json.loads(line)
    assert record.pop("time") > 1_700_000_000
    assert record == {"stage": "ppo", "step": 3, "total": 100, "values": {"kl": 1.5, "reward_mean": -0.25}}


def test_rows_are_read_back_in_order(log: MetricsLog) -> None:
    log.append("sft", 1, 2, {"loss": 2.0})
    log.append("sft", 2, 2, {"loss": 1.0})
    log.append("ppo", 1, 5, {"kl": 0.0})
    assert [(row.stage, row.step, row.total, dict(row.values)) for row in log.read()] == [
        ("sft", 1, 2, {"loss": 2.0}),
        ("sft", 2, 2, {"loss": 1.0}),
        ("ppo", 1, 5, {"kl": 0.0}),
    ]


def test_of_a_step_logged_twice_the_later_counts(log: MetricsLog) -> None:
    for loss in (2.0, 1.5):
        log.append("sft", 1, 2, {"loss": loss})
    assert [dict(row.values) for row in log.read()] == [{"loss": 1.5}]


def test_a_torn_last_line_is_left_out_and_cut_off_by_the_next_append(log: MetricsLog) -> None:
    log.append("sft", 1, 3, {"loss": 2.0})
    log.close()
    with log.path.open("ab") as file:
        file.write(b'{"stage": "sft", "st')
    assert [row.step for row in log.read()] == [1]
    log.append("sft", 2, 3, {"loss": 1.0})
    assert [row.step for row in log.read()] == [1, 2]


def test_a_corrupt_line_is_an_error_that_names_the_file_and_the_line(log: MetricsLog) -> None:
    log.path.write_text('{"stage": "sft", "step": 1, "total": 1, "time": 1, "values": {}}\nnonsense\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        log.read()


def test_a_value_that_is_not_finite_is_null_at_rest_and_nan_when_read(log: MetricsLog) -> None:
    log.append("sft", 1, 1, {"loss": math.inf})
    assert json.loads(log.path.read_text())["values"] == {"loss": None}
    assert math.isnan(log.read()[0].values["loss"])


def test_tensorboard_reads_the_events(log: MetricsLog) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log.append("ppo", 7, 10, {"kl": 0.5})
    log.close()
    events = EventAccumulator(str(log.path.parent / "tensorboard"))
    events.Reload()
    (event,) = events.Scalars("ppo/kl")
    assert (event.step, event.value) == (7, 0.5)


def test_appending_loads_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from rlaif_ray.metrics import MetricsLog\n"
        f"MetricsLog(Path({str(tmp_path / 'metrics.jsonl')!r})).append('sft', 1, 1, {{'loss': 1.0}})\n"
        "assert not {'torch', 'ray', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
