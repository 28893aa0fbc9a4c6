"""TRL's trainers take a preference file as it lies, and what they take is what we wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from judge_records import judgement
from trl_training import STEPS, TRAINERS, load, steps_taken, without_ties

from rlaif_ray.judge.aggregate import combine, opinion_of_orders
from rlaif_ray.preferences.dataset import preference_rows, write_judgements, write_preferences
from rlaif_ray.records import Message, Order, Pair, Preference, Prompt


def preferences(conversational: bool, count: int = 8) -> list[Preference]:
    """The second of them is a tie."""
    made = []
    for number in range(count):
        content = (Message("user", "say one"),) if conversational else "say one"
        pair = Pair(f"pair-{number}", Prompt(f"prompt-{number}", content), " one", " two three")
        p = 0.5 if number == 1 else 0.8
        judgements = [
            judgement(pair, order, p_first, logprob_first=-0.2, logprob_second=-1.6)
            for order, p_first in ((Order.AB, p), (Order.BA, 1 - p))
        ]
        made.append(combine(pair, [opinion_of_orders(judgements, 1.0)], "log_odds"))
    return made


@pytest.fixture(params=["plain", "conversational"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    labelled = preferences(request.param == "conversational")
    write_preferences(tmp_path / "preferences.parquet", preference_rows(labelled, seed=0, held_out=0.1))
    write_judgements(tmp_path / "judgements.parquet", [one for each in labelled for one in each.judgements])
    return tmp_path / "preferences.parquet"


def test_both_files_load_as_datasets(file: Path) -> None:
    rows = load(file)
    assert len(rows) == 8
    assert {"prompt", "chosen", "rejected", "p", "consistent", "rationale", "split"} <= set(rows.column_names)
    assert len(without_ties(file)) == 7
    assert len(load(file.with_name("judgements.parquet"))) == 16


@pytest.mark.parametrize(("trainer", "settings", "kind"), TRAINERS)
def test_a_trainer_takes_the_file(trainer: type, settings: type, kind: type, file: Path, tmp_path: Path) -> None:
    assert steps_taken(trainer, settings, kind, without_ties(file), tmp_path) == STEPS
