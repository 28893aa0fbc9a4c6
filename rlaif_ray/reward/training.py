"""The reward model's optimizer steps, and when to stop taking them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from rlaif_ray.config import FitConfig
from rlaif_ray.engines.training import TrainingEngine
from rlaif_ray.fitting import bucketed_batches
from rlaif_ray.metrics import ACCURACY, GRADIENT_NORM, LEARNING_RATE, LOSS
from rlaif_ray.microbatches import split_rows
from rlaif_ray.reward.comparisons import ComparisonGroup, score_groups
from rlaif_ray.reward.losses import PairObjective, ranks_alike


def training_steps(
    engine: TrainingEngine,
    groups: Sequence[ComparisonGroup],
    config: FitConfig,
    objective: PairObjective,
    steps: int,
    *,
    seed: int,
) -> Iterator[dict[str, float]]:
    """Take `steps` optimizer steps, one for each of the metrics that this gives.

    A step's loss is the mean over its groups of the mean over a group's pairs.
    """
    lengths = np.array([[max(ls), min(ls)] for group in groups for ls in [[len(s) for s in group.sequences]]])
    model_config: Any = engine.module.config
    for rows in bucketed_batches(lengths, config.batch_size, steps, seed):
        micros = split_rows(rows, engine.rank, engine.world_size, config.micro_batch_size)
        pairs = sum(len(groups[row].p) for row in rows)
        sums = torch.zeros(2, device=engine.device)
        for micro in micros:
            scored = score_groups(
                engine.model,
                [groups[row] for row in micro.rows],
                micro.real.tolist(),
                model_config.pad_token_id,
                engine.device,
            )
            losses = scored.shares * objective(scored.scores_a, scored.scores_b, scored.p, scored.weights)
            part = torch.where(scored.real, losses, 0.0).sum() / len(rows)
            engine.backward(part, last=micro is micros[-1])
            alike = ranks_alike(scored.scores_a.detach(), scored.scores_b.detach(), scored.p)
            sums += torch.stack([part.detach(), (alike & scored.real).sum() / pairs])
        rate = engine.learning_rate
        norm = engine.step()
        loss, accuracy = engine.sum(sums).tolist()
        yield {LOSS: loss, ACCURACY: accuracy, LEARNING_RATE: rate, GRADIENT_NORM: norm}


class EarlyStopping:
    """Which of several measurements was the best, and whether to go on for another.

    Without `patience` there is always another.
    """

    def __init__(self, patience: int | None) -> None:
        self._patience = patience
        self._best = math.inf
        self._worse = 0

    def observe(self, loss: float) -> bool:
        """Whether it is less than all before."""
        improved = loss < self._best
        self._best = min(self._best, loss)
        self._worse = 0 if improved else self._worse + 1
        return improved

    @property
    def exhausted(self) -> bool:
        return self._patience is not None and self._worse >= self._patience
