"""RLOO (Ahmadian et al. 2024): an answer's advantage is its reward less the mean of its siblings'. No value model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlaif_ray import metrics
from rlaif_ray.config import PpoConfig
from rlaif_ray.policy.algorithm import Experience, Targets
from rlaif_ray.policy.groups import group_statistics, share_of_groups
from rlaif_ray.policy.losses import PolicyLoss, policy_loss


@dataclass(frozen=True, slots=True)
class Rloo:
    config: PpoConfig

    @property
    def has_value_model(self) -> bool:
        return False

    def targets(self, experience: Experience) -> Targets:
        """R - mean of the siblings' R on every action, R = score - beta * (k1 summed over the answer).

        A group with fewer than two valid answers has no siblings to compare: it is left out, and counted.
        """
        gaps = torch.where(experience.mask, experience.logprobs - experience.reference_logprobs, 0.0)
        rewards = experience.scores - self.config.kl_coefficient * gaps.sum(1)
        advantages, compared = leave_one_out(rewards, experience.groups, experience.valid)
        mask = experience.mask & compared[:, None]
        measures = {metrics.LONE_GROUP_FRACTION: 1 - share_of_groups(compared, experience.groups)}
        return Targets(torch.where(mask, advantages[:, None], 0.0), mask, None, measures)

    def loss(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        reference_logprobs: Tensor,
        advantages: Tensor,
        mask: Tensor,
        *,
        tokens: int,
    ) -> PolicyLoss:
        return policy_loss(logprobs, old_logprobs, advantages, mask, clip=self.config.clip, tokens=tokens)


def leave_one_out(rewards: Tensor, groups: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Advantages (B,) float32 over the valid answers of each group, and which answers have one (B,); 0 elsewhere.

    R_i - (S - R_i) / (n - 1) = (R_i - S / n) n / (n - 1), where S is the sum of the group's n rewards.
    """
    of = group_statistics(rewards, groups, valid)
    compared = valid & (of.counts >= 2)
    advantages = (rewards.double() - of.means) * of.counts / (of.counts - 1)
    return torch.where(compared, advantages, 0.0).float(), compared
