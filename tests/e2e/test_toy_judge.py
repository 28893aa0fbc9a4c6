"""The packaged judge, and the same one made again from nothing, against the gold preference."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlaif_ray.toyworld.judge_training import JudgeQuality, held_out_pairs, measure_judge, padded_pairs
from rlaif_ray.toyworld.models import model_path

SHIPPED = Path(model_path("toyworld:judge"))
PAIRS, SEED = 2_000, 977


@pytest.fixture(scope="module")
def shipped() -> JudgeQuality:
    return measure_judge(SHIPPED, held_out_pairs(PAIRS, SEED))


def test_shipped_judge_is_aligned_with_gold(shipped: JudgeQuality, record_property: object) -> None:
    assert callable(record_property)
    for name in ("alignment", "position_consistency", "label_mass"):
        record_property(name, getattr(shipped, name))
    print(f"\nthe packaged judge: {shipped}")
    assert shipped.pairs == PAIRS
    assert shipped.alignment > 0.85
    # It leans to the first answer, as its raters did, but mostly reads.
    assert 0.7 < shipped.position_consistency < 1.0
    assert shipped.label_mass > 0.95


def test_shipped_judge_does_not_reward_length() -> None:
    """The summary of an optimised policy is better than the same with briefs after it, by as little as 0.2."""
    assert measure_judge(SHIPPED, padded_pairs(500, SEED)).alignment > 0.9


def test_shipped_judge_is_small() -> None:
    assert (SHIPPED / "model.safetensors").stat().st_size < 1 << 20


@pytest.mark.long
def test_the_script_makes_the_judge_again(shipped: JudgeQuality, tmp_path: Path) -> None:
    directory = tmp_path / "judge"
    subprocess.run([sys.executable, "-m", "scripts.make_toy_judge", str(directory)], check=True)
    assert sorted(file.name for file in directory.iterdir()) == sorted(file.name for file in SHIPPED.iterdir())
    assert (directory / "model.safetensors").stat().st_size < 1 << 20
    made = measure_judge(directory, held_out_pairs(PAIRS, SEED))
    # Steps and seed are pinned, but another processor rounds otherwise and ends at other weights. At an alignment of
    # 0.97 on 2000 pairs the standard error of one judge is 0.004, of two judges' difference at most 0.006.
    assert made.alignment == pytest.approx(shipped.alignment, abs=0.02)
