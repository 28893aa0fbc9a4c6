"""Simulated people's labels."""

import math

import pytest

from rlaif_ray.toyworld.headlines import RATER_NOISE, demonstrations, gold_utility, prompts
from rlaif_ray.toyworld.raters import rater_labels


def test_labels_are_of_different_answers_to_distinct_prompts_of_their_own() -> None:
    labels = rater_labels(500, seed=1)
    assert len({label.prompt.id for label in labels}) == 500
    assert all(label.preferred != label.other for label in labels)
    elsewhere = {prompt.id for prompt in prompts(500, 1)} | {one.prompt.id for one in demonstrations(500, 1)}
    assert not elsewhere & {label.prompt.id for label in labels}


def test_the_stream_is_its_seeds_and_a_longer_draw_begins_with_a_shorter_one() -> None:
    assert rater_labels(20, seed=1) == rater_labels(50, seed=1)[:20]
    assert rater_labels(20, seed=1) != rater_labels(20, seed=2)


def mean_over_orders(gap: float) -> float:
    """How often a rater names the better of two answers, by the closed form."""
    first, second = (1 / (1 + math.exp(-(gap / RATER_NOISE + lean))) for lean in (0.6, -0.6))
    return (first + second) / 2


def test_raters_err_as_often_as_their_noise_and_lean_say() -> None:
    """Who sees the better answer first names it with sigmoid(d / .45 + .6), who sees it second with
    sigmoid(d / .45 - .6). Labels agree with gold as often as the mean of the two, some .87, within four standard
    errors, some .02."""
    labels = rater_labels(4_000, seed=0)
    gaps = [gold_utility(one.prompt, one.preferred) - gold_utility(one.prompt, one.other) for one in labels]
    decided = [gap for gap in gaps if not math.isclose(gap, 0.0, abs_tol=1e-9)]
    assert len(decided) < len(labels), "raters decide where gold does not"
    expected = [mean_over_orders(abs(gap)) for gap in decided]
    deviation = math.sqrt(sum(p * (1 - p) for p in expected))
    assert sum(gap > 0 for gap in decided) == pytest.approx(sum(expected), abs=4 * deviation)
