"""What the batch trainers (SFT, reward model, DPO) share: how many steps, which optimizer, which rows in a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from rlaif_ray.config import FitConfig
from rlaif_ray.engines.training import Dtype, OptimizerSettings, Schedule

OnStep = Callable[[int, int, Mapping[str, float]], None]
"""Told of each optimizer step: its number from 1, how many there will be, and its metrics."""

_BUCKET = 50
"""Batches whose rows are sorted by length together: padding shrinks, and a row's company still changes every epoch."""


def optimizer_steps(config: FitConfig, examples: int) -> int:
    """Optimizer steps of `config.epochs` passes; the last batch of a pass may be smaller."""
    return math.ceil(config.epochs * math.ceil(examples / config.batch_size))


def optimizer_settings(config: FitConfig, dtype: Dtype, steps: int) -> OptimizerSettings:
    return OptimizerSettings(
        learning_rate=config.learning_rate,
        max_grad_norm=config.max_grad_norm,
        zero_stage=config.zero_stage,
        dtype=dtype,
        weight_decay=config.weight_decay,
        schedule=Schedule(total=steps, warmup=round(config.warmup_fraction * steps)),
    )


def bucketed_batches(lengths: NDArray[np.int64], batch_size: int, steps: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Row indices of `steps` batches. Every pass shuffles anew, and puts rows of like length into one batch.

    `lengths` are (N,), or (N, 2) where a row has a longest and a shortest part: batches are then alike in both.
    """
    epoch = 0
    while True:
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(lengths))
        batches: list[NDArray[np.int64]] = []
        for bucket in _runs(order, _BUCKET * batch_size):
            bucket = _sorted_by_length(bucket, lengths.reshape(len(lengths), -1), batch_size)
            batches += _runs(bucket, batch_size)
        for index in random.permutation(len(batches)):
            if steps == 0:
                return
            steps -= 1
            yield batches[index]
        epoch += 1


def longest_first(rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows, the longest first by all `lengths` (N,): equal ones are neighbours when they are packed."""
    return rows[np.argsort(-lengths[rows], kind="stable")]


def _sorted_by_length(rows: NDArray[np.int64], lengths: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    """Sorted by the first length, and, where there is a second, by that within strips of some whole batches."""
    rows = rows[np.argsort(lengths[rows, 0], kind="stable")]
    if lengths.shape[1] == 1:
        return rows
    strip = batch_size * math.ceil(math.sqrt(len(rows) / batch_size))
    return np.concatenate([part[np.argsort(lengths[part, 1], kind="stable")] for part in _runs(rows, strip)])


def _runs(rows: NDArray[np.int64], length: int) -> list[NDArray[np.int64]]:
    return [rows[start : start + length] for start in range(0, len(rows), length)]
