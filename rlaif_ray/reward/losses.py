"""Losses of the reward model on pairs: in float64 where the scores are, else in float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlaif_ray.config import RewardConfig


def preference_loss(scores_a: Tensor, scores_b: Tensor, p: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Soft cross-entropy (N,) under Bradley-Terry: -[p log s(d - m) + (1 - p) log s(-d - m)], d = r_a - r_b.

    `p` (N,) is the probability that answer a is the better one (Lee et al. 2024); at p = 1 it is the usual loss. Each
    answer must lead by `margin` (N,) before its share of the loss counts it as ahead (Touvron et al. 2023).
    """
    lead = _precise(scores_a) - _precise(scores_b)
    p = p.to(lead.dtype)
    return -(p * logsigmoid(lead - margin) + (1 - p) * logsigmoid(-lead - margin))


def smoothed(p: Tensor, smoothing: float) -> Tensor:
    """Labels (N,) moved towards 1/2."""
    return (1 - smoothing) * p + smoothing / 2


def decisiveness(p: Tensor) -> Tensor:
    """|2p - 1| (N,): 0 where a label favours neither answer, 1 where it is certain."""
    return (2 * p - 1).abs()


def centring_loss(scores_a: Tensor, scores_b: Tensor) -> Tensor:
    """(r_a + r_b)^2 (N,), which fixes the level that preferences leave free (Eisenstein et al. 2023)."""
    return (_precise(scores_a) + _precise(scores_b)).square()


def magnitude_loss(scores_a: Tensor, scores_b: Tensor) -> Tensor:
    """r_a^2 + r_b^2 (N,), which keeps scores small."""
    return _precise(scores_a).square() + _precise(scores_b).square()


def ranks_alike(scores_a: Tensor, scores_b: Tensor, p: Tensor) -> Tensor:
    """Whether scores and label name the same answer (N,) bool; equal scores name none."""
    return torch.sign(scores_a - scores_b) == torch.sign(p - 0.5)


@dataclass(frozen=True, slots=True)
class PairObjective:
    """What the reward model minimises on a pair, by the keys of `reward` with the same names."""

    label_smoothing: float = 0.0
    margin: float = 0.0
    centring: float = 0.0
    magnitude: float = 0.0

    @classmethod
    def of(cls, config: RewardConfig) -> PairObjective:
        return cls(config.label_smoothing, config.margin, config.centring, config.magnitude)

    def __call__(self, scores_a: Tensor, scores_b: Tensor, p: Tensor, weight: Tensor) -> Tensor:
        """Losses (N,). `weight` (N,) is what a pair's label counts for."""
        margin = self.margin * decisiveness(p)
        losses = weight * preference_loss(scores_a, scores_b, smoothed(p, self.label_smoothing), margin)
        if self.centring:
            losses = losses + self.centring * centring_loss(scores_a, scores_b)
        if self.magnitude:
            losses = losses + self.magnitude * magnitude_loss(scores_a, scores_b)
        return losses


def _precise(scores: Tensor) -> Tensor:
    return scores if scores.dtype == torch.float64 else scores.float()
