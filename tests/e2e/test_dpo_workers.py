"""DPO through Ray Train: any number of workers makes the same policy, and so does one that was killed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from actors.trainer import fit_dpo
from rlaif_ray.config import RunConfig
from rlaif_ray.dpo import DpoResult
from rlaif_ray.metrics import ACCURACY, HELD_OUT_ACCURACY, LOSS, MetricsLog
from rlaif_ray.records import LabelledPair
from rlaif_ray.weights import read_weights
from tests.small_models import write_models

pytestmark = pytest.mark.usefixtures("local_ray")

STEPS = 200
PATIENCE_S = 300.0


def pairs_of_fives(count: int, seed: int) -> list[LabelledPair]:
    """The better answer has the token 5."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        prompt, one, other = (tuple(random.integers(6, 15, random.integers(1, 5)).tolist()) for _ in range(3))
        made.append(LabelledPair(f"{number:03}", f"{number}", prompt, (*one, 5), other, random.uniform(0.6, 1.0)))
    return made


async def fit(directory: Path, start: Path, pairs: list[LabelledPair], **dpo: Any) -> DpoResult:
    config = RunConfig.model_validate(
        {
            "run_dir": directory,
            "prompts": {"path": "p.jsonl"},
            "policy": {"model": "m", "algorithm": "dpo"},
            "judge": {"model": "j"},
            "dpo": {
                "batch_size": 10,
                "micro_batch_size": 4,
                "epochs": STEPS // 5,
                "learning_rate": 1e-3,
                "beta": 0.5,
                "resources": {"cpus": 0.5},
            }
            | dpo,
        }
    )
    return await fit_dpo(
        config,
        pairs,
        pairs_of_fives(11, 1),
        start=start,
        directory=directory / "policy",
        checkpoints=directory / "checkpoints",
        metrics=directory / "metrics.jsonl",
    )


def logged(directory: Path) -> list[Mapping[str, float]]:
    return [row.values for row in MetricsLog(directory / "metrics.jsonl").read()]


def kill_a_worker(metrics: Path) -> None:
    """As soon as ten steps are logged."""
    deadline = time.monotonic() + PATIENCE_S
    while not metrics.exists() or len(MetricsLog(metrics).read()) < 10:
        assert time.monotonic() < deadline, "no steps are logged"
        time.sleep(0.01)
    killed = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # one that ends by itself meanwhile
            if any("RayTrainWorker" in part for part in process.cmdline()):
                process.kill()
                killed += 1
    assert killed


async def test_workers_and_faults_change_nothing(tmp_path: Path) -> None:
    """49 pairs in batches of ten: two ranks are short of a row in the last batch, and so with the eleven held out."""
    start, _ = write_models(tmp_path / "models")
    pairs = pairs_of_fives(49, 0)
    one, two, killed = (tmp_path / name for name in ("one", "two", "killed"))

    result = await fit(one, start, pairs)
    assert result.steps == len(logged(one)) == STEPS
    assert logged(one)[-1][ACCURACY] > 0.8
    assert result.held_out_accuracy == logged(one)[-1][HELD_OUT_ACCURACY] > 0.8

    await fit(two, start, pairs, workers=2, zero_stage=3)
    for values, expected in zip(logged(two), logged(one), strict=True):
        assert values[LOSS] == pytest.approx(expected[LOSS], rel=1e-3)
    before, after, again = (read_weights(path) for path in (start, one / "policy", two / "policy"))
    for name, weights in after.items():
        assert np.abs(weights - before[name]).max() > 1e-2
        np.testing.assert_allclose(again[name], weights, atol=1e-3)

    done, _ = await asyncio.gather(
        fit(killed, start, pairs), asyncio.to_thread(kill_a_worker, killed / "metrics.jsonl")
    )
    assert done == result
    assert len((killed / "metrics.jsonl").read_bytes().splitlines()) > STEPS, "it began anew"
    assert logged(killed) == logged(one)
    for name, weights in read_weights(killed / "policy").items():
        np.testing.assert_array_equal(weights, after[name])
