"""Estimates: values worked out by hand, and properties that hold for any input."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif_ray.evaluation.statistics import mean, proportion, win_rate
from rlaif_ray.records import Estimate

OUTCOMES = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.booleans(), st.sampled_from("abcdef")), max_size=40)


def ids(count: int) -> list[str]:
    return [f"p{number}" for number in range(count)]


def all_valid(count: int) -> np.ndarray:
    return np.ones(count, dtype=bool)


def test_wilson_interval_of_8_in_10() -> None:
    # centre (.8 + 3.841459/20) / 1.3841459 = .7167369; half 1.959964/1.3841459 * sqrt(.016 + .00960365) = .2265771
    estimate = proportion(8, 10)
    assert estimate is not None
    assert estimate.value == 0.8
    assert estimate.low == pytest.approx(0.4901625, abs=1e-6)
    assert estimate.high == pytest.approx(0.9433178, abs=1e-6)


def test_wilson_interval_of_none_in_10_starts_at_0() -> None:
    # At 0 the interval is [0, z^2 / (n + z^2)].
    estimate = proportion(0, 10)
    assert estimate is not None
    assert (estimate.value, estimate.low) == (0.0, 0.0)
    assert estimate.high == pytest.approx(3.8414588 / 13.8414588, abs=1e-7)


def test_no_trials_give_no_estimate() -> None:
    assert proportion(0, 0) is None


@pytest.mark.parametrize(("successes", "trials"), [(-1, 3), (4, 3), (math.nan, 3)])
def test_impossible_counts_are_refused(successes: float, trials: int) -> None:
    with pytest.raises(ValueError, match="between 0 and trials"):
        proportion(successes, trials)


def test_ties_count_half() -> None:
    estimate = win_rate(np.array([1, 0.5, 0, 1]), all_valid(4), ids(4), seed=0)
    assert estimate is not None
    assert estimate.value == 0.625


def test_bootstrap_over_two_prompts_spans_both() -> None:
    # Resamples are {0, 0}, {0, 1} and {1, 1} with probabilities 1/4, 1/2, 1/4: both tails reach 2.5 %.
    assert win_rate(np.array([1.0, 0.0]), all_valid(2), ids(2), seed=0) == Estimate(0.5, 0.0, 1.0)


def test_bootstrap_interval_of_many_prompts_is_the_binomial_one() -> None:
    # 600 wins of 1000: standard error sqrt(.6 * .4 / 1000) = .015492, so .6 -+ .03036.
    estimate = win_rate(np.repeat([1.0, 0.0], [600, 400]), all_valid(1000), ids(1000), seed=0)
    assert estimate is not None
    assert estimate.low == pytest.approx(0.5696, abs=0.003)
    assert estimate.high == pytest.approx(0.6304, abs=0.003)


def test_prompts_are_resampled_whole() -> None:
    # 4 answers to a prompt that agree carry one prompt's information: the interval is that of 50 prompts, not of 200.
    outcomes = np.repeat([1.0, 0.0], [25, 25])
    once = win_rate(outcomes, all_valid(50), ids(50), seed=0)
    fourfold = win_rate(np.repeat(outcomes, 4), all_valid(200), [i for i in ids(50) for _ in range(4)], seed=0)
    assert once is not None
    assert fourfold is not None
    assert fourfold.high - fourfold.low == pytest.approx(once.high - once.low, abs=1e-9)


@pytest.mark.parametrize("outcome", [0.0, 0.5, 1.0])
def test_where_all_went_the_same_way_wilson_takes_over(outcome: float) -> None:
    assert win_rate(np.full(20, outcome), all_valid(20), ids(20), seed=0) == proportion(20 * outcome, 20)


def test_an_invalid_outcome_enters_nothing() -> None:
    with_hole = win_rate(np.array([1.0, np.nan, 0.0]), np.array([True, False, True]), ids(3), seed=0)
    assert with_hole == win_rate(np.array([1.0, 0.0]), all_valid(2), ids(2), seed=0)


def test_nothing_valid_gives_no_estimate() -> None:
    assert win_rate(np.array([np.nan]), np.array([False]), ["p"], seed=0) is None
    assert win_rate(np.array([]), all_valid(0), [], seed=0) is None
    assert mean(np.array([]), all_valid(0), [], seed=0) is None


def test_what_is_no_outcome_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1, 0\.5 or 0, but 0\.7"):
        win_rate(np.array([0.7]), all_valid(1), ["p"], seed=0)
    with pytest.raises(ValueError, match="not finite"):
        win_rate(np.array([np.nan]), all_valid(1), ["p"], seed=0)
    with pytest.raises(ValueError, match="do not match"):
        win_rate(np.array([1.0]), all_valid(2), ["p"], seed=0)


def test_mean_of_known_values() -> None:
    # 1 .. 100, each its own prompt: mean 50.5, standard error 28.866 / 10, so 50.5 -+ 5.66.
    estimate = mean(np.arange(1, 101), all_valid(100), ids(100), seed=1)
    assert estimate is not None
    assert estimate.value == 50.5
    assert estimate.low == pytest.approx(44.84, abs=0.3)
    assert estimate.high == pytest.approx(56.16, abs=0.3)


def test_a_single_prompt_says_nothing_about_the_spread() -> None:
    assert mean(np.array([3.0, 5.0]), all_valid(2), ["p", "p"], seed=0) == Estimate(4.0, -math.inf, math.inf)


@given(trials=st.integers(1, 10_000), share=st.floats(0, 1))
def test_wilson_holds_its_value_and_mirrors(trials: int, share: float) -> None:
    estimate, mirrored = proportion(share * trials, trials), proportion(trials - share * trials, trials)
    assert estimate is not None
    assert mirrored is not None
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.low == pytest.approx(1 - mirrored.high, abs=1e-9)
    assert estimate.high > estimate.low


@settings(deadline=None, max_examples=30)
@given(items=OUTCOMES, seed=st.integers(0, 2**32))
def test_win_rate_holds_its_value_repeats_and_mirrors(items: list[tuple[float, bool, str]], seed: int) -> None:
    outcomes = np.array([outcome for outcome, _, _ in items])
    valid = np.array([valid for _, valid, _ in items], dtype=bool)
    prompts = [prompt for _, _, prompt in items]
    estimate = win_rate(outcomes, valid, prompts, seed=seed)
    assert estimate == win_rate(outcomes, valid, prompts, seed=seed)
    if not valid.any():
        assert estimate is None
        return
    mirrored = win_rate(1 - outcomes, valid, prompts, seed=seed)
    assert estimate is not None
    assert mirrored is not None
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.value == pytest.approx(outcomes[valid].mean())
    assert (mirrored.value, mirrored.low) == (pytest.approx(1 - estimate.value), pytest.approx(1 - estimate.high))
