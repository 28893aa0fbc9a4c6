"""How likely a model finds whole answers: what the trainers on given answers (SFT, DPO) are made of."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlaif_ray.policy.logprobs import token_logprobs
from rlaif_ray.policy.packing import Ragged, answer_logits


def answer_logprobs(model: nn.Module, sequences: Ragged, rows: NDArray[np.int64], device: torch.device) -> Tensor:
    """log pi(answer | prompt) (M,) of these rows, in their order: float32, summed over an answer's tokens."""
    # Longest first, so that sequences of equal length are neighbours, and attend in one call.
    order = np.argsort(-sequences.lengths[rows], kind="stable")
    inputs = sequences.pack(rows[order], device)
    logprobs = token_logprobs(answer_logits(model, inputs), inputs.answer_ids, temperature=1.0)
    owners = torch.from_numpy(np.repeat(order, sequences.answer_lengths[rows[order]])).to(device)
    return logprobs.new_zeros(len(rows)).index_add(0, owners, logprobs)
