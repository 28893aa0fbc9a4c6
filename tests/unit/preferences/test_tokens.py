from typing import Any

import pytest
from preference_records import row
from small_models import WORDS

from rlaif_ray.config import UserError
from rlaif_ray.policy.model import scratch_tokenizer
from rlaif_ray.preferences.dataset import PreferenceRow
from rlaif_ray.preferences.tokens import labelled_pairs
from rlaif_ray.records import LabelledPair, Message
from rlaif_ray.samples import Sample

STOP = 99
SAMPLES = {
    name: Sample(name, "prompt", "one two", text, (1, 2), tokens, "stop")
    for name, text, tokens in (("a", "three", (7, 7, 3)), ("b", "four five", (8, 3)))
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return scratch_tokenizer([WORDS])


def told(pair_id: str = "pair", **changes: Any) -> PreferenceRow:
    return row(
        **{
            "pair_id": pair_id,
            "prompt": "one two",
            "chosen": "three",
            "rejected": "four five",
            "weight": 0.5,
            **changes,
        }
    )


def encoded(tokenizer: Any, *rows: PreferenceRow, **changes: Any) -> list[LabelledPair]:
    settings = {"stop": STOP, "own_vocabulary": True, "labels": "soft", "max_tokens": None} | changes
    return labelled_pairs(rows, SAMPLES, tokenizer, **settings)


def words(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.convert_tokens_to_ids(text.split()))


def test_sampled_answers_keep_the_ids_that_were_drawn(tokenizer: Any) -> None:
    """The ids 7, 7, 3 are not those of the text `three`, and are kept all the same."""
    drawn = told(chosen_sample="a", rejected_sample="b")
    assert encoded(tokenizer, drawn) == [LabelledPair("pair", "prompt", (1, 2), (7, 7, 3), (8, 3), 0.75, 0.5)]


@pytest.mark.parametrize(
    ("samples", "own_vocabulary"),
    [((None, None), True), (("a", "unknown"), True), (("a", "b"), False)],
    ids=["from a file", "not all at hand", "another vocabulary"],
)
def test_all_else_is_encoded_from_text(
    tokenizer: Any, samples: tuple[str | None, str | None], own_vocabulary: bool
) -> None:
    one = told(chosen_sample=samples[0], rejected_sample=samples[1])
    (pair,) = encoded(tokenizer, one, own_vocabulary=own_vocabulary)
    assert pair.prompt == tuple(tokenizer("one two")["input_ids"])
    assert (pair.answer_a, pair.answer_b) == (
        (*words(tokenizer, "three"), STOP),
        (*words(tokenizer, "four five"), STOP),
    )
    assert len({*pair.prompt, *pair.answer_a, *pair.answer_b}) >= 6, "every word has an id of its own"


def test_conversations_go_through_the_chat_template() -> None:
    """Two turns and a word for the assistant's; without a template there is no way to encode them."""
    talk = {
        "prompt": (Message("user", "one"), Message("assistant", "two"), Message("user", "three")),
        "chosen": (Message("assistant", "four"),),
        "rejected": (Message("assistant", "five"),),
    }
    tokenizer = scratch_tokenizer([WORDS])
    with pytest.raises(UserError, match="no chat template"):
        encoded(tokenizer, told(**talk))
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}ten"
    (pair,) = encoded(tokenizer, told(**talk))
    assert [number for number in pair.prompt if number in words(tokenizer, WORDS)] == [
        *words(tokenizer, "one two three ten")
    ]
    assert pair.answer_a == (*words(tokenizer, "four"), STOP)


def test_hard_labels_are_verdicts_and_ties_are_none(tokenizer: Any) -> None:
    both = [told("sure"), told("tie", p=0.5)]
    assert [(pair.id, pair.p) for pair in encoded(tokenizer, *both)] == [("sure", 0.75), ("tie", 0.5)]
    assert [(pair.id, pair.p) for pair in encoded(tokenizer, *both, labels="hard")] == [("sure", 1.0)]


def test_pairs_are_sorted_by_id(tokenizer: Any) -> None:
    assert [pair.id for pair in encoded(tokenizer, told("c"), told("a"), told("b"))] == ["a", "b", "c"]


def test_a_pair_is_as_long_as_its_prompt_and_longer_answer(tokenizer: Any) -> None:
    """The second answer is the longer one: two words and a stop token."""
    longest = len(tokenizer("one two")["input_ids"]) + 3
    assert len(encoded(tokenizer, told(), max_tokens=longest)) == 1
    assert encoded(tokenizer, told(), max_tokens=longest - 1) == []
