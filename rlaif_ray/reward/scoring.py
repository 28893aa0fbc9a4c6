"""Rewards of token sequences, the same for a shard whenever it is scored.

Rows are taken by length, those of one length in the order of their ids, and cut into batches by a bound on padded
tokens. The raw reward is the Hugging Face model's own logit.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlaif_ray.records import Rollouts

Tokens = NDArray[np.int32] | Sequence[int]


def right_padded(sequences: Sequence[Tokens], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` (N, longest) int64."""
    lengths = np.array([len(sequence) for sequence in sequences])
    real = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(real.shape, pad_id, dtype=np.int64)
    ids[real] = np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in sequences])
    return {
        "input_ids": torch.from_numpy(ids).to(device),
        "attention_mask": torch.from_numpy(real.astype(np.int64)).to(device),
    }


def rewards_of(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The reward model's raw logits (N,) in float32, in float64 where the model computes in it."""
    scores: torch.Tensor = model(**inputs, use_cache=False).logits.squeeze(-1)
    return scores if scores.dtype == torch.float64 else scores.float()


def token_bounded(lengths: Sequence[int], max_batch_tokens: int) -> list[range]:
    """Consecutive rows in batches of at most `max_batch_tokens`, padding included; a longer row stands alone."""
    batches = []
    start, width = 0, 0
    for row, length in enumerate(lengths):
        width = max(width, length)
        if row > start and width * (row - start + 1) > max_batch_tokens:
            batches.append(range(start, row))
            start, width = row, length
    if start < len(lengths):
        batches.append(range(start, len(lengths)))
    return batches


@torch.no_grad()
def score_sequences(
    model: Any, ids: Sequence[str], sequences: Sequence[Tokens], *, max_batch_tokens: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Raw rewards (N,) and which of them are valid (N,), row by row.

    A sequence beyond the model's positions, an empty one, or one whose reward is not finite is invalid, and its value
    is NaN.
    """
    longest = getattr(model.config, "max_position_embeddings", sys.maxsize)
    pad_id = model.config.pad_token_id
    device = next(model.parameters()).device
    values = np.full(len(sequences), np.nan, dtype=np.float32)
    scored = (row for row in range(len(ids)) if 0 < len(sequences[row]) <= longest)
    order = sorted(scored, key=lambda row: (len(sequences[row]), ids[row]))
    for batch in token_bounded([len(sequences[i]) for i in order], max_batch_tokens):
        rows = [order[position] for position in batch]
        inputs = right_padded([sequences[row] for row in rows], pad_id, device)
        values[rows] = rewards_of(model, inputs).cpu().numpy()
    valid = np.isfinite(values)
    return np.where(valid, values, np.nan).astype(np.float32), valid


def rollout_sequences(rollouts: Rollouts) -> list[NDArray[np.int32]]:
    """Each prompt with its answer, as token ids."""
    return [np.concatenate([rollouts.prompt(row), rollouts.answer(row)]) for row in range(len(rollouts))]
