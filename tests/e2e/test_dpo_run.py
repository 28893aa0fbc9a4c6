"""A run by DPO on people's preferences, as a user starts it: killed while the policy learns, gone on with, finished."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from transformers import AutoModelForCausalLM

from rlaif_ray import metrics
from rlaif_ray.metrics import MetricsLog, MetricsRow
from rlaif_ray.preferences.dataset import read_preferences
from rlaif_ray.weights import fingerprint_of, read_weights

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "rlaif_ray", "run", str(ROOT / "scripts" / "configs" / "dpo.yaml")]
PATIENCE_S = 500
PAIRS = 2000
SMALL = [
    *("prompts.limit=600", "prompts.held_out=60", "sft.limit=1500", "sft.epochs=1"),
    *(f"dpo.preferences=[{{path: toyworld:headlines, limit: {PAIRS}}}]", "dpo.epochs=2", "dpo.batch_size=32"),
]


def start(run_dir: Path, log: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, f"run_dir={run_dir}", *SMALL],
        cwd=run_dir.parent,
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def logged(run_dir: Path) -> list[MetricsRow]:
    path = run_dir / "metrics.jsonl"
    return [row for row in MetricsLog(path).read() if row.stage == metrics.DPO] if path.exists() else []


def test_a_killed_run_goes_on_and_needs_neither_judge_nor_reward_model(tmp_path: Path) -> None:
    run_dir, logs = tmp_path / "run", [tmp_path / "first.log", tmp_path / "second.log"]
    first = start(run_dir, logs[0])
    deadline = time.monotonic() + PATIENCE_S
    while len(logged(run_dir)) < 5:
        assert first.poll() is None, logs[0].read_text()
        assert time.monotonic() < deadline, logs[0].read_text()
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (run_dir / "models" / "policy").exists()

    assert start(run_dir, logs[1]).wait(PATIENCE_S) == 0, logs[1].read_text()
    said = logs[1].read_text()
    assert "[1/4] sft: done before" in said
    assert "[2/4] dpo: the policy learns from preferences" in said

    rows = logged(run_dir)
    assert [row.step for row in rows] == list(range(1, rows[0].total + 1))
    assert rows[-1].values[metrics.HELD_OUT_ACCURACY] > 0.6
    kept = read_preferences(run_dir / "preferences" / "preferences.parquet")
    assert len(kept) == PAIRS
    assert 0.05 < sum(row.split == "test" for row in kept) / PAIRS < 0.15
    AutoModelForCausalLM.from_pretrained(run_dir / "models" / "policy")
    sft, policy = (fingerprint_of(read_weights(run_dir / "models" / name)) for name in ("sft", "policy"))
    assert sft != policy

    summary = json.loads((run_dir / "summary.json").read_text())
    assert list(summary["stages"]) == ["sft", "dpo", "evaluate"]
    assert summary["policy"]["win_rate_judge"] == "gold"
    assert summary["policy"]["prompts"] == 60
    assert summary["policy"]["kl"] > 0
    assert set(summary["reward"].values()) == {None}
    assert set(summary["labeler"].values()) == {None}
    assert "Direct preference optimisation" in (run_dir / "report.html").read_text()
