"""The packaged assistant made again from nothing, against the shipped one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from rlaif_ray.toyworld.assistant_quality import measure_choices, measure_turns
from rlaif_ray.toyworld.models import model_path

SHIPPED = Path(model_path("toyworld:assistant"))
PROMPTS, SEED = 500, 977


def quality(directory: Path) -> dict[str, float]:
    return asdict(measure_turns(directory, PROMPTS, SEED)) | asdict(measure_choices(directory, PROMPTS, SEED))


@pytest.mark.long
@pytest.mark.timeout(2_400)
def test_the_script_makes_the_assistant_again(tmp_path: Path) -> None:
    """Steps and seed are pinned, but another processor rounds otherwise and ends at other weights."""
    directory = tmp_path / "assistant"
    subprocess.run([sys.executable, "-m", "scripts.make_toy_assistant", str(directory)], check=True)
    assert sorted(file.name for file in directory.iterdir()) == sorted(file.name for file in SHIPPED.iterdir())
    assert quality(directory) == pytest.approx(quality(SHIPPED), abs=0.05)
