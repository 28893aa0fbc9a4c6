import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from preference_records import row

from rlaif_ray.preferences.dataset import (
    Member,
    answer_text,
    read_preferences,
    split_by_prompt,
    split_of,
    with_chosen_first,
    write_preferences,
)
from rlaif_ray.records import Message

TALK = (Message("user", "Hello."), Message("assistant", "Hello!"), Message("user", "Say more."))


def test_a_label_from_the_other_answers_side() -> None:
    """p = .25 for x: y is chosen with .75. What was said of x with x first, is said of the rejected one shown first."""
    told = row(
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


@pytest.mark.parametrize("prompt", ["Say.", TALK], ids=["plain", "conversational"])
def test_rows_read_back(tmp_path: Path, prompt: str | tuple[Message, ...]) -> None:
    written = [
        row(prompt=prompt, round=2, chosen_sample="a", members=(Member("j", "t", "p", 0.5, None, None, True, False),)),
        row(prompt=prompt, pair_id="two", consistent=False, chosen_first_logprob_chosen=-1.5, rationale="é"),
    ]
    write_preferences(tmp_path / "deep" / "preferences.parquet", written)
    assert read_preferences(tmp_path / "deep" / "preferences.parquet") == written
    assert [answer_text(each.chosen) for each in written] == ["x", "x"]


def test_a_file_from_before_there_were_rounds_is_of_the_first(tmp_path: Path) -> None:
    write_preferences(tmp_path / "p.parquet", [row(round=2)])
    pq.write_table(pq.read_table(tmp_path / "p.parquet").drop_columns(["round"]), tmp_path / "older.parquet")
    assert read_preferences(tmp_path / "older.parquet") == [row(round=1)]


def test_the_columns_of_a_conversation_are_lists_of_messages(tmp_path: Path) -> None:
    """One conversation makes the whole file conversational: a plain prompt becomes its user's turn."""
    write_preferences(tmp_path / "p.parquet", [row(prompt=TALK), row()])
    first, second = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert first["prompt"][-1] == {"role": "user", "content": "Say more."}
    assert first["chosen"] == [{"role": "assistant", "content": "x"}]
    assert second["prompt"] == [{"role": "user", "content": "Say."}]
    assert second["rejected"] == [{"role": "assistant", "content": "y"}]


def test_the_file_is_zstd_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write_preferences(path, [row(p=0.9)])
    write_preferences(path, [row(p=0.7)])
    assert [file.name for file in tmp_path.iterdir()] == ["p.parquet"]
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
    assert read_preferences(path)[0].p == 0.7


def test_an_empty_file_keeps_its_columns(tmp_path: Path) -> None:
    write_preferences(tmp_path / "p.parquet", [])
    assert read_preferences(tmp_path / "p.parquet") == []


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
