"""Simulated people's labels."""

import math

import pytest

from rlaif_ray.toyworld.headlines import gold_utility, rater_labels
from rlaif_ray.toyworld.raters import RATER_NOISE, first_probability


def test_raters_are_noisy_and_lean_to_the_first() -> None:
    assert first_probability(0.0) == pytest.approx(1 / (1 + math.exp(-0.6)))
    assert first_probability(1.0) == pytest.approx(1 / (1 + math.exp(-(1 / 0.45 + 0.6))))
    assert first_probability(-5_000.0) == 0.0
    assert first_probability(5_000.0) == 1.0


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
