"""The judge's training corpus is the prompt that labelling renders, and its labels are the simulated raters'."""

from __future__ import annotations

import numpy as np
import pytest

from rlaif_ray.judge.templates import load_template
from rlaif_ray.records import Order, Pair, Prompt
from rlaif_ray.toyworld import judge_training
from rlaif_ray.toyworld.drawing import FACTS
from rlaif_ray.toyworld.headlines import draw_facts, gold_utility
from rlaif_ray.toyworld.judge_training import CHAT_TEMPLATE, VOCABULARY, Answers
from rlaif_ray.toyworld.small_llama import UNLEARNT, build_tokenizer

STRAY_WORDS = ("fog", "headlines", "briefs", "1", "2")
ROWS = 300
TOKENIZER = build_tokenizer(VOCABULARY, CHAT_TEMPLATE)


def text_of(answers: Answers, row: int) -> str:
    words = [*FACTS, *STRAY_WORDS]
    return " ".join(words[index] for index in answers.words[row, : answers.lengths[row]])


def prompt_of(facts: np.ndarray) -> Prompt:
    words = [FACTS[index] for index in facts]
    return Prompt(id="p", content=" ".join(["headlines", *words[:3], "briefs", *words[3:]]))


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, Answers, Answers]:
    rng = np.random.default_rng(0)
    facts = draw_facts(ROWS, rng)
    return facts, *judge_training.draw_pair(facts, rng)


def test_fast_token_ids_are_those_of_the_template(drawn: tuple[np.ndarray, Answers, Answers]) -> None:
    facts, first, second = drawn
    template, tokenizer = load_template("headlines"), TOKENIZER
    tokens, lengths = judge_training.encode_pairs(facts, first, second)
    for row in range(ROWS):
        pair = Pair("p", prompt_of(facts[row]), text_of(first, row), text_of(second, row))
        messages = [{"role": m.role, "content": m.content} for m in template.question(pair, Order.AB).choose()]
        rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert tokens[row, : lengths[row]].tolist() == rendered
        assert rendered == tokenizer("".join(message["content"] for message in messages))["input_ids"]
        assert (tokens[row, lengths[row] :] == tokenizer.pad_token_id).all()


def test_fast_utilities_are_gold(drawn: tuple[np.ndarray, Answers, Answers]) -> None:
    facts, first, _ = drawn
    expected = [gold_utility(prompt_of(facts[row]), text_of(first, row)) for row in range(ROWS)]
    np.testing.assert_allclose(judge_training.utilities(facts, first), expected, atol=1e-12)


def test_answers_cover_every_quality(drawn: tuple[np.ndarray, Answers, Answers]) -> None:
    facts, first, second = drawn
    worth, other = judge_training.utilities(facts, first), judge_training.utilities(facts, second)
    assert worth.max() == pytest.approx(3.0)
    assert worth.min() < -3
    assert set(range(judge_training.LONGEST_ANSWER + 1)) == set(first.lengths.tolist())
    assert (abs(worth - other) < 0.3).mean() > 0.1, "near-ties"
    assert set(judge_training.word_kinds(facts, first).ravel().tolist()) == {0, 1, 2, 3}


def test_marks_stand_on_the_answers_words() -> None:
    batch = judge_training.draw_batch(ROWS, np.random.default_rng(1))
    (marks,) = batch.marks.values()
    marked, lengths = marks >= 0, (batch.tokens != TOKENIZER.pad_token_id).sum(axis=1)
    fact_ids = {VOCABULARY.index(fact) for fact in FACTS}
    kinds = marks % 4
    for row in range(ROWS):
        tokens, named = batch.tokens[row], batch.tokens[row, [4, 5, 6, 8, 9, 10]]
        assert marked[row].sum() == lengths[row] - 25
        assert all(token in named[:3] for token in tokens[marked[row] & (kinds[row] == 0)])
        assert all(token in named[3:] for token in tokens[marked[row] & (kinds[row] == 1)])
        outside = fact_ids - set(tokens[marked[row]].tolist()) - set(named.tolist())
        assert not set(tokens[: lengths[row]].tolist()) & outside


def test_raters_labels_follow_gold_and_lean_to_the_first() -> None:
    batch = judge_training.draw_batch(4_000, np.random.default_rng(2))
    one, two = VOCABULARY.index("1"), VOCABULARY.index("2")
    rows, places = np.nonzero(batch.targets != UNLEARNT)
    assert rows.tolist() == list(range(4_000))
    assert (places == (batch.tokens != TOKENIZER.pad_token_id).sum(axis=1) - 1).all()
    labels = batch.targets[rows, places]
    assert set(labels.tolist()) == {one, two}
    assert 0.53 < (labels == one).mean() < 0.65


def test_special_tokens_are_distinct() -> None:
    tokenizer = TOKENIZER
    ids = {tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert len(ids) == 4
    assert tokenizer("begin_5925daf8 1 2")["input_ids"] == [
        tokenizer.unk_token_id,
        VOCABULARY.index("1"),
        VOCABULARY.index("2"),
    ]
