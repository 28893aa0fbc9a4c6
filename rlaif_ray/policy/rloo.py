"""RLOO (Ahmadian et al. 2024): an answer's advantage is its reward less the mean of its siblings'. No value model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlaif_ray.config import PpoConfig
from rlaif_ray.policy.algorithm import Experience, Targets, answer_rewards_with_kl, group_targets
from rlaif_ray.policy.groups import group_statistics
from rlaif_ray.policy.losses import PolicyLoss, TokenBatch, clipped_surrogate


@dataclass(frozen=True, slots=True)
class Rloo:
    config: PpoConfig

    def targets(self, experience: Experience) -> Targets:
        """R - mean of the siblings' R on every action, R = score - beta * (k1 summed over the answer)."""
        rewards = answer_rewards_with_kl(experience)
        return group_targets(experience, *leave_one_out(rewards, experience.groups, experience.valid))

    def loss(self, tokens: TokenBatch) -> PolicyLoss:
        return clipped_surrogate(tokens, clip=self.config.clip, dual_clip=self.config.dual_clip)


def leave_one_out(rewards: Tensor, groups: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Advantages (B,) float32 over the valid answers of each group, 0 elsewhere; which answers have one; and which of
    those are in a group without spread.

    R_i - (S - R_i) / (n - 1) = (R_i - S / n) n / (n - 1), where S is the sum of the group's n rewards.
    """
    of = group_statistics(rewards, groups, valid)
    compared = valid & (of.counts >= 2)
    advantages = (rewards.double() - of.means) * of.counts / (of.counts - 1)
    return torch.where(compared, advantages, 0.0).float(), compared, compared & of.tied
