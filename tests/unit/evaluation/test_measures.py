"""The measures: values worked out by hand, and properties that hold for any input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif_ray.evaluation.measures import (
    Agreement,
    kl_per_answer,
    labeler_alignment,
    mean_length,
    outcome_of_preference,
    outcomes_of_margins,
    position_consistency,
    reward_accuracy,
)
from rlaif_ray.evaluation.statistics import proportion
from rlaif_ray.records import Outcome, Pair, Preference, Prompt, offsets_of

VALID = np.ones(4, dtype=bool)


def preference(outcome: Outcome, p: float | None, consistent: bool | None) -> Preference:
    return Preference(Pair("1", Prompt("1", "q"), "a", "b"), outcome, "", p, consistent, ())


def test_alignment_counts_agreement_and_half_for_an_undecided_labeler() -> None:
    # agrees, agrees, disagrees, undecided: 2.5 of 4
    found = labeler_alignment(np.array([0.9, 0.2, 0.8, 0.5]), np.array([1.0, -0.3, -2.0, 1.0]), VALID)
    assert found == Agreement(share=proportion(2.5, 4), counted=4, reference_ties=0, invalid=0)


def test_alignment_leaves_out_gold_ties_and_unscored_pairs_and_counts_them() -> None:
    valid = np.array([True, True, False, False])
    found = labeler_alignment(np.array([0.9, 0.1, np.nan, np.nan]), np.array([1.0, 0.0, 1.0, 0.0]), valid)
    assert found == Agreement(share=proportion(1, 1), counted=1, reference_ties=1, invalid=2)


def test_alignment_without_a_countable_pair_is_unmeasured() -> None:
    assert labeler_alignment(np.array([0.9]), np.array([0.0]), np.array([True])).share is None


def test_a_valid_pair_without_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not a number"):
        labeler_alignment(np.array([np.nan]), np.array([1.0]), np.array([True]))
    with pytest.raises(ValueError, match="do not match"):
        labeler_alignment(np.array([0.5]), np.array([1.0, 1.0]), np.array([True]))


def test_reward_accuracy_counts_equal_scores_half() -> None:
    # right, wrong, equal, reference tie: 1.5 of 3
    found = reward_accuracy(np.array([1, -2, 0, 2]), np.array([0.2, 0.1, -0.4, 0]), VALID)
    assert found == Agreement(share=proportion(1.5, 3), counted=3, reference_ties=1, invalid=0)


def test_position_consistency_leaves_out_pairs_with_an_order_missing() -> None:
    consistent = np.array([True, True, False, True])
    assert position_consistency(consistent, np.array([True, True, True, False])) == proportion(2, 3)
    assert position_consistency(consistent, ~VALID) is None


def test_kl_sums_over_tokens_and_averages_over_answers() -> None:
    # answers of 2, 0 and 1 tokens: (.5 + .25), 0 and -.3, mean .15
    policy, reference = np.array([-1.0, -0.5, -0.8]), np.array([-1.5, -0.75, -0.5])
    found = kl_per_answer(policy, reference, offsets_of([2, 0, 1]), np.ones(3, dtype=bool), ["a", "b", "c"], seed=0)
    assert found is not None
    assert found.value == pytest.approx(0.15)
    assert found.low == pytest.approx(-0.3, abs=1e-9)
    assert found.high == pytest.approx(0.75, abs=1e-9)


def test_kl_of_an_invalid_answer_stays_out() -> None:
    policy, reference = np.array([np.nan, -1.0, -2.0]), np.array([-1.0, -1.5, -2.25])
    found = kl_per_answer(policy, reference, offsets_of([1, 1, 1]), np.array([False, True, True]), list("abc"), seed=0)
    assert found is not None
    assert found.value == pytest.approx(0.375)


def test_kl_refuses_what_does_not_fit_together() -> None:
    with pytest.raises(ValueError, match="do not match"):
        kl_per_answer(np.zeros(3), np.zeros(2), offsets_of([3]), np.array([True]), ["a"], seed=0)
    with pytest.raises(ValueError, match="not finite"):
        kl_per_answer(np.array([np.nan]), np.zeros(1), offsets_of([1]), np.array([True]), ["a"], seed=0)


def test_mean_length_counts_valid_answers_only() -> None:
    found = mean_length(offsets_of([2, 9, 4]), np.array([True, False, True]), ["a", "b", "c"], seed=0)
    assert found is not None
    assert found.value == 3.0


def test_outcomes_of_margins() -> None:
    assert outcomes_of_margins(np.array([0.2, -3.0, 0.0])).tolist() == [1.0, 0.0, 0.5]
    assert np.isnan(outcomes_of_margins(np.array([np.nan]))).all()


@pytest.mark.parametrize(
    ("outcome", "p", "consistent", "expected"),
    [
        (Outcome.SCORED, 0.7, True, 1.0),
        (Outcome.SCORED, 0.2, True, 0.0),
        (Outcome.SCORED, 0.7, False, 0.5),
        (Outcome.SCORED, 0.5, True, 0.5),
        (Outcome.SCORED, 0.7, None, 1.0),
        (Outcome.ABSTAINED, None, None, None),
        (Outcome.FAILED, None, None, None),
    ],
)
def test_outcome_of_a_preference(
    outcome: Outcome, p: float | None, consistent: bool | None, expected: float | None
) -> None:
    assert outcome_of_preference(preference(outcome, p, consistent)) == expected


PAIRS = st.lists(st.tuples(st.floats(0, 1), st.integers(-3, 3), st.booleans()), max_size=60)


@given(pairs=PAIRS)
def test_swapping_the_answers_changes_no_alignment_and_all_pairs_are_accounted_for(
    pairs: list[tuple[float, int, bool]],
) -> None:
    # Quarters are exact in binary, so that 1 - p swaps an answer's place without rounding.
    p = np.array([round(4 * p) / 4 for p, _, _ in pairs])
    gold = np.array([float(gold) for _, gold, _ in pairs])
    valid = np.array([valid for _, _, valid in pairs], dtype=bool)
    found = labeler_alignment(p, gold, valid)
    assert found == labeler_alignment(1 - p, -gold, valid)
    assert found.counted + found.reference_ties + found.invalid == len(pairs)


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(0, 6), min_size=2, max_size=20), data=st.data())
def test_a_policy_that_equals_its_reference_has_no_kl(lengths: list[int], data: st.DataObject) -> None:
    total = sum(lengths)
    logprobs = np.array(data.draw(st.lists(st.floats(-20, 0), min_size=total, max_size=total)))
    prompts = [str(number) for number in range(len(lengths))]
    valid = np.ones(len(lengths), dtype=bool)
    found = kl_per_answer(logprobs, logprobs, offsets_of(lengths), valid, prompts, seed=0)
    assert found is not None
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
