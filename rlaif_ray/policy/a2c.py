"""A2C, the advantage actor-critic (Mnih et al. 2016) in step: a value model, GAE in place of n-step returns, and the
policy gradient without a trust region."""

from __future__ import annotations

from dataclasses import dataclass

from rlaif_ray.config import PpoConfig
from rlaif_ray.policy.algorithm import Experience, Targets, critic_targets
from rlaif_ray.policy.losses import PolicyLoss, TokenBatch, policy_gradient


@dataclass(frozen=True, slots=True)
class A2c:
    config: PpoConfig

    def targets(self, experience: Experience) -> Targets:
        """GAE as it is: neither whitened nor clipped."""
        config = self.config
        return critic_targets(experience, gamma=config.gamma, lam=config.lam, finish=lambda raw, _: raw)

    def loss(self, tokens: TokenBatch) -> PolicyLoss:
        return policy_gradient(tokens)
