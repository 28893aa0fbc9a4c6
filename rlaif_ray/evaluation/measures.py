"""What a run is measured by: the labeler's alignment and consistency, the reward model's accuracy, the policy's KL
and lengths, and the outcome of a comparison.

Every function takes a validity mask and says how much it left out. This module knows nothing of judges or models:
it sees their probabilities, scores and log-probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlaif_ray.evaluation.statistics import mean, proportion
from rlaif_ray.records import Estimate, Outcome, Preference


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often two orderings of pairs agree. `share` is None where no pair could be counted."""

    share: Estimate | None
    counted: int
    reference_ties: int  # left out: the reference calls the answers equal
    invalid: int  # left out: not scored


def labeler_alignment(p: NDArray[Any], gold_margins: NDArray[Any], valid: NDArray[np.bool_]) -> Agreement:
    """The share of pairs on which the labeler prefers what gold prefers (Lee et al. 2023, "AI labeler alignment").

    `p` (N,) is the labeler's probability that response_a is better; exactly 0.5 counts half. `gold_margins` (N,) is
    gold's utility of response_a less that of response_b (or any number with its sign, such as a human's +1 or -1);
    pairs with a margin of 0 are left out and counted. Wilson interval over pairs.
    """
    return _agreement(np.asarray(p, dtype=np.float64) - 0.5, gold_margins, valid)


def reward_accuracy(margins: NDArray[Any], reference_margins: NDArray[Any], valid: NDArray[np.bool_]) -> Agreement:
    """The share of pairs that the reward model orders as the reference does; equal scores count half.

    `margins` (N,) are r_a - r_b. `reference_margins` (N,) has the sign of the reference's preference for response_a: a
    difference of gold utilities, or a judge's p - 0.5. Pairs with a margin of 0 are left out and counted. Wilson
    interval over pairs.
    """
    return _agreement(np.asarray(margins, dtype=np.float64), reference_margins, valid)


def position_consistency(consistent: NDArray[np.bool_], valid: NDArray[np.bool_]) -> Estimate | None:
    """The share of pairs on which both presentation orders name the same answer, with its Wilson interval.

    `valid` (N,) is False where an order is missing or was not scored.
    """
    _same_length(consistent, valid)
    return proportion(int(np.count_nonzero(consistent & valid)), int(np.count_nonzero(valid)))


def kl_per_answer(
    policy_logprobs: NDArray[Any],
    reference_logprobs: NDArray[Any],
    offsets: NDArray[np.int64],
    valid: NDArray[np.bool_],
    prompt_ids: Sequence[str],
    *,
    seed: int,
) -> Estimate | None:
    """KL(policy || reference) of whole answers in nats, estimated on answers that the policy drew.

    The mean over answers of the sum over tokens of log pi(token) - log pi_ref(token), which is unbiased; one answer
    may be negative, and so may the estimate near 0. Log-probabilities are flat (T,), answer i at
    offsets[i]:offsets[i + 1], at the temperature that drew it; `valid` and `prompt_ids` are (B,). The bootstrap
    interval resamples prompts.
    """
    if len(offsets) != len(valid) + 1 or not len(policy_logprobs) == len(reference_logprobs) == offsets[-1]:
        raise ValueError(
            f"{len(policy_logprobs)} and {len(reference_logprobs)} log-probabilities, {len(offsets)} offsets up to "
            f"{offsets[-1]} and {len(valid)} validities do not match"
        )
    answers = np.repeat(np.arange(len(valid)), np.diff(offsets))
    gaps = np.asarray(policy_logprobs, dtype=np.float64) - np.asarray(reference_logprobs, dtype=np.float64)
    # A sum per answer, not a running one: what is not a number in an invalid answer stays in it.
    sums = np.bincount(answers, weights=gaps, minlength=len(valid))
    return mean(sums, valid, prompt_ids, seed=seed)


def mean_length(
    offsets: NDArray[np.int64], valid: NDArray[np.bool_], prompt_ids: Sequence[str], *, seed: int
) -> Estimate | None:
    """The mean number of tokens of an answer, its stop token included. `offsets` is (B + 1,), the others (B,)."""
    return mean(np.diff(offsets), valid, prompt_ids, seed=seed)


def outcomes_of_margins(margins: NDArray[Any]) -> NDArray[np.float64]:
    """Outcomes (N,) from margins in utility: 1 where positive, 0 where negative, 0.5 at 0, NaN where not a number."""
    return 0.5 * (1.0 + np.sign(np.asarray(margins, dtype=np.float64)))


def outcome_of_preference(preference: Preference) -> float | None:
    """The outcome for response_a: 1, 0.5 or 0; None where the preference was not scored."""
    return outcome_of_label(preference.p, preference.consistent) if preference.outcome is Outcome.SCORED else None


def outcome_of_label(p: float | None, consistent: bool | None) -> float | None:
    """The outcome for the answer that `p` is of: 1, 0.5 or 0; None without a label.

    A judge that changes its mind with the order of presentation has named no winner: that is a tie.
    """
    if p is None:
        return None
    if consistent is False or p == 0.5:
        return 0.5
    return 1.0 if p > 0.5 else 0.0


def _agreement(margins: NDArray[np.float64], reference_margins: NDArray[Any], valid: NDArray[np.bool_]) -> Agreement:
    _same_length(margins, valid)
    _same_length(reference_margins, valid)
    references = np.asarray(reference_margins, dtype=np.float64)
    if np.isnan(margins[valid]).any() or np.isnan(references[valid]).any():
        raise ValueError("a pair marked as valid has a margin that is not a number")
    counted = valid & (references != 0)
    trials = int(np.count_nonzero(counted))
    # Signs multiply to 1 where they agree, to -1 where they do not, and to 0 at a tie, which counts half.
    agreement = np.sign(margins[counted]) * np.sign(references[counted])
    return Agreement(
        share=proportion(float(np.sum(0.5 + 0.5 * agreement)), trials),
        counted=trials,
        reference_ties=int(np.count_nonzero(valid)) - trials,
        invalid=int(np.count_nonzero(~valid)),
    )


def _same_length(values: NDArray[Any], valid: NDArray[np.bool_]) -> None:
    if len(values) != len(valid):
        raise ValueError(f"{len(values)} values and {len(valid)} validities do not match")
