"""The rows and settings that docs/preferences.md shows are those that are read."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from rlaif_ray.config import PreferenceFileConfig, PretrainingConfig
from rlaif_ray.preferences.dataset import PreferenceRow
from rlaif_ray.preferences.files import read_preference_file
from rlaif_ray.preferences.pairing import Pairing
from rlaif_ray.preferences.pretraining import read_pretraining_pairs

PAGE = (Path(__file__).parents[3] / "docs" / "preferences.md").read_text()
PREFERENCES, RANKED = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
(SETTINGS,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(request.param)
    return path


@pytest.mark.parametrize("file", [PREFERENCES], indirect=True)
def test_its_preferences_are_read(file: Path) -> None:
    rows = read_preference_file(PreferenceFileConfig(path=str(file)), "reward.preferences", seed=0, held_out=0.0)
    assert len(rows) == 5
    assert (rows[-1].label_source, rows[-1].split, rows[-1].pair_id) == ("ai", "test", f"{file}:7")


@pytest.mark.parametrize("file", [RANKED], indirect=True)
def test_its_ranked_answers_are_read_the_same_way_round(file: Path) -> None:
    rows = read_pretraining_pairs(PretrainingConfig(path=str(file)))
    assert [(row.chosen, row.rejected) for row in rows] == 4 * [("It scatters blue most.", "The sea.")]


def test_its_settings_are_settings() -> None:
    for entry in yaml.safe_load(SETTINGS)["reward"]["preferences"]:
        PreferenceFileConfig.model_validate(entry)


def test_it_names_every_column_and_every_pairing() -> None:
    columns = {field.name for field in dataclasses.fields(PreferenceRow)}
    assert {name for name in columns if f"`{name}`" not in PAGE} == {
        "chosen_first_logprob_rejected",
        "chosen_second_logprob_chosen",
        "chosen_second_logprob_rejected",
    }
    assert all(f"| `{pairing}` |" in PAGE for pairing in get_args(Pairing))
