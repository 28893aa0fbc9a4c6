"""Calibration: values worked out by hand, and properties that hold for any input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.evaluation.calibration import calibration
from rlaif_ray.evaluation.statistics import proportion

PAIRS = st.lists(st.tuples(st.floats(-60, 60), st.floats(0, 1), st.booleans()), min_size=1, max_size=40)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def all_valid(count: int) -> np.ndarray:
    return np.ones(count, dtype=bool)


def arrays(pairs: list[tuple[float, float, bool]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    margins, outcomes, valid = zip(*pairs, strict=True)
    return np.array(margins), np.array(outcomes), np.array(valid, dtype=bool)


def test_four_pairs_by_hand() -> None:
    """Predictions 0.9, 0.9, 0.2 and 0.6 for a, who wins, loses, loses and ties. From the preferred side that is 0.9
    won, 0.9 lost, 0.8 won and 0.6 tied: bins of 0.9 to 0.95 (mean 0.9, outcome 1/2), 0.8 to 0.85 (0.8, 1) and 0.6 to
    0.65 (0.6, 1/2). ECE = (2 * 0.4 + 0.2 + 0.1) / 4. Brier = (0.01 + 0.81 + 0.04 + 0.01) / 4. The loss is
    -(ln 0.9 + ln 0.1 + ln 0.8 + (ln 0.6 + ln 0.4) / 2) / 4. Logits are a hair further from 0, so that a rounding
    leaves no prediction on the wrong side of its bin's edge."""
    margins = np.array([logit(p) for p in (0.9, 0.9, 0.2, 0.6)]) * (1 + 1e-12)
    found = calibration(margins, np.array([1, 0, 0, 0.5]), all_valid(4))
    assert found is not None
    filled = [each for each in found.bins if each.count]
    assert [(round(each.low, 9), round(each.high, 9), each.count) for each in filled] == [
        (0.6, 0.65, 1),
        (0.8, 0.85, 1),
        (0.9, 0.95, 2),
    ]
    assert [each.prediction for each in filled] == pytest.approx([0.6, 0.8, 0.9])
    assert [each.outcome for each in filled] == [proportion(0.5, 1), proportion(1, 1), proportion(1, 2)]
    assert found.error == pytest.approx(1.1 / 4)
    assert found.brier == pytest.approx(0.87 / 4)
    half = (math.log(0.6) + math.log(0.4)) / 2
    assert found.loss == pytest.approx(-(math.log(0.9) + math.log(0.1) + math.log(0.8) + half) / 4)
    assert (found.counted, found.invalid) == (4, 0)


def test_soft_outcomes_are_fractions_of_a_win() -> None:
    """Predictions of 3/4 for answers whose labels are 0.7 and 0.9: the bin's outcome is 0.8, the gap 0.05."""
    found = calibration(np.full(2, logit(0.75) * (1 + 1e-12)), np.array([0.7, 0.9]), all_valid(2))
    assert found is not None
    (filled,) = [each for each in found.bins if each.count]
    assert filled.outcome == proportion(1.6, 2)
    assert found.error == pytest.approx(0.05)


def test_a_model_without_an_opinion_is_calibrated_whoever_wins() -> None:
    """At d = 0 the prediction is 1/2 for either side: no calibration error, a Brier of 1/4, a loss of ln 2."""
    found = calibration(np.zeros(3), np.array([1, 1, 1]), all_valid(3))
    assert found is not None
    assert (found.error, found.brier, found.loss) == (0, 0.25, pytest.approx(math.log(2)))
    assert found.bins[0].count == 3


def test_a_prediction_of_certainty_lies_in_the_last_bin_and_its_failure_is_a_finite_loss() -> None:
    found = calibration(np.array([1000.0]), np.array([0.0]), all_valid(1))
    assert found is not None
    assert (found.bins[-1].count, found.error, found.brier, found.loss) == (1, 1.0, 1.0, 1000.0)


def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_has_not() -> None:
    """20,000 coins thrown by their own probabilities; then the same with logits three times too large."""
    generator = np.random.default_rng(0)
    margins = generator.normal(0, 2, 20_000)
    outcomes = (generator.random(20_000) < 1 / (1 + np.exp(-margins))).astype(float)
    honest = calibration(margins, outcomes, all_valid(20_000))
    boasting = calibration(3 * margins, outcomes, all_valid(20_000))
    assert honest is not None
    assert boasting is not None
    assert honest.error < 0.015
    assert boasting.error > 0.08


def test_bad_input_is_refused_and_nothing_gives_nothing() -> None:
    with pytest.raises(ValueError, match="do not match"):
        calibration(np.zeros(2), np.zeros(1), all_valid(1))
    with pytest.raises(ValueError, match="not finite"):
        calibration(np.array([np.nan]), np.array([1.0]), all_valid(1))
    for outcome in (1.5, -0.1, np.nan):
        with pytest.raises(ValueError, match="outside"):
            calibration(np.zeros(1), np.array([outcome]), all_valid(1))
    assert calibration(np.array([np.nan]), np.array([np.nan]), np.array([False])) is None


@given(PAIRS)
def test_it_does_not_matter_which_answer_is_called_a(pairs: list[tuple[float, float, bool]]) -> None:
    margins, outcomes, valid = arrays(pairs)
    # Only some are turned round, so that a mean over a leaning of the whole cannot hide anything.
    turned = np.arange(len(pairs)) % 2 == 0
    here = calibration(margins, outcomes, valid)
    there = calibration(np.where(turned, -margins, margins), np.where(turned, 1 - outcomes, outcomes), valid)
    if here is None or there is None:
        assert here is there
        return
    assert (there.error, there.brier, there.loss) == pytest.approx((here.error, here.brier, here.loss), abs=1e-9)
    for one, other in zip(here.bins, there.bins, strict=True):
        assert (one.count, one.prediction) == (other.count, pytest.approx(other.prediction))
        assert (one.outcome is None) == (other.outcome is None)
        if one.outcome is not None and other.outcome is not None:
            assert one.outcome.value == pytest.approx(other.outcome.value, abs=1e-9)


@given(PAIRS)
def test_the_loss_is_torchs_cross_entropy(pairs: list[tuple[float, float, bool]]) -> None:
    margins, outcomes, _ = arrays(pairs)
    found = calibration(margins, outcomes, all_valid(len(pairs)))
    assert found is not None
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(torch.tensor(margins), torch.tensor(outcomes))
    assert found.loss == pytest.approx(float(theirs), rel=1e-9, abs=1e-12)


@given(PAIRS, st.randoms(use_true_random=False))
def test_the_figures_keep_their_bounds_and_no_invalid_pair_or_order_enters_them(pairs, random) -> None:
    margins, outcomes, valid = arrays(pairs)
    found = calibration(margins, outcomes, valid)
    assert found == calibration(np.where(valid, margins, np.nan), np.where(valid, outcomes, 7), valid)
    if found is None:
        return
    assert sum(each.count for each in found.bins) == found.counted == valid.sum()
    assert found.invalid == (~valid).sum()
    assert 0 <= found.error <= 1
    assert 0 <= found.brier <= 1
    # An expected gap between means is no larger than the root of the mean squared gap.
    assert found.error <= math.sqrt(found.brier) + 1e-9
    for each in found.bins:
        assert each.prediction is None or each.low - 1e-9 <= each.prediction <= each.high + 1e-9
    order = random.sample(range(len(pairs)), len(pairs))
    again = calibration(margins[order], outcomes[order], valid[order])
    assert again is not None
    assert (again.error, again.loss) == pytest.approx((found.error, found.loss), abs=1e-9)
