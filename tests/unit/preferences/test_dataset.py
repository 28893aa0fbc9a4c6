import dataclasses
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from judge_records import judgement

from rlaif_ray.judge.aggregate import combine, opinion_of_orders
from rlaif_ray.preferences.dataset import (
    Label,
    Member,
    OnInconsistent,
    PreferenceRow,
    label_of,
    preference_rows,
    read_judgements,
    read_preferences,
    split_by_prompt,
    split_of,
    with_chosen_first,
    write_judgements,
    write_preferences,
)
from rlaif_ray.records import Judgement, Message, Order, Outcome, Pair, Preference, Prompt

CONVERSATION = (Message("user", "Hello."), Message("assistant", "Hello!"), Message("user", "Say more."))


def preference(p: float | None, prompt: Prompt | None = None, outcome: Outcome = Outcome.SCORED) -> Preference:
    """Orders with distinct log-probabilities: AB has -1 first and -2 second, BA has -3 first and -4 second."""
    of = Pair("pair", prompt or Prompt("prompt", "Say."), "answer a", "answer b", "sample a", "sample b")
    ab, ba = (
        judgement(of, order, of_first, outcome, logprob_first=first, logprob_second=second, raw_reply='{"é": 1}')
        for order, of_first, first, second in (
            (Order.AB, p, -1.0, -2.0),
            (Order.BA, None if p is None else 1 - p, -3.0, -4.0),
        )
    )
    return combine(of, [opinion_of_orders([ab, ba], 1.0)], "log_odds")


def rows(*preferences: Preference) -> list[PreferenceRow]:
    return preference_rows(preferences, seed=0, held_out=0.5)


def row(**changes: Any) -> PreferenceRow:
    fields = {
        "pair_id": "pair",
        "prompt_id": "prompt",
        "prompt": "Say.",
        "chosen": "answer a",
        "rejected": "answer b",
        "p": 0.75,
        "weight": 1.0,
        "label_source": "human",
        "split": "train",
    }
    return PreferenceRow(**{**fields, **changes})


def test_the_first_answer_chosen() -> None:
    """p = .8 for a. Chosen first is order AB: chosen -1, rejected -2. Chosen second is BA: a was shown second, -4."""
    (made,) = rows(preference(0.8))
    assert (made.chosen, made.rejected, made.p) == ("answer a", "answer b", 0.8)
    assert (made.chosen_sample, made.rejected_sample) == ("sample a", "sample b")
    assert (made.chosen_first_logprob_chosen, made.chosen_first_logprob_rejected) == (-1, -2)
    assert (made.chosen_second_logprob_chosen, made.chosen_second_logprob_rejected) == (-4, -3)


def test_the_second_answer_chosen() -> None:
    """p = .2 for a, so .8 for b. Chosen first is order BA: chosen -3, rejected -4. Chosen second is AB: b has -2."""
    (made,) = rows(preference(0.2))
    assert (made.chosen, made.rejected) == ("answer b", "answer a")
    assert made.p == pytest.approx(0.8)
    assert (made.chosen_sample, made.rejected_sample) == ("sample b", "sample a")
    assert (made.chosen_first_logprob_chosen, made.chosen_first_logprob_rejected) == (-3, -4)
    assert (made.chosen_second_logprob_chosen, made.chosen_second_logprob_rejected) == (-2, -1)


@pytest.mark.parametrize(
    ("policy", "label"),
    [("keep_soft", Label(0.7, 1.0)), ("drop", None), ("tie", Label(0.5, 1.0)), ("downweight", Label(0.7, 0.4))],
)
def test_what_becomes_of_an_inconsistent_pair(policy: OnInconsistent, label: Label | None) -> None:
    """The first place wins with .9 in order AB and with .5 + .1 in BA: p = (.9 + 1 - .5) / 2 = .7, 2p - 1 = .4."""
    swayed = dataclasses.replace(preference(0.7), consistent=False)
    made = label_of(swayed, policy, 0.0)
    assert (made is None) == (label is None)
    if made is not None and label is not None:
        assert (made.p, made.weight) == (pytest.approx(label.p), pytest.approx(label.weight))
    assert label_of(preference(0.7), policy, 0.0) == Label(0.7, 1.0)


def test_pairs_within_the_margin_are_ties() -> None:
    assert label_of(preference(0.55), "keep_soft", 0.06) == Label(0.5, 1.0)
    assert label_of(preference(0.6), "keep_soft", 0.06) == Label(0.6, 1.0)


def test_members_are_kept_from_the_chosen_answers_side() -> None:
    """p = .2 for a: b is chosen, and the member holds .8 for it."""
    (made,) = rows(preference(0.2))
    (member,) = made.members
    assert (member.judge, member.set_aside) == ("judge", False)
    assert member.p == pytest.approx(0.8)


def test_a_label_from_the_other_answers_side() -> None:
    """p = .25 for x: y is chosen with .75. What was said of x with x first, is said of the rejected one shown first."""
    told = row(
        chosen="x",
        rejected="y",
        p=0.25,
        chosen_first_logprob_chosen=-1.0,
        chosen_first_logprob_rejected=-2.0,
        chosen_second_logprob_chosen=-3.0,
        chosen_second_logprob_rejected=-4.0,
        members=(Member("j", "t", None, 1.0, 0.125, True, None, False), Member("k", "t", None, 1.0, *[None] * 3, True)),
        chosen_sample="sample x",
        rejected_sample="sample y",
    )
    assert with_chosen_first(told) == row(
        chosen="y",
        rejected="x",
        p=0.75,
        chosen_first_logprob_chosen=-4.0,
        chosen_first_logprob_rejected=-3.0,
        chosen_second_logprob_chosen=-2.0,
        chosen_second_logprob_rejected=-1.0,
        members=(Member("j", "t", None, 1.0, 0.875, True, None, False), Member("k", "t", None, 1.0, *[None] * 3, True)),
        chosen_sample="sample y",
        rejected_sample="sample x",
    )
    assert with_chosen_first(row(p=0.5)) == row(p=0.5)


def test_ties_stay_and_what_was_not_scored_leaves() -> None:
    kept = rows(preference(0.5), preference(None, outcome=Outcome.FAILED), preference(None, outcome=Outcome.ABSTAINED))
    assert [row.p for row in kept] == [0.5]


@pytest.mark.parametrize("content", ["Say.", CONVERSATION])
def test_rows_read_back(tmp_path: Path, content: str | tuple[Message, ...]) -> None:
    written = rows(preference(0.8, Prompt("one", content)), preference(0.3, Prompt("two", content)))
    write_preferences(tmp_path / "deep" / "preferences.parquet", written)
    assert read_preferences(tmp_path / "deep" / "preferences.parquet") == written


def test_a_file_from_before_there_were_rounds_is_of_the_first(tmp_path: Path) -> None:
    write_preferences(tmp_path / "p.parquet", [row(round=2)])
    assert read_preferences(tmp_path / "p.parquet") == [row(round=2)]
    pq.write_table(pq.read_table(tmp_path / "p.parquet").drop_columns(["round"]), tmp_path / "older.parquet")
    assert read_preferences(tmp_path / "older.parquet") == [row(round=1)]
    assert {each.round for each in preference_rows([preference(0.8)], seed=0, held_out=0.5, round=3)} == {3}


def test_the_columns_of_a_conversation_are_lists_of_messages(tmp_path: Path) -> None:
    """One conversation makes the whole file conversational: a plain prompt becomes its user's turn."""
    write_preferences(tmp_path / "p.parquet", rows(preference(0.8, Prompt("one", CONVERSATION)), preference(0.8)))
    first, second = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert first["prompt"][-1] == {"role": "user", "content": "Say more."}
    assert first["chosen"] == [{"role": "assistant", "content": "answer a"}]
    assert second["prompt"] == [{"role": "user", "content": "Say."}]
    assert second["rejected"] == [{"role": "assistant", "content": "answer b"}]


def test_the_file_is_zstd_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write_preferences(path, rows(preference(0.9)))
    write_preferences(path, rows(preference(0.7)))
    assert [file.name for file in tmp_path.iterdir()] == ["p.parquet"]
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
    assert read_preferences(path)[0].p == 0.7


def test_judgements_read_back_with_every_field(tmp_path: Path) -> None:
    judgements = [
        *preference(0.8).judgements,
        *preference(None, outcome=Outcome.OVER_BUDGET).judgements,
        dataclasses.replace(preference(0.1).judgements[0], cost_usd=0.25, cache_hit=True, label_mass=None),
    ]
    write_judgements(tmp_path / "j.parquet", judgements)
    assert read_judgements(tmp_path / "j.parquet") == judgements
    assert pq.read_schema(tmp_path / "j.parquet").names == [field.name for field in dataclasses.fields(Judgement)]


def test_empty_files_keep_their_columns(tmp_path: Path) -> None:
    write_preferences(tmp_path / "p.parquet", [])
    write_judgements(tmp_path / "j.parquet", [])
    assert read_preferences(tmp_path / "p.parquet") == []
    assert read_judgements(tmp_path / "j.parquet") == []


def test_the_split_is_by_prompt_and_keeps_its_share() -> None:
    """1,000 prompts at .2: within 4 standard errors of 200, 4 * 12.6 = 51."""
    splits = [split_of(f"prompt-{number}", seed=0, held_out=0.2) for number in range(1_000)]
    assert abs(splits.count("test") - 200) < 51
    assert splits == [split_of(f"prompt-{number}", 0, 0.2) for number in range(1_000)]
    assert splits != [split_of(f"prompt-{number}", 1, 0.2) for number in range(1_000)]
    assert {split_of("any", 0, 0.0), split_of("any", 0, 1.0)} == {"train", "test"}


def test_a_prompt_that_any_row_holds_out_is_held_out_in_all() -> None:
    """The second row says the same as the first under another id, the third as a conversation of one message."""
    mixed = [
        row(prompt_id="one", split="test"),
        row(prompt_id="two", split="train"),
        row(prompt_id="three", split="train", prompt=(Message("user", "Say."),)),
        row(prompt_id="one", split="train", prompt="Say more."),
    ]
    parted = split_by_prompt(mixed)
    assert [each.split for each in parted] == ["test", "test", "test", "train"]
    assert [dataclasses.replace(each, split="train") for each in parted] == [
        dataclasses.replace(each, split="train") for each in mixed
    ]
