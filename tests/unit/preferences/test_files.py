import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from preference_records import row

from rlaif_ray.config import PreferenceFileConfig, UserError
from rlaif_ray.preferences.dataset import Member, PreferenceRow, split_of, write_preferences
from rlaif_ray.preferences.files import read_own_preferences, read_preference_file
from rlaif_ray.records import Message

TALK = [
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "So?"},
]


def says(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def read(directory: Path, *rows: Any, held_out: float = 0.0, **config: Any) -> list[PreferenceRow]:
    """What is read of rows written as JSONL."""
    file = directory / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_preference_file(
        PreferenceFileConfig(path=str(file), **config), "reward.preferences", seed=0, held_out=held_out
    )


def own(**changes: Any) -> PreferenceRow:
    """A row as a run's second round writes it."""
    said = {
        "pair_id": "a~b",
        "p": 0.875,
        "weight": 0.5,
        "label_source": "ai",
        "split": "test",
        "round": 2,
        "judge": "judge",
        "template_hash": "hash",
        "chosen_first_logprob_chosen": -0.25,
        "consistent": True,
        "members": (Member("j", "t", None, 1.0, 0.875, True, None, False),),
        "chosen_sample": "a",
        "rejected_sample": "b",
    }
    return row(**{**said, **changes})


def test_a_plain_row_is_a_verdict_known_by_its_content(tmp_path: Path) -> None:
    (one,) = read(tmp_path, {"prompt": "Say.", "chosen": "x", "rejected": "y"})
    assert (one.prompt, one.chosen, one.rejected, one.p, one.weight) == ("Say.", "x", "y", 1.0, 1.0)
    assert (one.label_source, one.round, one.judge, one.chosen_sample) == ("human", 1, "", None)
    again, other = read(
        tmp_path,
        {"chosen": "x", "prompt": "Say.", "rejected": "y", "more": 1},
        {"prompt": "Say.", "chosen": "x", "rejected": "z"},
    )
    assert (again.pair_id, again.prompt_id) == (one.pair_id, one.prompt_id)
    assert other.pair_id != one.pair_id
    assert other.prompt_id == one.prompt_id


@pytest.mark.parametrize(
    "answers",
    [{"chosen": says("x"), "rejected": says("y")}, {"chosen": "x", "rejected": "y"}],
    ids=["messages", "texts"],
)
def test_a_conversation_has_its_answers_as_messages(tmp_path: Path, answers: dict[str, Any]) -> None:
    (one,) = read(tmp_path, {"prompt": TALK, **answers})
    assert one.prompt == (Message("user", "Hello."), Message("assistant", "Hi."), Message("user", "So?"))
    assert (one.chosen, one.rejected) == ((Message("assistant", "x"),), (Message("assistant", "y"),))


def test_answers_to_a_text_are_texts(tmp_path: Path) -> None:
    (one,) = read(tmp_path, {"prompt": "Say.", "chosen": says("x"), "rejected": says("y")})
    assert (one.prompt, one.chosen, one.rejected) == ("Say.", "x", "y")


def test_whole_conversations_share_their_prompt(tmp_path: Path) -> None:
    implicit, explicit = read(
        tmp_path,
        {"id": 1, "chosen": TALK + says("x"), "rejected": TALK + says("y")},
        {"id": 2, "prompt": TALK, "chosen": "x", "rejected": "y"},
    )
    assert (implicit.prompt, implicit.chosen, implicit.rejected) == (
        explicit.prompt,
        explicit.chosen,
        explicit.rejected,
    )
    assert implicit.prompt_id == explicit.prompt_id


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "answers"),
    [
        ("The sky is blue.", "The sky is black.", "The sky is", (" blue.", " black.")),
        ("Q: so?\n\nA: yes", "Q: so?\n\nA: no", "Q: so?\n\nA:", (" yes", " no")),
        ("One two", "One two three", "One", (" two", " two three")),
    ],
)
def test_whole_texts_part_at_the_word_in_which_they_differ(
    tmp_path: Path, chosen: str, rejected: str, prompt: str, answers: tuple[str, str]
) -> None:
    (one,) = read(tmp_path, {"chosen": chosen, "rejected": rejected})
    assert (one.prompt, (one.chosen, one.rejected)) == (prompt, answers)


def test_what_a_row_says_goes_before_what_the_config_says(tmp_path: Path) -> None:
    """A weight counts on top of the config's: 3 * .5."""
    said = {"p": 0.75, "weight": 0.5, "label_source": "ai", "judge": "j", "split": "test", "pair_id": "one"}
    texts = {"prompt": "Say.", "chosen": "x", "rejected": "y"}
    full, bare, null = read(
        tmp_path, {**texts, **said}, {**texts, "id": 7}, {**texts, **dict.fromkeys(said)}, source="human", weight=3.0
    )
    assert (full.p, full.weight, full.label_source, full.judge, full.split) == (0.75, 1.5, "ai", "j", "test")
    assert (bare.p, bare.weight, bare.label_source, bare.judge, bare.split) == (1.0, 3.0, "human", "", "train")
    file = tmp_path / "rows.jsonl"
    assert (full.pair_id, bare.pair_id) == (f"{file}:one", f"{file}:7")
    assert (null.p, null.weight, null.label_source, null.split) == (1.0, 3.0, "human", "train")


def test_the_likelier_answer_is_the_chosen_one(tmp_path: Path) -> None:
    (one,) = read(tmp_path, {"prompt": "Say.", "chosen": "x", "rejected": "y", "p": 0.25})
    assert (one.chosen, one.rejected, one.p) == ("y", "x", 0.75)


def test_the_split_is_by_prompt_unless_the_file_has_one(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Say {number // 2}.", "chosen": "x", "rejected": f"y{number}", "split": split}
        for number, split in enumerate([None, "dev"] * 20 + ["test", "train"])
    ]
    *parted, tested, trained = read(tmp_path, *rows, held_out=0.5)
    assert [row.split for row in parted] == [split_of(row.prompt_id, 0, 0.5) for row in parted]
    assert {row.split for row in parted} == {"train", "test"}
    assert (tested.split, trained.split) == ("test", "train")


def test_as_many_as_the_limit(tmp_path: Path) -> None:
    rows = [{"prompt": "Say.", "chosen": "x", "rejected": f"y{number}"} for number in range(5)]
    assert [row.rejected for row in read(tmp_path, *rows, limit=2)] == ["y0", "y1"]


@pytest.mark.parametrize("path", ["toyworld:headlines", "toyworld:discretion"])
def test_the_toy_worlds_raters_are_people(path: str) -> None:
    config = PreferenceFileConfig(path=path, limit=200, weight=2.0)
    rows = read_preference_file(config, "reward.preferences", seed=3, held_out=0.25)
    assert len(rows) == len({row.pair_id for row in rows}) == 200
    assert {(row.label_source, row.p, row.weight) for row in rows} == {("human", 1.0, 2.0)}
    assert [row.split for row in rows] == [split_of(row.prompt_id, 3, 0.25) for row in rows]
    assert {row.split for row in rows} == {"train", "test"}


def test_a_source_without_raters_is_refused() -> None:
    config = PreferenceFileConfig(path="toyworld:discretion-red-team")
    with pytest.raises(UserError, match=r"reward\.preferences: toyworld:discretion-red-team has no raters"):
        read_preference_file(config, "reward.preferences", seed=0, held_out=0.0)


def test_another_runs_file_keeps_what_it_says_and_names_nothing_of_ours(tmp_path: Path) -> None:
    """Its samples lie in that run, and this one may have pairs of the same ids. Silence is an answer that a policy may
    give."""
    write_preferences(tmp_path / "p.parquet", [own(), own(pair_id="tie", p=0.5, rejected="")])
    config = PreferenceFileConfig(path=str(tmp_path / "p.parquet"), weight=2.0)
    theirs = {"weight": 1.0, "chosen_sample": None, "rejected_sample": None}
    assert read_preference_file(config, "reward.preferences", seed=0, held_out=0.0) == [
        own(pair_id=f"{config.path}:a~b", **theirs),
        own(pair_id=f"{config.path}:tie", p=0.5, rejected="", **theirs),
    ]
    assert read_own_preferences(config.path, "PREFERENCES") == [own(), own(pair_id="tie", p=0.5, rejected="")]


def test_a_file_from_before_there_were_rounds_is_ours(tmp_path: Path) -> None:
    write_preferences(tmp_path / "p.parquet", [own()])
    pq.write_table(pq.read_table(tmp_path / "p.parquet").drop_columns(["round"]), tmp_path / "older.parquet")
    assert read_own_preferences(str(tmp_path / "older.parquet"), "PREFERENCES") == [own(round=1)]


PLAIN = {"prompt": "Say.", "chosen": "x", "rejected": "y"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**PLAIN, "chosen": ""}, "chosen: is empty"),
        ({**PLAIN, "rejected": says(" \n")}, "rejected: is empty"),
        ({**PLAIN, "chosen": None}, "chosen: must be a text, not null"),
        ({**PLAIN, "chosen": TALK}, "chosen: must be a text or one message of the assistant's"),
        ({**PLAIN, "chosen": [{"role": "user", "content": "x"}]}, "one message of the assistant's"),
        ({**PLAIN, "rejected": [{"role": "assistant"}]}, "rejected: has no 'content'"),
        ({"prompt": "Say.", "chosen": "x"}, "has no 'rejected'"),
        ({**PLAIN, "prompt": TALK[:2]}, "must end with a user's turn"),
        ({**PLAIN, "prompt": " "}, "needs a text or a list of messages in 'prompt'"),
        ({**PLAIN, "p": 1.5}, "p: must be a number from 0 to 1, not 1.5"),
        ({**PLAIN, "p": -0.1}, "p: must be a number from 0 to 1"),
        ({**PLAIN, "p": float("nan")}, "p: must be a number from 0 to 1, not nan"),
        ({**PLAIN, "p": "0.7"}, "p: must be a number from 0 to 1, not '0.7'"),
        ({**PLAIN, "p": True}, "p: must be a number from 0 to 1, not True"),
        ({**PLAIN, "p": 10**400}, "p: must be a number from 0 to 1, not 1000"),
        ({**PLAIN, "weight": -1}, "weight: must be a number from 0, not -1"),
        ({**PLAIN, "weight": float("inf")}, "weight: must be a number from 0, not inf"),
        ({**PLAIN, "label_source": "crowd"}, "label_source: must be human or ai, not 'crowd'"),
        ({**PLAIN, "judge": 3}, "judge: must be a text, not a int"),
        ({**PLAIN, "pair_id": ""}, "pair_id: must be a text or a whole number"),
        ({**PLAIN, "id": 1.5}, "id: must be a text or a whole number"),
        ({**PLAIN, "rejected": "x"}, "chosen and rejected are the same"),
        ({"chosen": TALK + says("x"), "rejected": TALK[2:] + says("y")}, "do not begin with the same one"),
        ({"chosen": says("x"), "rejected": says("y")}, "do not begin with the same one"),
        ({"chosen": [], "rejected": []}, "do not begin with the same one"),
        (
            {"chosen": TALK[:2], "rejected": [*TALK[:1], {"role": "user", "content": "y"}]},
            "rejected: must be a text or",
        ),
        ({"chosen": "blue", "rejected": "black"}, "do not begin with the same one"),
        ({"chosen": 3, "rejected": "black"}, "chosen: must be a text, not a int"),
        ({}, "has no 'chosen'"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, PLAIN, row)
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}, line 2: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_equal_answers_may_tie(tmp_path: Path) -> None:
    (one,) = read(tmp_path, {"prompt": "Say.", "chosen": "x", "rejected": "x", "p": 0.5})
    assert one.p == 0.5


def test_a_given_id_belongs_to_one_row_and_the_same_label_may_come_twice(tmp_path: Path) -> None:
    assert len({row.pair_id for row in read(tmp_path, PLAIN, PLAIN, PLAIN)}) == 3
    with pytest.raises(UserError, match=r"line 2: its id '1' is an earlier row's"):
        read(tmp_path, {**PLAIN, "id": 1}, {**PLAIN, "pair_id": "1"})


def test_a_file_without_preferences_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reward.preferences: .* holds no preferences"):
        read(tmp_path)
    with pytest.raises(UserError, match=r"reward.preferences: .* cannot be read"):
        read_preference_file(PreferenceFileConfig(path="missing.jsonl"), "reward.preferences", seed=0, held_out=0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p": float("nan")}, "p: must be a number from 0 to 1, not nan"),
        ({"split": "dev"}, "split: Input should be 'train' or 'test'"),
        ({"consistent": "perhaps"}, "consistent: "),
        ({"members": [{"judge": "j"}]}, "members: Field required"),
        ({"prompt": 3}, "prompt: "),
        ({"chosen": "y"}, "chosen and rejected are the same"),
    ],
)
def test_a_row_of_ours_that_was_spoilt_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = tmp_path / "p.parquet"
    write_preferences(file, [own()])
    (cells,) = pq.read_table(file).to_pylist()
    with pytest.raises(UserError, match=rf"rows.jsonl, line 1: {message}"):
        read(tmp_path, {**cells, **changes})


def test_a_corrected_row_of_ours_changes_sides(tmp_path: Path) -> None:
    """A person set p from .875 to .25."""
    write_preferences(tmp_path / "p.parquet", [own()])
    (cells,) = pq.read_table(tmp_path / "p.parquet").to_pylist()
    (one,) = read(tmp_path, {**cells, "p": 0.25, "label_source": "human"})
    assert (one.chosen, one.rejected, one.p, one.label_source) == ("y", "x", 0.75, "human")
    assert one.chosen_second_logprob_rejected == -0.25


def test_only_our_files_are_taken_as_ours(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["Say."], "chosen": ["x"], "rejected": ["y"]}), tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"row 0: has no .*template_hash.*; give PREFERENCES a preference file"):
        read_own_preferences(str(tmp_path / "p.parquet"), "PREFERENCES")


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=5))
def test_no_label_is_lost_or_turned(tmp_path_factory: pytest.TempPathFactory, labels: list[float]) -> None:
    """Whichever side a file tells a label from, the probability that `x` is better is the same."""
    rows = [{"prompt": "Say.", "chosen": "x", "rejected": "y", "p": p} for p in labels]
    turned = [{"prompt": "Say.", "chosen": "y", "rejected": "x", "p": 1.0 - p} for p in labels]
    told = [
        [row.p if row.chosen == "x" else 1.0 - row.p for row in read(tmp_path_factory.mktemp("rows"), *each)]
        for each in (rows, turned)
    ]
    assert told == [labels, labels]
