"""The demo in small with every model on one GPU, in bfloat16: `pytest -m gpu`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlaif_ray.metrics import LOGPROB_GAP, PPO, MetricsLog

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.timeout(900),
]

SHARES = {
    "sft.resources.gpus": 0.3,
    "judge.actors.gpus": 0.2,
    "reward.resources.gpus": 0.2,
    "reward.actors.gpus": 0.1,
    "rollout.resources.gpus": 0.3,
    "rollout.gpu_memory_utilization": 0.3,
    "learner.resources.gpus": 0.3,
}


def test_the_whole_recipe_runs_and_sampler_and_learner_agree(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    small = ["sft.limit=4000", "collect.prompts=200", "reward.epochs=1", "ppo.iterations=10"]
    shares = [f"{key}={value}" for key, value in SHARES.items()]
    done = subprocess.run(
        [sys.executable, "-m", "rlaif_ray", "demo", f"run_dir={run_dir}", "policy.dtype=bfloat16", *small, *shares],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((run_dir / "summary.json").read_text())["policy"]["win_rate"] is not None
    gaps = [row.values[LOGPROB_GAP] for row in MetricsLog(run_dir / "metrics.jsonl").read() if row.stage == PPO]
    assert len(gaps) == 10
    assert max(gaps) < 0.05, "bfloat16 rounds, but it does not drift"
