"""All that held-out pairs say of the reward model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlaif_ray.evaluation.calibration import Calibration, calibration
from rlaif_ray.evaluation.held_out import HeldOutPair
from rlaif_ray.evaluation.measures import Agreement, outcomes_of_margins, reward_accuracy
from rlaif_ray.evaluation.slices import (
    AccuracySlice,
    Disagreement,
    accuracy_by_group,
    accuracy_by_length,
    accuracy_by_quintile,
    accuracy_by_range,
    ensemble_disagreement,
    length_correlation,
)
from rlaif_ray.report.summary import AccuracyAgainst

_LABEL_MARGINS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, slots=True)
class RewardQuality:
    """How well the reward model, an ensemble by the mean of its margins, orders pairs and knows how surely.

    `against` says whose word an order is: gold's where it knows every pair, else the labels'. `calibration` is against
    the same, `label_calibration` against the labels' probabilities; both are None without a pair that was scored.
    """

    against: AccuracyAgainst
    accuracy: Agreement
    calibration: Calibration | None
    label_calibration: Calibration | None
    by_label_margin: tuple[AccuracySlice, ...]  # |2p - 1|
    by_score_margin: tuple[AccuracySlice, ...]  # |r_a - r_b|
    by_length: tuple[AccuracySlice, ...]
    by_source: tuple[AccuracySlice, ...]
    by_round: tuple[AccuracySlice, ...]  # that collected the pairs
    length_correlation: float | None
    members: int
    disagreement: Disagreement | None


def reward_quality(pairs: Sequence[HeldOutPair]) -> RewardQuality:
    """Raises ValueError without a pair, or where pairs were scored by different numbers of models."""
    if len({len(pair.margins) for pair in pairs}) != 1:
        raise ValueError(f"{len(pairs)} pairs were not all scored by the same number of models")
    p = np.array([pair.p for pair in pairs], dtype=np.float64)
    member_margins = np.array([pair.margins for pair in pairs], dtype=np.float64)
    valid = np.asarray(np.isfinite(member_margins).all(axis=1), dtype=np.bool_)
    margins = member_margins.mean(axis=1)
    longer = np.array([pair.chosen_tokens - pair.rejected_tokens for pair in pairs], dtype=np.int64)
    sources = [pair.label_source for pair in pairs]
    gold = [pair.gold_margin for pair in pairs if pair.gold_margin is not None]
    against: AccuracyAgainst = "judge" if "ai" in sources else "human"
    references, outcomes = p - 0.5, p
    if len(gold) == len(pairs):
        against, references = "gold", np.array(gold, dtype=np.float64)
        outcomes = outcomes_of_margins(references)
    return RewardQuality(
        against=against,
        accuracy=reward_accuracy(margins, references, valid),
        calibration=calibration(margins, outcomes, valid),
        label_calibration=calibration(margins, p, valid),
        by_label_margin=accuracy_by_range(margins, references, np.abs(2 * p - 1), _LABEL_MARGINS, valid),
        by_score_margin=accuracy_by_quintile(margins, references, np.abs(margins), valid),
        by_length=accuracy_by_length(margins, references, longer, valid),
        by_source=accuracy_by_group(margins, references, np.array(sources), valid),
        by_round=accuracy_by_group(margins, references, np.array([pair.round for pair in pairs]), valid),
        length_correlation=length_correlation(margins, longer, valid),
        members=member_margins.shape[1],
        disagreement=ensemble_disagreement(member_margins, references, valid),
    )
