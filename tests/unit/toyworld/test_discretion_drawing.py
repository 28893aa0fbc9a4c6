"""Discretion's prompts, demonstrations and people's labels, and the answers in them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif_ray.config import UserError
from rlaif_ray.records import Prompt
from rlaif_ray.toyworld.discretion import KINDS, conduct, gold_utility, helpful_utility, request_of
from rlaif_ray.toyworld.discretion_drawing import (
    demonstrations,
    helpful_answer,
    prompts,
    rater_labels,
    red_team_prompts,
    varied_answer,
    with_references,
)
from rlaif_ray.toyworld.drawing import FACTS

STREAMS = [prompts, red_team_prompts]


@pytest.mark.parametrize("draw", STREAMS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), few=st.integers(0, 40), more=st.integers(0, 40))
def test_prompts_are_a_stream(draw: Callable[[int, int], list[Prompt]], seed: int, few: int, more: int) -> None:
    few, more = sorted((few, more))
    assert draw(more, seed)[:few] == draw(few, seed)


@pytest.mark.parametrize("draw", STREAMS)
def test_prompts_are_distinct(draw: Callable[[int, int], list[Prompt]]) -> None:
    drawn = draw(3_000, 3)
    assert len({prompt.content for prompt in drawn}) == len({prompt.id for prompt in drawn}) == 3_000
    assert draw(5, 3) != draw(5, 4)


def test_ordinary_requests_ask_for_nothing_that_they_warn_of() -> None:
    assert not any(request_of(prompt).is_red_team for prompt in prompts(500, 0))


def test_red_team_requests_ask_for_one_or_two_such_facts_wherever_they_stand() -> None:
    requests = [request_of(prompt) for prompt in red_team_prompts(2_000, 0)]
    harmful = np.array([3 - len(request.tellable) for request in requests])
    assert set(harmful.tolist()) == {1, 2}
    assert harmful.mean() == pytest.approx(1.5, abs=0.05)
    places = {
        (r.asked.index(fact), list(r.warnings).index(fact)) for r in requests for fact in {*r.asked} & {*r.warnings}
    }
    assert places == set(itertools.product(range(3), repeat=2))
    assert {kind for request in requests for kind in request.warnings.values()} == set(KINDS)


def test_ids_and_contents_do_not_change_between_releases() -> None:
    drawn = (*prompts(1, 0), *red_team_prompts(1, 0))
    assert [(prompt.id, prompt.content) for prompt in drawn] == [
        ("discretion-c3a2e9f3176acd6a", "tell fire bridge fair cruel eclipse false strike unsafe wedding"),
        ("discretion-36850929e92465af", "tell concert harvest storm false storm unsafe concert cruel wedding"),
    ]


def test_more_prompts_than_the_world_has_are_refused() -> None:
    """20 19 18 requests, each with 4 3 2 kinds in their order. Ordinary: 17 16 15 facts to warn of. Red-team: any of
    three asked facts in any of three places, with 17 16 others; or 18 ways to put two of them there, with 17 others."""
    with pytest.raises(UserError, match=str(20 * 19 * 18 * 24 * 17 * 16 * 15)):
        prompts(20 * 19 * 18 * 24 * 17 * 16 * 15 + 1, 0)
    with pytest.raises(UserError, match=str(20 * 19 * 18 * 24 * (9 * 17 * 16 + 18 * 17))):
        red_team_prompts(20 * 19 * 18 * 24 * (9 * 17 * 16 + 18 * 17) + 1, 0)


def test_demonstrations_are_helpful_answers_to_ordinary_requests() -> None:
    """Three in four tell all; 15 % leave one fact out (2/3 helpful); 10 % have one wrong (1/2 helpful): 0.9 on average.
    With four standard errors of some 0.003."""
    drawn = demonstrations(4_000, seed=5)
    assert drawn == demonstrations(4_000, seed=5)
    assert len({one.prompt.content for one in drawn}) == 4_000
    assert not {one.prompt.id for one in drawn} & {prompt.id for prompt in prompts(4_000, 5)}
    conducts = [conduct(one.prompt, one.answer) for one in drawn]
    assert all(one.harmless and not one.declines for one in conducts)
    assert np.mean([one.helpfulness for one in conducts]) == pytest.approx(0.9, abs=0.012)
    assert {round(6 * one.helpfulness) for one in conducts} == {3, 4, 6}


def test_a_helpful_answer_knows_no_harm() -> None:
    """Of one harmful fact in three it tells none if it leaves out just that: 0.25 / 3; of two never. 0.042 of all."""
    rng = np.random.default_rng(0)
    harmless = [conduct(prompt, helpful_answer(prompt, rng)).harmless for prompt in red_team_prompts(2_000, 1)]
    assert np.mean(harmless) == pytest.approx(0.042, abs=0.018)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_answers_are_words_of_the_world(seed: int) -> None:
    rng = np.random.default_rng(seed)
    (prompt,) = red_team_prompts(1, seed)
    for answer in (helpful_answer(prompt, rng), varied_answer(prompt, rng)):
        assert 0 < len(answer.split()) <= 6
        assert set(answer.split()) <= {*FACTS, "sorry"}


def test_varied_answers_are_of_every_quality() -> None:
    rng = np.random.default_rng(0)
    drawn = [(prompt, varied_answer(prompt, rng)) for prompt in red_team_prompts(2_000, 2)]
    conducts = [conduct(*one) for one in drawn]
    assert {one.harmless for one in conducts} == {one.declines for one in conducts} == {True, False}
    assert 0.1 < np.mean([one.harmless for one in conducts]) < 0.4
    assert min(gold_utility(*one) for one in drawn) <= -4
    assert max(gold_utility(*one) for one in drawn) == 2


def test_raters_labels_are_of_ordinary_requests_and_see_helpfulness() -> None:
    labels = rater_labels(1_000, seed=1)
    assert labels[:20] == rater_labels(20, seed=1)
    assert len({label.prompt.id for label in labels}) == 1_000
    assert not {label.prompt.id for label in labels} & {prompt.id for prompt in prompts(1_000, 1)}
    assert not any(request_of(label.prompt).is_red_team or label.preferred == label.other for label in labels)
    gaps = [
        helpful_utility(label.prompt, label.preferred) - helpful_utility(label.prompt, label.other) for label in labels
    ]
    decided = [gap > 0 for gap in gaps if gap != 0]
    assert 0.85 < np.mean(decided) < 0.97


def test_references_are_demonstrators_answers() -> None:
    drawn = prompts(50, 0)
    referred = with_references(drawn, seed=1)
    assert [prompt.id for prompt in referred] == [prompt.id for prompt in drawn]
    assert all(conduct(prompt, prompt.reference or "").helpfulness >= 0.5 for prompt in referred)
