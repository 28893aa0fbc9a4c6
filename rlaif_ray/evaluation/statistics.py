"""Estimates with 95 % intervals, from items of which some may be invalid.

Every function takes a validity mask: an invalid item enters no number, whatever its value. Where nothing valid is
left there is nothing to estimate, and the answer is None. This module knows nothing of judges or models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlaif_ray.records import Estimate

# The standard normal's 0.975 quantile.
_Z = 1.959963984540054
_RESAMPLES = 10_000
_CHUNK = 2_000_000  # resampled counts held in memory at once


def proportion(successes: float, trials: int) -> Estimate | None:
    """A proportion with its Wilson score interval (Wilson 1927), which stays sound near 0 and 1.

    `successes` may count ties as halves. The trials are taken as independent. None without trials; raises
    ValueError unless 0 <= successes <= trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie between 0 and trials, but {successes} of {trials} were given")
    if trials == 0:
        return None
    value = successes / trials
    scale = 1 + _Z**2 / trials
    centre = (value + _Z**2 / (2 * trials)) / scale
    half = _Z / scale * math.sqrt(value * (1 - value) / trials + _Z**2 / (4 * trials**2))
    return _estimate(value, max(0.0, centre - half), min(1.0, centre + half))


def mean(values: NDArray[Any], valid: NDArray[np.bool_], prompt_ids: Sequence[str], *, seed: int) -> Estimate | None:
    """The mean of the valid `values` (N,), with a percentile bootstrap over prompts (Efron 1979).

    Answers to one prompt resemble each other, so whole prompts are resampled: `prompt_ids` (N,) says which items
    belong together. From a single prompt nothing is known about the spread, and the interval is unbounded. None
    where nothing is valid; raises ValueError where a valid value is not finite or the lengths differ.
    """
    sums, counts = _per_prompt(values, valid, prompt_ids)
    if not len(counts):
        return None
    value = float(sums.sum() / counts.sum())
    if len(counts) == 1:
        return Estimate(value, -math.inf, math.inf)
    return _estimate(value, *_bootstrap_interval(sums, counts, seed))


def win_rate(
    outcomes: NDArray[Any], valid: NDArray[np.bool_], prompt_ids: Sequence[str], *, seed: int
) -> Estimate | None:
    """The share of comparisons won, ties half, with a percentile bootstrap over prompts.

    `outcomes` (N,) are 1 for a win, 0.5 for a tie and 0 for a loss. Where every prompt went the same way, resampling
    shows no spread at all: the Wilson interval for as many prompts takes the bootstrap's place. None where nothing
    is valid; raises ValueError where a valid outcome is none of the three or the lengths differ.
    """
    sums, counts = _per_prompt(values=outcomes, valid=valid, prompt_ids=prompt_ids)
    strange = np.asarray(outcomes, dtype=np.float64)[valid]
    strange = strange[~np.isin(strange, (0.0, 0.5, 1.0))]
    if len(strange):
        raise ValueError(f"an outcome is 1, 0.5 or 0, but {strange[0]} was given")
    if not len(counts):
        return None
    rates = sums / counts
    if np.all(rates == rates[0]):
        return proportion(float(rates.sum()), len(rates))
    return _estimate(float(sums.sum() / counts.sum()), *_bootstrap_interval(sums, counts, seed))


def _per_prompt(
    values: NDArray[Any], valid: NDArray[np.bool_], prompt_ids: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The sum and the number of the valid values of each prompt that has one: two arrays (P,)."""
    if not len(values) == len(valid) == len(prompt_ids):
        raise ValueError(f"{len(values)} values, {len(valid)} validities and {len(prompt_ids)} prompt ids do not match")
    kept = np.asarray(values, dtype=np.float64)[valid]
    if not np.isfinite(kept).all():
        raise ValueError("a value marked as valid is not finite")
    _, prompts = np.unique(np.asarray(prompt_ids, dtype=np.str_)[valid], return_inverse=True)
    return np.bincount(prompts, weights=kept).astype(np.float64), np.bincount(prompts).astype(np.float64)


def _bootstrap_interval(sums: NDArray[np.float64], counts: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """The 2.5th and 97.5th percentiles of the mean when prompts are drawn with replacement."""
    generator = np.random.default_rng(seed)
    prompts = len(sums)
    chunk = max(1, _CHUNK // prompts)
    means = []
    for start in range(0, _RESAMPLES, chunk):
        drawn = generator.integers(prompts, size=(min(chunk, _RESAMPLES - start), prompts))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def _estimate(value: float, low: float, high: float) -> Estimate:
    # Rounding may leave a bound on the wrong side of the value by one unit in the last place.
    return Estimate(value, min(low, value), max(high, value))
