import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_models import WORDS

from rlaif_ray.config import PretrainingConfig, UserError
from rlaif_ray.policy.model import scratch_tokenizer
from rlaif_ray.preferences.dataset import PreferenceRow
from rlaif_ray.preferences.pretraining import read_pretraining_pairs, score_of_votes
from rlaif_ray.preferences.tokens import labelled_pairs
from rlaif_ray.records import Message


def read(directory: Path, *rows: Any, **config: Any) -> list[PreferenceRow]:
    """What is read of rows written as JSONL."""
    file = directory / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_pretraining_pairs(PretrainingConfig(path=str(file), **config))


def ranked(**answers: float) -> dict[str, Any]:
    return {"prompt": "one two", "answers": [{"text": text, "rank": rank} for text, rank in answers.items()]}


def sides(rows: list[PreferenceRow]) -> list[tuple[Any, Any]]:
    return [(row.chosen, row.rejected) for row in rows]


def test_every_two_answers_of_different_rank_make_a_pair_and_the_first_rank_is_the_best(tmp_path: Path) -> None:
    """Ranks 2, 1, 2, 3 of a, b, c, d: all six pairs but a and c."""
    pairs = read(tmp_path, ranked(a=2, b=1, c=2, d=3))
    assert sides(pairs) == [("b", "a"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
    assert {(pair.p, pair.weight, pair.split, pair.label_source) for pair in pairs} == {(1.0, 1.0, "train", "human")}
    assert len({pair.pair_id for pair in pairs}) == 5
    assert len({pair.prompt_id for pair in pairs}) == 1


def test_a_higher_score_is_better(tmp_path: Path) -> None:
    answers = [{"text": "a", "score": -0.5}, {"text": "b", "score": 0.25}]
    talk = [{"role": "user", "content": "one"}]
    (pair,) = read(tmp_path, {"prompt": talk, "answers": answers})
    assert (pair.chosen, pair.rejected) == ((Message("assistant", "b"),), (Message("assistant", "a"),))


@pytest.mark.parametrize(
    ("votes", "accepted", "score"),
    [
        (0, False, 0),
        (1, False, 1),
        (2, False, 2),
        (4, False, 2),
        (5, False, 3),
        (1023, True, 11),
        (0, True, 1),
        (-1, False, -1),
    ],
)
def test_the_score_of_votes(votes: int, accepted: bool, score: int) -> None:
    """log2 of 1, 2, 3, 5, 6, 1024 is 0, 1, 1.58, 2.32, 2.58, 10."""
    assert score_of_votes(votes, accepted) == score


def test_votes_that_round_to_the_same_make_no_pair(tmp_path: Path) -> None:
    """Scores 2 (of 4 votes), 2 (of 2), 3 (of 4, accepted), -1: the last two stand apart, the first two do not."""
    answers = [
        {"text": "a", "votes": 4},
        {"text": "b", "votes": 2, "accepted": False},
        {"text": "c", "votes": 4, "accepted": True},
        {"text": "d", "votes": -3, "accepted": None},
    ]
    pairs = read(tmp_path, {"prompt": "one", "answers": answers})
    assert sides(pairs) == [("c", "a"), ("a", "d"), ("c", "b"), ("b", "d"), ("c", "d")]


def test_a_binarised_pair_asks_of_each_answer_whether_it_is_good(tmp_path: Path) -> None:
    pairs = read(tmp_path, ranked(a=1, b=2), binarised=True)
    assert sides(pairs) == [("GOOD: a", "BAD: a"), ("BAD: b", "GOOD: b")]
    assert len({pair.pair_id for pair in pairs}) == 2
    (talk, _) = read(tmp_path, {**ranked(a=1, b=2), "prompt": [{"role": "user", "content": "one"}]}, binarised=True)
    assert talk.chosen == (Message("assistant", "GOOD: a"),)


def test_a_preference_file_serves_too_with_its_doubts(tmp_path: Path) -> None:
    pairs = read(tmp_path, {"prompt": "one", "chosen": "a", "rejected": "b", "p": 0.25}, ranked(c=1, d=2))
    assert [(pair.chosen, pair.rejected, pair.p) for pair in pairs] == [("b", "a", 0.75), ("c", "d", 1.0)]
    assert len(read(tmp_path, ranked(c=1, d=2), ranked(e=1, f=2, g=3), limit=1)) == 1


def test_a_parquet_file_fills_what_an_answer_lacks_with_nulls(tmp_path: Path) -> None:
    answers = (
        [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}],
        [{"text": "c", "votes": 3}, {"text": "d", "votes": 0}],
    )
    pq.write_table(
        pa.Table.from_pylist([{"prompt": "one", "answers": each} for each in answers]), tmp_path / "p.parquet"
    )
    pairs = read_pretraining_pairs(PretrainingConfig(path=str(tmp_path / "p.parquet")))
    assert sides(pairs) == [("a", "b"), ("c", "d")]


def test_pairs_become_tokens_like_any_others(tmp_path: Path) -> None:
    tokenizer = scratch_tokenizer([WORDS])
    made = labelled_pairs(
        read(tmp_path, ranked(three=1, four=2)),
        {},
        tokenizer,
        stop=9,
        own_vocabulary=True,
        labels="soft",
        max_tokens=None,
    )
    assert [(pair.answer_a, pair.answer_b, pair.p) for pair in made] == [
        (
            (*tokenizer.convert_tokens_to_ids(["three"]), 9),
            (*tokenizer.convert_tokens_to_ids(["four"]), 9),
            1.0,
        )
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "one", "answers": "a"}, "answers: must be a list of objects"),
        ({"prompt": "one", "answers": ["a", "b"]}, "answers: must be a list of objects"),
        ({"prompt": "one", "answers": [{"text": "a", "rank": 1}, {"text": "b", "score": 1}]}, "need a rank each"),
        ({"prompt": "one", "answers": [{"text": "a", "rank": "1"}]}, "rank: must be a number, not '1'"),
        ({"prompt": "one", "answers": [{"rank": 1}]}, "answers: has no 'text'"),
        (
            {"prompt": "one", "answers": [{"text": "a", "votes": 1, "accepted": "yes"}]},
            "accepted: must be true or false",
        ),
        ({"answers": [{"text": "a", "rank": 1}]}, "needs a text or a list of messages in 'prompt'"),
        (ranked(a=1) | {"answers": [{"text": "a", "rank": 1}, {"text": "a", "rank": 2}]}, "two that are the same"),
        ({"prompt": "one"}, "has no 'chosen'"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, ranked(a=1, b=2), row)
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}, line 2: ")
    assert message in str(caught.value)


def test_a_file_that_prefers_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reward.pretraining.path: .* sets no answer above another"):
        read(tmp_path, ranked(a=1, b=1), ranked(c=1))
