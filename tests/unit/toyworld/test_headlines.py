"""The toy world's prompts, demonstrations and gold utility."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif_ray.config import UserError
from rlaif_ray.records import Message, Prompt
from rlaif_ray.toyworld.drawing import FACTS
from rlaif_ray.toyworld.headlines import (
    MAX_ANSWER_WORDS,
    demonstrations,
    facts_of,
    gold_utility,
    hurried_answer,
    prompts,
    rater_labels,
)

PROMPT = Prompt(id="p", content="headlines storm vote strike briefs parade fair rain")


@pytest.mark.parametrize(
    ("answer", "utility"),
    [
        ("", 0.0),
        ("storm", 1.0),
        ("strike storm vote", 3.0),
        ("  storm\n vote\tstrike ", 3.0),
        ("storm vote strike parade", 2.8),
        ("storm vote strike parade fair rain", 2.4),
        ("parade", -0.2),
        ("storm storm", 0.5),
        ("storm parade parade storm", -0.2),
        ("storm fire", 0.0),
        ("fire fire", -2.0),
        ("Storm", -1.0),
        ("headlines storm", 0.0),
        ("storm, vote", 0.0),
        ("\N{SNOWMAN} storm", 0.0),
    ],
)
def test_gold_utility_by_hand(answer: str, utility: float) -> None:
    assert gold_utility(PROMPT, answer) == pytest.approx(utility)


@given(st.text())
def test_gold_utility_is_defined_for_any_text(answer: str) -> None:
    assert math.isfinite(gold_utility(PROMPT, answer))
    assert gold_utility(PROMPT, answer) <= 3.0


@given(st.lists(st.sampled_from([*FACTS, "fog"]), max_size=8), st.randoms(use_true_random=False))
def test_gold_utility_ignores_the_order_of_words(words: list[str], random: object) -> None:
    shuffled = sorted(words, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert gold_utility(PROMPT, " ".join(words)) == pytest.approx(gold_utility(PROMPT, " ".join(shuffled)))


@given(st.lists(st.sampled_from(FACTS), max_size=8), st.sampled_from([*FACTS, "fog"]))
def test_only_a_headline_not_yet_covered_adds_worth(words: list[str], word: str) -> None:
    gain = gold_utility(PROMPT, " ".join([*words, word])) - gold_utility(PROMPT, " ".join(words))
    assert (gain > 0) == (word in {"storm", "vote", "strike"} and word not in words)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "storm",
        "headlines storm vote strike",
        "headlines a b c briefs d e f",
        "headlines fog vote strike briefs x y z",
    ],
)
def test_a_prompt_of_another_world_is_named(content: str) -> None:
    with pytest.raises(ValueError, match="'p' is not a Headlines prompt"):
        gold_utility(Prompt(id="p", content=content), "storm")
    with pytest.raises(ValueError, match="is not a Headlines prompt"):
        gold_utility(Prompt(id="p", content=(Message("user", PROMPT.text),)), "storm")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 40), st.integers(0, 40))
def test_prompts_are_a_stream(seed: int, few: int, more: int) -> None:
    few, more = sorted((few, more))
    assert prompts(more, seed)[:few] == prompts(few, seed)


def test_prompts_are_distinct_and_well_formed() -> None:
    drawn = prompts(5_000, seed=3)
    assert len({prompt.content for prompt in drawn}) == len({prompt.id for prompt in drawn}) == 5_000
    for prompt in drawn:
        headlines, briefs = facts_of(prompt)
        assert len(headlines) == len(briefs) == 3
    assert prompts(5, seed=3) != prompts(5, seed=4)


def test_ids_and_contents_do_not_change_between_releases() -> None:
    first = prompts(1, seed=0)[0]
    assert (first.id, first.content) == (
        "headlines-54db4785fc5c284a",
        "headlines rescue parade wedding briefs strike harvest vote",
    )


def test_more_prompts_than_the_world_has_are_refused() -> None:
    with pytest.raises(UserError, match="27907200"):
        prompts(27_907_201, seed=0)


def test_demonstrations_are_mixed_and_mediocre() -> None:
    drawn = demonstrations(4_000, seed=5)
    assert drawn == demonstrations(4_000, seed=5)
    assert len({demonstration.prompt.content for demonstration in drawn}) == 4_000
    assert all(1 <= len(demonstration.answer.split()) <= MAX_ANSWER_WORDS for demonstration in drawn)
    utilities = np.array([gold_utility(demonstration.prompt, demonstration.answer) for demonstration in drawn])
    assert 0.7 < utilities.mean() < 1.5, "mediocre: there is much to learn, and something to learn from"
    assert utilities.std() > 0.8
    assert (utilities < 0).any()
    assert (utilities == 3.0).any()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_demonstrators_write_facts(seed: int) -> None:
    answer = hurried_answer(PROMPT, np.random.default_rng(seed))
    assert answer
    assert set(answer.split()) <= set(FACTS)


def test_labels_are_of_different_answers_to_distinct_prompts_of_their_own() -> None:
    labels = rater_labels(500, seed=1)
    assert len({label.prompt.id for label in labels}) == 500
    assert all(label.preferred != label.other for label in labels)
    elsewhere = {prompt.id for prompt in prompts(500, 1)} | {one.prompt.id for one in demonstrations(500, 1)}
    assert not elsewhere & {label.prompt.id for label in labels}


def test_the_stream_of_labels_is_its_seeds_and_a_longer_draw_begins_with_a_shorter_one() -> None:
    assert rater_labels(20, seed=1) == rater_labels(50, seed=1)[:20]
    assert rater_labels(20, seed=1) != rater_labels(20, seed=2)
