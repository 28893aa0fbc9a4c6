"""Whether a reward model's probabilities are true: reliability by bin, expected calibration error, Brier, log loss.

A pair's prediction is sigma(d) with d = r_a - r_b of the raw scores. Which answer is called a means nothing, so a pair
enters a bin from the side that the model prefers: predictions lie in [1/2, 1], and at d = 0 the outcome is 1/2,
whoever won. Bins are of equal width, so that they mean the same in every round and every run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlaif_ray.evaluation.statistics import proportion
from rlaif_ray.records import Estimate

_EDGES = np.linspace(0.5, 1.0, 11)


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """The pairs predicted between `low` and `high` (the last bin holds 1). The means are None where there is none."""

    low: float
    high: float
    count: int
    prediction: float | None
    outcome: Estimate | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """`error` is the expected calibration error (Naeini et al. 2015): the mean over pairs of the gap between their
    bin's mean prediction and mean outcome. `brier` is the mean squared error, `loss` the mean cross-entropy in nats."""

    bins: tuple[ReliabilityBin, ...]
    error: float
    brier: float
    loss: float
    counted: int
    invalid: int


def calibration(margins: NDArray[Any], outcomes: NDArray[Any], valid: NDArray[np.bool_]) -> Calibration | None:
    """Predictions sigma(margins) against outcomes; None where no pair is valid.

    `margins` (N,) are r_a - r_b in logits. `outcomes` (N,) say how far a won: 1, 0, 1/2 at a tie, or a probability,
    which counts as a fraction of a win and makes the Wilson intervals a little too wide. Raises ValueError where a
    valid margin is not finite or a valid outcome lies outside [0, 1].
    """
    if not len(margins) == len(outcomes) == len(valid):
        raise ValueError(f"{len(margins)} margins, {len(outcomes)} outcomes and {len(valid)} validities do not match")
    d, won = (np.asarray(values, dtype=np.float64)[valid] for values in (margins, outcomes))
    if not np.isfinite(d).all():
        raise ValueError("a pair marked as valid has a margin that is not finite")
    if not ((won >= 0) & (won <= 1)).all():
        raise ValueError("a pair marked as valid has an outcome outside [0, 1]")
    if not len(d):
        return None
    predicted = 1 / (1 + np.exp(-np.abs(d)))
    happened = 0.5 + np.sign(d) * (won - 0.5)
    places = np.minimum(np.searchsorted(_EDGES, predicted, side="right") - 1, len(_EDGES) - 2)
    bins = tuple(_bin(place, predicted[places == place], happened[places == place]) for place in range(len(_EDGES) - 1))
    gaps = [abs(each.prediction - each.outcome.value) * each.count for each in bins if each.prediction and each.outcome]
    signed = 1 / (1 + np.exp(-np.clip(d, -700, 700)))
    return Calibration(
        bins=bins,
        error=float(sum(gaps) / len(d)),
        brier=float(np.mean((signed - won) ** 2)),
        loss=float(np.mean(won * np.logaddexp(0, -d) + (1 - won) * np.logaddexp(0, d))),
        counted=len(d),
        invalid=int(np.count_nonzero(~valid)),
    )


def _bin(place: int, predicted: NDArray[np.float64], happened: NDArray[np.float64]) -> ReliabilityBin:
    # A sum of outcomes may pass their number by a rounding.
    wins = min(float(happened.sum()), float(len(happened)))
    return ReliabilityBin(
        low=float(_EDGES[place]),
        high=float(_EDGES[place + 1]),
        count=len(predicted),
        prediction=float(predicted.mean()) if len(predicted) else None,
        outcome=proportion(wins, len(happened)),
    )
