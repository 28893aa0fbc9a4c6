"""REINFORCE with a learnt baseline (Williams 1992), as RLAIF's paper trains by it (Lee et al. 2023): an action's
advantage is the return that followed, less what the value model expected."""

from __future__ import annotations

from dataclasses import dataclass

from rlaif_ray.config import PpoConfig
from rlaif_ray.policy.algorithm import Experience, Targets, critic_targets
from rlaif_ray.policy.losses import PolicyLoss, TokenBatch, policy_gradient


@dataclass(frozen=True, slots=True)
class Reinforce:
    config: PpoConfig

    def targets(self, experience: Experience) -> Targets:
        """Z_t - V(s_t), Z_t the whole return from t on: GAE at lambda = 1. Neither whitened nor clipped."""
        return critic_targets(experience, gamma=self.config.gamma, lam=1.0, finish=lambda raw, _: raw)

    def loss(self, tokens: TokenBatch) -> PolicyLoss:
        return policy_gradient(tokens)
