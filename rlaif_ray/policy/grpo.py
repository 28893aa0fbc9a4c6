"""GRPO (Shao et al. 2024): an answer's advantage is its score, standardised within its group. No value model. The KL
from the reference is a term of the loss unless the config puts it into the reward.

The paper averages the loss within each answer first (`ppo.aggregation=answer_mean`), which favours long answers where
the advantage is negative (Liu et al. 2025); by default all tokens of an optimizer step weigh the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlaif_ray.config import PpoConfig
from rlaif_ray.policy.algorithm import Experience, Targets, answer_rewards_with_kl, group_targets
from rlaif_ray.policy.groups import NO_SPREAD, group_statistics
from rlaif_ray.policy.losses import PolicyLoss, TokenBatch, clipped_surrogate


@dataclass(frozen=True, slots=True)
class Grpo:
    config: PpoConfig

    def targets(self, experience: Experience) -> Targets:
        """(R - group's mean) / group's standard deviation on every action."""
        rewards = answer_rewards_with_kl(experience)
        return group_targets(experience, *standardised(rewards, experience.groups, experience.valid))

    def loss(self, tokens: TokenBatch) -> PolicyLoss:
        return clipped_surrogate(tokens, clip=self.config.clip, dual_clip=self.config.dual_clip)


def standardised(rewards: Tensor, groups: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Advantages (B,) float32 over the valid answers of each group, 0 elsewhere; which answers have one; and which of
    those are in a group without spread."""
    of = group_statistics(rewards, groups, valid)
    compared = valid & (of.counts >= 2)
    tied = compared & of.tied
    advantages = (rewards.double() - of.means) / of.stds.clamp(min=NO_SPREAD)
    return torch.where(compared & ~tied, advantages, 0.0).float(), compared, tied
