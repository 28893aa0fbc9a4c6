"""The demo as it is shipped: what it promises, and that its judge is owed for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


def summary_of(run_dir: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "rlaif_ray", *arguments, f"run_dir={run_dir}"],
        cwd=run_dir.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return summary


def test_the_policy_improves_by_a_measure_it_was_not_trained_on(tmp_path: Path) -> None:
    summary = summary_of(tmp_path / "run", "demo")
    policy = summary["policy"]
    assert policy["win_rate_judge"] == "gold"
    assert policy["prompts"] >= 1000
    assert policy["win_rate_ci"][0] > 0.70
    assert policy["kl"] < 6
    assert abs(policy["mean_length"]["after"] / policy["mean_length"]["before"] - 1) < 0.4
    assert summary["labeler"]["alignment"] > 0.85
    assert summary["reward"]["accuracy"] > 0.80


def test_a_coin_teaches_nothing(tmp_path: Path) -> None:
    """By symmetry a reward model of coin flips is as likely to harm as to help; its policy must not win."""
    config = ROOT / "scripts" / "configs" / "coin_flip.yaml"
    summary = summary_of(tmp_path / "control", "run", str(config))
    assert summary["policy"]["win_rate"] < 0.55
    assert 0.4 < summary["labeler"]["alignment"] < 0.6
