"""Where a reward model orders pairs rightly and where it does not: by margin, length and source of label, and by how
far the members of an ensemble agree.

Margins (N,) are r_a - r_b; reference margins (N,) have the sign of the reference's preference, and pairs at 0 are left
out, as in `reward_accuracy`. Every function takes a validity mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlaif_ray.evaluation.measures import reward_accuracy
from rlaif_ray.records import Estimate

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class AccuracySlice:
    """The accuracy on some of the pairs, with its Wilson interval; None where no pair could be counted."""

    name: str
    share: Estimate | None
    counted: int


@dataclass(frozen=True, slots=True)
class Disagreement:
    """How far an ensemble's members differ: the standard deviation of their margins, its mean over pairs, and the
    accuracy of their mean on the quarter of the pairs where it is the smallest, and the largest."""

    mean: float
    agreeing: AccuracySlice
    disagreeing: AccuracySlice


def accuracy_by_range(
    margins: NDArray[Any],
    reference_margins: NDArray[Any],
    values: NDArray[Any],
    edges: Sequence[float],
    valid: Mask,
) -> tuple[AccuracySlice, ...]:
    """By ranges of `values` (N,) between ascending edges; a range holds its lower edge, the last one both."""
    ranges = []
    for low, high in pairwise(edges):
        below = values <= high if high == edges[-1] else values < high
        ranges.append((f"{round(low, 2):g} to {round(high, 2):g}", (values >= low) & below))
    return _sliced(margins, reference_margins, ranges, valid)


def accuracy_by_quintile(
    margins: NDArray[Any], reference_margins: NDArray[Any], values: NDArray[Any], valid: Mask
) -> tuple[AccuracySlice, ...]:
    """By fifths of the valid `values` (N,), or fewer parts where many are equal."""
    if not valid.any():
        return ()
    edges = np.unique(np.quantile(np.asarray(values, dtype=np.float64)[valid], np.linspace(0, 1, 6)))
    return accuracy_by_range(margins, reference_margins, values, edges.tolist(), valid)


def accuracy_by_length(
    margins: NDArray[Any], reference_margins: NDArray[Any], length_differences: NDArray[Any], valid: Mask
) -> tuple[AccuracySlice, ...]:
    """By how much longer the better answer is, `length_differences` (N,) being a's tokens less b's.

    The bound between a little and much is the median of the differences that are not 0.
    """
    longer = np.sign(reference_margins) * np.asarray(length_differences)
    apart = np.abs(longer[valid & (longer != 0)])
    bound = int(np.ceil(np.median(apart))) if len(apart) else 1
    return _sliced(
        margins,
        reference_margins,
        (
            (f"over {bound} shorter", longer < -bound),
            (f"up to {bound} shorter", (longer >= -bound) & (longer < 0)),
            ("as long", longer == 0),
            (f"up to {bound} longer", (longer > 0) & (longer <= bound)),
            (f"over {bound} longer", longer > bound),
        ),
        valid,
    )


def accuracy_by_group(
    margins: NDArray[Any], reference_margins: NDArray[Any], groups: NDArray[Any], valid: Mask
) -> tuple[AccuracySlice, ...]:
    """By the group (N,) of each pair, such as the source of its label or its round, in order."""
    slices = [(str(group), groups == group) for group in np.unique(groups)]
    return _sliced(margins, reference_margins, slices, valid)


def length_correlation(margins: NDArray[Any], length_differences: NDArray[Any], valid: Mask) -> float | None:
    """The correlation of margins (N,) with differences in length (N,), every pair seen from both sides, so that their
    means are 0 and which answer is called a means nothing. None where either does not vary."""
    if not len(margins) == len(length_differences) == len(valid):
        raise ValueError(
            f"{len(margins)} margins, {len(length_differences)} differences and {len(valid)} validities do not match"
        )
    d, longer = (np.asarray(values, dtype=np.float64)[valid] for values in (margins, length_differences))
    scale = float(np.linalg.norm(d) * np.linalg.norm(longer))
    return float(d @ longer) / scale if scale else None


def ensemble_disagreement(
    member_margins: NDArray[Any], reference_margins: NDArray[Any], valid: Mask
) -> Disagreement | None:
    """Of `member_margins` (N, K). None for a single model, and where no pair is valid."""
    if member_margins.shape[1] == 1 or not valid.any():
        return None
    spread = np.asarray(member_margins, dtype=np.float64).std(axis=1)
    low, high = np.quantile(spread[valid], [0.25, 0.75])
    agreeing, disagreeing = _sliced(
        member_margins.mean(axis=1),
        reference_margins,
        [("models agree", spread <= low), ("models disagree", spread >= high)],
        valid,
    )
    return Disagreement(float(spread[valid].mean()), agreeing, disagreeing)


def _sliced(
    margins: NDArray[Any], reference_margins: NDArray[Any], slices: Iterable[tuple[str, Mask]], valid: Mask
) -> tuple[AccuracySlice, ...]:
    found = []
    for name, held in slices:
        agreement = reward_accuracy(margins, reference_margins, valid & held)
        found.append(AccuracySlice(name, agreement.share, agreement.counted))
    return tuple(found)
