"""What is said of an iteration's batch beside its losses. Statistics are over what counts: scored answers, actions that
are learnt from, parts of a reward that say something."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from rlaif_ray import metrics
from rlaif_ray.policy.algorithm import Experience, Targets
from rlaif_ray.policy.batching import RolloutBatch


def described(batch: RolloutBatch, experience: Experience, targets: Targets) -> dict[str, float]:
    """By the names of `metrics`."""
    mask = targets.mask
    kl = torch.where(mask, experience.logprobs - experience.reference_logprobs, 0.0).sum(1)[mask.any(dim=1)]
    gaps = (experience.logprobs - torch.from_numpy(batch.rollout_logprobs))[
        torch.from_numpy(batch.sequences.answer_mask)
    ]
    raw = batch.scores[batch.scored].astype(np.float64)
    return {
        metrics.REWARD_MEAN: float(raw.mean()),
        metrics.REWARD_STD: float(raw.std()),
        metrics.KL: float(kl.mean()),
        metrics.ENTROPY: float(experience.entropies[mask].mean()),
        metrics.ADVANTAGE_SIZE: float(targets.advantages[mask].abs().mean()),
        metrics.ANSWER_LENGTH: float(batch.sequences.answer_lengths.mean()),
        metrics.VALID_FRACTION: float(batch.scored.mean()),
        metrics.TRUNCATED_FRACTION: float(batch.truncated.mean()),
        metrics.LOGPROB_GAP: float(gaps.abs().mean()),
        metrics.LOGPROB_GAP_MAX: float(gaps.abs().max()),
        **_described_parts(batch.parts),
    }


def _described_parts(parts: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
    measures = {}
    for name, values in parts.items():
        said = values[np.isfinite(values)].astype(np.float64)
        measures[metrics.REWARD_PART_MEAN.format(name)] = float(said.mean()) if len(said) else float("nan")
        measures[metrics.REWARD_PART_STD.format(name)] = float(said.std()) if len(said) else float("nan")
        measures[metrics.REWARD_PART_VALID.format(name)] = len(said) / len(values)
    return measures
