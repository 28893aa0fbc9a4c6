"""GRPO (Shao et al. 2024): an answer's advantage is its score, standardised within its group, and the KL from the
reference is a term of the loss. No value model.

Every token of an optimizer step weighs the same, in short answers and in long ones; the paper averages within each
answer first, which favours long answers where the advantage is negative (Liu et al. 2025).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlaif_ray import metrics
from rlaif_ray.config import PpoConfig
from rlaif_ray.policy.algorithm import Experience, Targets
from rlaif_ray.policy.groups import group_statistics, share_of_groups
from rlaif_ray.policy.losses import PolicyLoss, policy_loss, reference_kl_loss

# Below it a group's standard deviation is rounding.
_NO_SPREAD = 1e-6


@dataclass(frozen=True, slots=True)
class Grpo:
    config: PpoConfig

    @property
    def has_value_model(self) -> bool:
        return False

    def targets(self, experience: Experience) -> Targets:
        """(score - group's mean) / group's standard deviation on every action.

        A group with fewer than two valid answers is left out. One whose valid answers all have the same score has the
        advantage 0, so that only the KL moves them. Both are counted.
        """
        advantages, compared, tied = standardised(experience.scores, experience.groups, experience.valid)
        mask = experience.mask & compared[:, None]
        measures = {
            metrics.LONE_GROUP_FRACTION: 1 - share_of_groups(compared, experience.groups),
            metrics.TIED_GROUP_FRACTION: share_of_groups(tied, experience.groups),
        }
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
        clipped = policy_loss(logprobs, old_logprobs, advantages, mask, clip=self.config.clip, tokens=tokens)
        kl = reference_kl_loss(logprobs, reference_logprobs, mask, tokens=tokens)
        return PolicyLoss(clipped.loss + self.config.kl_coefficient * kl, clipped.clipped, clipped.kl)


def standardised(scores: Tensor, groups: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Advantages (B,) float32 over the valid answers of each group, 0 elsewhere; which answers have one; and which of
    those are in a group without spread."""
    of = group_statistics(scores, groups, valid)
    compared = valid & (of.counts >= 2)
    tied = compared & (of.stds < _NO_SPREAD)
    advantages = (scores.double() - of.means) / of.stds.clamp(min=_NO_SPREAD)
    return torch.where(compared & ~tied, advantages, 0.0).float(), compared, tied
