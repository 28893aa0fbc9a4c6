"""From ragged rollouts and their scores to padded batches, and the order in which their rows are trained on.

Prompts are padded on the left and answers on the right, so every answer starts in the same column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from rlaif_ray.policy.logprobs import ModelInputs
from rlaif_ray.records import FinishReason, Rollouts, Scores

Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Sequences:
    """Prompts with their answers, padded. B rows, P and A the longest prompt and answer.

    Lengths alone say what is real: token ids are never compared with the pad or stop token.
    """

    prompts: NDArray[np.int64]  # (B, P), padded on the left
    prompt_lengths: NDArray[np.int64]  # (B,)
    answers: NDArray[np.int64]  # (B, A), padded on the right
    answer_lengths: NDArray[np.int64]  # (B,)

    @classmethod
    def of_flat(
        cls,
        prompt_tokens: NDArray[np.integer],
        prompt_lengths: NDArray[np.int64],
        answer_tokens: NDArray[np.integer],
        answer_lengths: NDArray[np.int64],
        pad_id: int,
    ) -> Sequences:
        """From tokens laid end to end. Raises ValueError when a prompt or an answer is empty."""
        if not prompt_lengths.all() or not answer_lengths.all():
            raise ValueError("a prompt or an answer has no tokens")
        prompts = np.arange(prompt_lengths.max()) >= prompt_lengths.max() - prompt_lengths[:, None]
        answers = np.arange(answer_lengths.max()) < answer_lengths[:, None]
        return cls(
            _padded(prompt_tokens.astype(np.int64), prompts, pad_id),
            prompt_lengths,
            _padded(answer_tokens.astype(np.int64), answers, pad_id),
            answer_lengths,
        )

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def answer_mask(self) -> NDArray[np.bool_]:
        """(B, A): True on the answers' tokens, their stop tokens included."""
        mask: NDArray[np.bool_] = np.arange(self.answers.shape[1]) < self.answer_lengths[:, None]
        return mask

    def inputs(self, rows: NDArray[np.int64], device: torch.device) -> ModelInputs:
        """These rows as a model takes them, no wider than the longest prompt and answer among them."""
        lengths = self.prompt_lengths[rows]
        width = int(lengths.max())
        answer_width = int(self.answer_lengths[rows].max())
        prompts = self.prompts[rows, self.prompts.shape[1] - width :]
        ids = np.concatenate([prompts, self.answers[rows, :answer_width]], axis=1)
        columns = np.arange(width + answer_width)
        first = width - lengths[:, None]
        real = (columns >= first) & (columns < width + self.answer_lengths[rows, None])
        return ModelInputs(
            input_ids=torch.from_numpy(ids).to(device),
            attention_mask=torch.from_numpy(real.astype(np.int64)).to(device),
            position_ids=torch.from_numpy(np.maximum(columns - first, 0)).to(device),
            answer_width=answer_width,
        )


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """One iteration's answers with their scores."""

    sequences: Sequences
    rollout_logprobs: NDArray[np.float32]  # (B, A), nats; 0 on filler
    scores: NDArray[np.float32]  # (B,), raw; NaN where not `scored`
    scored: NDArray[np.bool_]  # (B,)
    truncated: NDArray[np.bool_]  # (B,): stopped by the length limit
    groups: NDArray[np.int64]  # (B,): answers that were drawn together for one prompt share a number
    parts: Mapping[str, NDArray[np.float32]]  # (B,) each: what a mixed reward is made of; NaN where a part is silent

    def __len__(self) -> int:
        return len(self.sequences)


def assemble(rollouts: Sequence[Rollouts], scores: Sequence[Scores], pad_id: int) -> RolloutBatch:
    """One padded batch of the shards, in their order.

    Raises ValueError when scores do not belong to the rollouts row by row, when shards come from different weights,
    when an answer is empty, when a log-probability is missing, or when shards are scored by different sources.
    """
    if not rollouts or len(rollouts) != len(scores):
        raise ValueError(f"{len(rollouts)} shards of rollouts but {len(scores)} of scores")
    for shard, shard_scores in zip(rollouts, scores, strict=True):
        if shard.sample_ids != shard_scores.sample_ids:
            raise ValueError("the scores are not those of these rollouts: their sample ids differ")
    origins = {(shard.version, shard.fingerprint) for shard in rollouts}
    if len(origins) > 1:
        raise ValueError(f"rollouts of one batch come from different weights: versions {sorted(v for v, _ in origins)}")
    if len({tuple(sorted(shard.parts)) for shard in scores}) > 1:
        raise ValueError("shards of one batch are scored by different sources")
    logprobs = np.concatenate([shard.logprobs for shard in rollouts])
    if not np.isfinite(logprobs).all():
        raise ValueError("a rollout's log-probability is not finite")
    values = np.concatenate([shard.values for shard in scores])
    scored = np.concatenate([shard.valid for shard in scores])
    if not np.isfinite(values[scored]).all():
        raise ValueError("a score is marked valid but is not finite")
    sequences = Sequences.of_flat(
        np.concatenate([shard.prompt_tokens for shard in rollouts]),
        np.concatenate([np.diff(shard.prompt_offsets) for shard in rollouts]),
        np.concatenate([shard.answer_tokens for shard in rollouts]),
        np.concatenate([np.diff(shard.answer_offsets) for shard in rollouts]),
        pad_id,
    )
    _, groups = np.unique([group for shard in rollouts for group in shard.group_ids], return_inverse=True)
    return RolloutBatch(
        sequences=sequences,
        rollout_logprobs=_padded(logprobs, sequences.answer_mask, 0.0),
        scores=values,
        scored=scored,
        truncated=np.array([reason is FinishReason.LENGTH for shard in rollouts for reason in shard.finish_reasons]),
        groups=groups,
        parts={name: np.concatenate([shard.parts[name] for shard in scores]) for name in scores[0].parts},
    )


def _padded(flat: NDArray[Number], real: NDArray[np.bool_], filler: float) -> NDArray[Number]:
    padded = np.full(real.shape, filler, dtype=flat.dtype)
    padded[real] = flat
    return padded


def minibatches(
    rows: NDArray[np.int64], size: int, *, seed: int, iteration: int, epoch: int
) -> list[NDArray[np.int64]]:
    """The rows in a fresh order for this epoch, cut into minibatches of at most `size`, as even as can be."""
    order = np.random.default_rng([seed, iteration, epoch]).permutation(rows)
    return np.array_split(order, -(-len(order) // size))
