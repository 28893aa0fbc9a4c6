"""A run by DPO on people's preferences, as a user starts it: killed while the policy learns, gone on with, finished."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from transformers import AutoModelForCausalLM

from rlaif_ray import metrics
from rlaif_ray.preferences.dataset import read_preferences
from rlaif_ray.weights import fingerprint_of, read_weights
from tests.rlaif_command import Command, logged

RECIPE = Path(__file__).parents[2] / "scripts" / "configs" / "dpo.yaml"
PAIRS = 8000  # enough that a kill after five steps finds most of them ahead
SMALL = [
    *("prompts.limit=600", "prompts.held_out=60", "sft.limit=1500", "sft.epochs=1"),
    *(f"dpo.preferences=[{{path: toyworld:headlines, limit: {PAIRS}}}]", "dpo.epochs=2", "dpo.batch_size=32"),
]


def start(run_dir: Path) -> Command:
    """With a Ray of its own, which is killed as well."""
    return Command.start("run", str(RECIPE), f"run_dir={run_dir}", *SMALL, log=run_dir.parent / "log")


def test_a_killed_run_goes_on_and_needs_neither_judge_nor_reward_model(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = start(run_dir)
    command.wait_until(lambda: len(logged(run_dir, metrics.DPO)) >= 5)
    command.end_by(signal.SIGKILL)
    assert not (run_dir / "models" / "policy").exists()

    said = start(run_dir).finished()
    assert "[1/4] sft: done before" in said
    assert "[2/4] dpo: the policy learns from preferences" in said

    rows = logged(run_dir, metrics.DPO)
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
