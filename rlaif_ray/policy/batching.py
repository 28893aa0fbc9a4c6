"""From ragged rollouts and their scores to one batch, and the order in which its rows are trained on.

Tokens stay where they are, in the shards; what is known of each answer token is (B, A), A the longest answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rlaif_ray.policy.packing import Ragged
from rlaif_ray.records import FinishReason, Rollouts, Scores

Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """One iteration's answers with their scores."""

    sequences: Ragged
    rollout_logprobs: NDArray[np.float32]  # (B, A), nats; 0 on filler
    scores: NDArray[np.float32]  # (B,), normalised; NaN where not `scored`
    scored: NDArray[np.bool_]  # (B,)
    truncated: NDArray[np.bool_]  # (B,): stopped by the length limit
    groups: NDArray[np.int64]  # (B,): answers that were drawn together for one prompt share a number
    parts: Mapping[str, NDArray[np.float32]]  # (B,) each: what a mixed reward is made of; NaN where a part is silent

    def __len__(self) -> int:
        return len(self.sequences)


def assemble(rollouts: Sequence[Rollouts], scores: Sequence[Scores], *, staleness: int = 0) -> RolloutBatch:
    """One batch of the shards, in their order.

    Raises ValueError when scores do not belong to the rollouts row by row, when tokens were drawn by weights more than
    `staleness` versions apart, when one version has two fingerprints, when an answer is empty, when a log-probability
    is missing, or when shards are scored by different sources.
    """
    if not rollouts or len(rollouts) != len(scores):
        raise ValueError(f"{len(rollouts)} shards of rollouts but {len(scores)} of scores")
    for shard, shard_scores in zip(rollouts, scores, strict=True):
        if shard.sample_ids != shard_scores.sample_ids:
            raise ValueError("the scores are not those of these rollouts: their sample ids differ")
    if len({tuple(sorted(shard.parts)) for shard in scores}) > 1:
        raise ValueError("shards of one batch are scored by different sources")
    logprobs = np.concatenate([shard.logprobs for shard in rollouts])
    if not np.isfinite(logprobs).all():
        raise ValueError("a rollout's log-probability is not finite")
    versions = np.concatenate([shard.token_versions for shard in rollouts])
    if versions.size and versions.max() - versions.min() > staleness:
        raise ValueError(
            f"rollouts of one batch come from different weights: versions {versions.min()} to {versions.max()}"
        )
    if len({(shard.version, shard.fingerprint) for shard in rollouts}) > len({shard.version for shard in rollouts}):
        raise ValueError("rollouts of one version carry different fingerprints: they come from different weights")
    values = np.concatenate([shard.values for shard in scores])
    scored = np.concatenate([shard.valid for shard in scores])
    if not np.isfinite(values[scored]).all():
        raise ValueError("a score is marked valid but is not finite")
    sequences = Ragged.of(
        [shard.prompt(row) for shard in rollouts for row in range(len(shard))],
        [shard.answer(row) for shard in rollouts for row in range(len(shard))],
    )
    _, groups = np.unique([group for shard in rollouts for group in shard.group_ids], return_inverse=True)
    return RolloutBatch(
        sequences=sequences,
        rollout_logprobs=_padded(logprobs, sequences.answer_mask),
        scores=values,
        scored=scored,
        truncated=np.array([reason is FinishReason.LENGTH for shard in rollouts for reason in shard.finish_reasons]),
        groups=groups,
        parts={name: np.concatenate([shard.parts[name] for shard in scores]) for name in scores[0].parts},
    )


def _padded(flat: NDArray[Number], real: NDArray[np.bool_]) -> NDArray[Number]:
    padded = np.zeros(real.shape, dtype=flat.dtype)
    padded[real] = flat
    return padded


def minibatches(
    rows: NDArray[np.int64], size: int, *, seed: int, iteration: int, epoch: int
) -> list[NDArray[np.int64]]:
    """The rows in a fresh order for this epoch, cut into minibatches of at most `size`, as even as can be."""
    order = np.random.default_rng([seed, iteration, epoch]).permutation(rows)
    return np.array_split(order, -(-len(order) // size))
