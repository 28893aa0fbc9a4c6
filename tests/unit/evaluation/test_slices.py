"""Accuracy by slice: values worked out by hand, and properties that hold for any input."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.evaluation.slices import (
    AccuracySlice,
    accuracy_by_group,
    accuracy_by_length,
    accuracy_by_quintile,
    accuracy_by_range,
    ensemble_disagreement,
    length_correlation,
)
from rlaif_ray.evaluation.statistics import proportion

PAIRS = st.lists(
    st.tuples(st.integers(-3, 3), st.integers(-2, 2), st.integers(-6, 6), st.booleans()), min_size=1, max_size=40
)


def all_valid(count: int) -> np.ndarray:
    return np.ones(count, dtype=bool)


def arrays(pairs: list[tuple[int, int, int, bool]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    margins, references, lengths, valid = (np.array(values) for values in zip(*pairs, strict=True))
    return margins.astype(float), references.astype(float), lengths, valid.astype(bool)


def test_ranges_hold_their_lower_edge_and_the_last_its_upper_too() -> None:
    """Values 0, 0.5 and 1 with edges 0, 0.5 and 1: one pair (wrong) below, two (right, tied scores) from 0.5 on."""
    found = accuracy_by_range(
        np.array([-1, 2, 0]), np.array([1, 1, 1]), np.array([0, 0.5, 1]), (0.0, 0.5, 1.0), all_valid(3)
    )
    assert found == (
        AccuracySlice("0 to 0.5", proportion(0, 1), 1),
        AccuracySlice("0.5 to 1", proportion(1.5, 2), 2),
    )


def test_an_empty_range_has_no_accuracy_and_a_reference_tie_is_not_counted() -> None:
    found = accuracy_by_range(
        np.array([1, 1]), np.array([0, 1]), np.array([0.1, 0.2]), (0.0, 0.5, 1.0), np.array([True, False])
    )
    assert found == (AccuracySlice("0 to 0.5", None, 0), AccuracySlice("0.5 to 1", None, 0))


def test_quintiles_hold_a_fifth_each_and_equal_values_stay_together() -> None:
    values = np.arange(1.0, 11.0)
    assert [each.counted for each in accuracy_by_quintile(values, np.ones(10), values, all_valid(10))] == [2] * 5
    # All values equal: one edge, so there is no range to speak of; an invalid value moves no edge.
    assert accuracy_by_quintile(np.ones(4), np.ones(4), np.ones(4), all_valid(4)) == ()
    masked = np.append(values, 1e9)
    found = accuracy_by_quintile(masked, np.ones(11), masked, np.append(all_valid(10), False))
    assert [each.counted for each in found] == [2] * 5
    assert accuracy_by_quintile(np.array([np.nan]), np.ones(1), np.array([np.nan]), np.array([False])) == ()


def test_length_is_that_of_the_better_answer() -> None:
    """The better answers are longer by 4, 1, 0, -1 and -5 tokens; in the second and fifth pair b is the better one.
    The differences 4, 1, 1 and 5 have the median 2.5, so the bound is 3. The model prefers a everywhere."""
    found = accuracy_by_length(np.ones(5), np.array([1, -1, 1, 1, -1]), np.array([4, -1, 0, -1, 5]), all_valid(5))
    assert found == (
        AccuracySlice("over 3 shorter", proportion(0, 1), 1),
        AccuracySlice("up to 3 shorter", proportion(1, 1), 1),
        AccuracySlice("as long", proportion(1, 1), 1),
        AccuracySlice("up to 3 longer", proportion(0, 1), 1),
        AccuracySlice("over 3 longer", proportion(1, 1), 1),
    )


def test_groups_are_apart_and_in_order() -> None:
    found = accuracy_by_group(np.ones(3), np.array([1, -1, 1]), np.array(["human", "ai", "human"]), all_valid(3))
    assert found == (AccuracySlice("ai", proportion(0, 1), 1), AccuracySlice("human", proportion(2, 2), 2))
    rounds = accuracy_by_group(np.ones(3), np.ones(3), np.array([10, 2, 10]), all_valid(3))
    assert [(each.name, each.counted) for each in rounds] == [("2", 1), ("10", 2)]


def test_length_correlation_by_hand() -> None:
    """Margins 1, 2 and -1, lengths 3, 0 and 1: (3 - 1) / sqrt(6 * 10)."""
    found = length_correlation(np.array([1, 2, -1]), np.array([3, 0, 1]), all_valid(3))
    assert found == pytest.approx(2 / math.sqrt(60))
    assert length_correlation(np.zeros(3), np.array([3, 0, 1]), all_valid(3)) is None
    assert length_correlation(np.array([np.nan]), np.array([1]), np.array([False])) is None


def test_disagreement_by_hand() -> None:
    """Two members' margins differ by 0, 2, 4 and 6, so their standard deviations are 0, 1, 2 and 3: 1.5 on average.
    The quartiles are 0.75 and 2.25: the first pair, which the mean orders rightly, and the last, which it does not."""
    members = np.array([[1, 1], [2, 0], [5, 1], [-4, 2], [np.nan, 9]])
    found = ensemble_disagreement(members, np.ones(5), np.array([True] * 4 + [False]))
    assert found is not None
    assert found.mean == pytest.approx(1.5)
    assert found.agreeing == AccuracySlice("models agree", proportion(1, 1), 1)
    assert found.disagreeing == AccuracySlice("models disagree", proportion(0, 1), 1)


def test_one_model_cannot_disagree() -> None:
    assert ensemble_disagreement(np.ones((3, 1)), np.ones(3), all_valid(3)) is None
    assert ensemble_disagreement(np.full((1, 2), np.nan), np.ones(1), np.array([False])) is None


@given(PAIRS)
def test_which_answer_is_called_a_means_nothing_and_every_pair_is_counted_once(
    pairs: list[tuple[int, int, int, bool]],
) -> None:
    margins, references, lengths, valid = arrays(pairs)
    turned = np.where(np.arange(len(pairs)) % 2 == 0, -1, 1)
    by_length = accuracy_by_length(margins, references, lengths, valid)
    assert by_length == accuracy_by_length(turned * margins, turned * references, turned * lengths, valid)
    by_margin = accuracy_by_range(margins, references, np.abs(references), (0, 1, 2), valid)
    assert by_margin == accuracy_by_range(turned * margins, turned * references, np.abs(references), (0, 1, 2), valid)
    countable = int(np.count_nonzero(valid & (references != 0)))
    assert sum(each.counted for each in by_length) == sum(each.counted for each in by_margin) == countable
    here, there = (length_correlation(sign * margins, sign * lengths, valid) for sign in (1, turned))
    assert here == there or here == pytest.approx(there)
    assert here is None or -1 - 1e-9 <= here <= 1 + 1e-9


@given(PAIRS)
def test_what_is_invalid_enters_nothing(pairs: list[tuple[int, int, int, bool]]) -> None:
    margins, references, lengths, valid = arrays(pairs)
    masked = np.where(valid, margins, np.nan)
    strange = np.where(valid, lengths, 999)
    assert accuracy_by_length(margins, references, lengths, valid) == accuracy_by_length(
        masked, references, strange, valid
    )
    assert accuracy_by_quintile(margins, references, np.abs(margins), valid) == accuracy_by_quintile(
        masked, references, np.abs(masked), valid
    )
    assert length_correlation(margins, lengths, valid) == length_correlation(masked, strange, valid)
    members = np.stack([margins, -margins], axis=1)
    assert ensemble_disagreement(members, references, valid) == ensemble_disagreement(
        np.where(valid[:, None], members, np.nan), references, valid
    )
