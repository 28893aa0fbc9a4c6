"""The watch: how rewards compare with a second opinion on a few answers of each iteration.

A reward that rises while the judge's score falls, or ranks answers otherwise than the judge does, is being gamed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlaif_ray import metrics


def drawn_to_watch(sample_ids: Sequence[str], valid: NDArray[np.bool_], count: int, seed: int) -> list[int]:
    """Rows of at most `count` valid answers, drawn by the seed and the ids alone: how a batch is sharded is all one."""

    def lot(row: int) -> bytes:
        return hashlib.sha256(f"watch\0{seed}\0{sample_ids[row]}".encode()).digest()

    return sorted(sorted(np.flatnonzero(valid).tolist(), key=lot)[:count])


def watch_measures(rewards: NDArray[np.float32], judged: NDArray[np.float64]) -> dict[str, float]:
    """How rewards (N,) compare with the judge's scores (N,) of the same answers, of which those that are NaN are left
    out; by the names of `metrics`."""
    scored = np.isfinite(judged)
    earned, deserved = rewards[scored].astype(np.float64), judged[scored]
    return {
        metrics.WATCHED: len(earned),
        metrics.WATCHED_REWARD_MEAN: float(earned.mean()) if len(earned) else math.nan,
        metrics.WATCHED_JUDGE_MEAN: float(deserved.mean()) if len(earned) else math.nan,
        metrics.WATCHED_CORRELATION: rank_correlation(earned, deserved),
    }


def rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's: the correlation of the two rankings, tied values sharing their mean rank. NaN where one has no
    spread."""
    if len(a) < 2:
        return math.nan
    of_a, of_b = (_ranks(values) - (len(values) - 1) / 2 for values in (a, b))
    spread = math.sqrt(float(of_a @ of_a) * float(of_b @ of_b))
    return float(of_a @ of_b) / spread if spread > 0 else math.nan


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 0; tied values share their mean rank."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    ranks: NDArray[np.float64] = (first + (counts - 1) / 2)[places]
    return ranks
