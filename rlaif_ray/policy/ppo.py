"""PPO for language models (Schulman et al. 2017; Ziegler et al. 2019): a value model, GAE, and a clipped surrogate."""

from __future__ import annotations

from dataclasses import dataclass

from rlaif_ray.config import PpoConfig
from rlaif_ray.policy.advantages import whiten
from rlaif_ray.policy.algorithm import Experience, Targets, critic_targets
from rlaif_ray.policy.losses import PolicyLoss, TokenBatch, clipped_surrogate


@dataclass(frozen=True, slots=True)
class Ppo:
    config: PpoConfig

    def targets(self, experience: Experience) -> Targets:
        """Whitened GAE."""
        return critic_targets(experience, gamma=self.config.gamma, lam=self.config.lam, finish=whiten)

    def loss(self, tokens: TokenBatch) -> PolicyLoss:
        return clipped_surrogate(tokens, clip=self.config.clip, dual_clip=self.config.dual_clip)
