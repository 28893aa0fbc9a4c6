"""Losses of the reward model on pairs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def preference_loss(scores_a: Tensor, scores_b: Tensor, p: Tensor) -> Tensor:
    """Soft cross-entropy (N,) under Bradley-Terry: -[p log s(d) + (1 - p) log s(-d)], d = r_a - r_b, in float32.

    `p` (N,) is the probability that answer a is the better one (Lee et al. 2024); at p = 1 it is the usual loss.
    """
    margin = scores_a.float() - scores_b.float()
    p = p.float()
    return -(p * logsigmoid(margin) + (1 - p) * logsigmoid(-margin))


def centring_loss(scores_a: Tensor, scores_b: Tensor) -> Tensor:
    """(r_a + r_b)^2 (N,) in float32, which fixes the level that preferences leave free (Eisenstein et al. 2023)."""
    return (scores_a.float() + scores_b.float()).square()


def ranks_alike(scores_a: Tensor, scores_b: Tensor, p: Tensor) -> Tensor:
    """Whether scores and label name the same answer (N,) bool; equal scores name none."""
    return torch.sign(scores_a - scores_b) == torch.sign(p - 0.5)
