"""TRL's trainers take a preference file as it lies and as it is exported, and what they take is what we wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from judge_records import judgement
from trl_training import STEPS, TRAINERS, load, steps_taken, without_ties

from rlaif_ray.judge.aggregate import combine, opinion_of_orders
from rlaif_ray.preferences.dataset import write_preferences
from rlaif_ray.preferences.export import export_preferences
from rlaif_ray.preferences.files import read_own_preferences
from rlaif_ray.preferences.judgements import write_judgements
from rlaif_ray.preferences.labels import preference_rows
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


def exported(file: Path, form: Literal["trl", "full"], kind: str, *, conversational: bool = False) -> Path:
    out = file.with_name(f"{form}.{kind}")
    export_preferences(str(file), out, form, conversational=conversational)
    return out


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_exports_load_as_datasets_with_what_they_were_given(file: Path, kind: str) -> None:
    """The second of eight is a tie, which TRL's form is without."""
    ours = read_own_preferences(str(file), "PREFERENCES")
    full = load(exported(file, "full", kind))
    assert full["pair_id"] == [row.pair_id for row in ours]
    assert full["p"] == [row.p for row in ours]
    theirs = load(exported(file, "trl", kind))
    assert theirs["pair_id"] == [row.pair_id for row in ours if row.pair_id != "pair-1"]
    assert theirs["chosen"] == load(file).filter(lambda p: p > 0.5, input_columns="p")["chosen"]


@pytest.mark.parametrize(("trainer", "settings", "kind"), TRAINERS)
def test_a_trainer_takes_the_export(trainer: type, settings: type, kind: type, file: Path, tmp_path: Path) -> None:
    assert steps_taken(trainer, settings, kind, load(exported(file, "trl", "jsonl")), tmp_path) == STEPS


def test_texts_exported_as_messages_are_what_a_conversation_would_be(tmp_path: Path) -> None:
    chats = []
    for name, talks in (("plain", False), ("talk", True)):
        file = tmp_path / name / "preferences.parquet"
        write_preferences(file, preference_rows(preferences(talks), seed=0, held_out=0.1))
        chats.append(
            load(exported(file, "trl", "jsonl", conversational=True)).select_columns(["prompt", "chosen", "rejected"])
        )
    assert chats[0].to_list() == chats[1].to_list()
