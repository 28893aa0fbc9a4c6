"""Scores of answers from comparisons between them (Bradley and Terry 1952), on soft probabilities.

NumPy alone; of judges and prompts it knows nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PRIOR_PRECISION = 0.01
"""Of the Gaussian around 0 that each score has before any comparison, so that scores are finite and unique even where
one answer wins every time: a standard deviation of 10 logits."""

_MOST_STEPS = 100
_GRADIENT_TOLERANCE = 1e-10


def bradley_terry_scores(
    first: NDArray[np.int64], second: NDArray[np.int64], p: NDArray[np.float64], count: int
) -> NDArray[np.float64]:
    """Scores (count,) in logits, with mean 0, that make sigma(s_first - s_second) likeliest to be `p`, pair by pair.

    `first`, `second` and `p` are (pairs,). An answer in no pair gets NaN, and takes no part. Where the pairs fall into
    parts that share no answer, each part has mean 0: nothing says how one stands to the other.
    """
    compared = np.zeros(count, dtype=bool)
    compared[first] = compared[second] = True
    scores = np.zeros(count)
    value = _log_posterior(scores, first, second, p)
    for _ in range(_MOST_STEPS):
        won = 1.0 / (1.0 + np.exp(scores[second] - scores[first]))
        gradient = -PRIOR_PRECISION * scores
        np.add.at(gradient, first, p - won)
        np.add.at(gradient, second, won - p)
        if np.abs(gradient).max(initial=0.0) < _GRADIENT_TOLERANCE:
            break
        curvature = PRIOR_PRECISION * np.eye(count)
        weight = won * (1.0 - won)
        for rows, columns, sign in ((first, first, 1), (second, second, 1), (first, second, -1), (second, first, -1)):
            np.add.at(curvature, (rows, columns), sign * weight)
        step = np.linalg.solve(curvature, gradient)
        # The log-posterior is concave: a step that overshoots is halved until it does not.
        while (reached := _log_posterior(scores + step, first, second, p)) < value - _GRADIENT_TOLERANCE:
            step /= 2.0
        scores, value = scores + step, reached
    return np.where(compared, scores, np.nan)


def _log_posterior(
    scores: NDArray[np.float64], first: NDArray[np.int64], second: NDArray[np.int64], p: NDArray[np.float64]
) -> float:
    lead = scores[first] - scores[second]
    fit = p * -np.logaddexp(0.0, -lead) + (1.0 - p) * -np.logaddexp(0.0, lead)
    return float(fit.sum() - 0.5 * PRIOR_PRECISION * np.square(scores).sum())
