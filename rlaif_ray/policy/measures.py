"""What is said of an iteration's batch beside its losses. Statistics are over what counts: scored answers, actions that
are learnt from, parts of a reward that say something."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rlaif_ray import metrics
from rlaif_ray.config import RunConfig
from rlaif_ray.policy.algorithm import Experience, Targets
from rlaif_ray.policy.batching import RolloutBatch


def described(
    batch: RolloutBatch, experience: Experience, targets: Targets, weights: Tensor, config: RunConfig
) -> dict[str, float]:
    """By the names of `metrics`; `weights` (B, A) are the importance weights."""
    learnt = targets.mask
    raw = batch.scores[batch.scored].astype(np.float64)
    return {
        metrics.REWARD_MEAN: float(raw.mean()),
        metrics.REWARD_STD: float(raw.std()),
        metrics.KL: float(experience.kl.sum(1)[experience.valid].mean()),
        metrics.ADVANTAGE_SIZE: float(targets.advantages[learnt].abs().mean()) if learnt.any() else 0.0,
        metrics.ANSWER_LENGTH: float(batch.sequences.answer_lengths.mean()),
        metrics.VALID_FRACTION: float(batch.scored.mean()),
        metrics.TRUNCATED_FRACTION: float(batch.truncated.mean()),
        **_gap(experience, weights, config),
        **_described_parts(batch.parts),
    }


def _gap(experience: Experience, weights: Tensor, config: RunConfig) -> dict[str, float]:
    """Between the policy that sampled and the learner's before the update; where the learner's is not asked before, the
    first step says it."""
    counted = weights[experience.mask]
    measures = {
        metrics.IMPORTANCE_WEIGHT: float(counted.mean()),
        metrics.IMPORTANCE_TRUNCATED: float((counted >= config.ppo.importance_cap).float().mean()),
    }
    if config.recomputes_old_logprobs:
        gaps = (experience.logprobs - experience.rollout_logprobs)[experience.mask].abs()
        measures |= {metrics.LOGPROB_GAP: float(gaps.mean()), metrics.LOGPROB_GAP_MAX: float(gaps.max())}
    return measures


def _described_parts(parts: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
    measures = {}
    for name, values in parts.items():
        said = values[np.isfinite(values)].astype(np.float64)
        measures[metrics.REWARD_PART_MEAN.format(name)] = float(said.mean()) if len(said) else float("nan")
        measures[metrics.REWARD_PART_STD.format(name)] = float(said.std()) if len(said) else float("nan")
        measures[metrics.REWARD_PART_VALID.format(name)] = len(said) / len(values)
    return measures
