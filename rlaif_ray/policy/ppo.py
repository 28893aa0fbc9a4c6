"""PPO for language models (Schulman et al. 2017; Ziegler et al. 2019): a value model, GAE, and KL in the reward."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rlaif_ray import metrics
from rlaif_ray.config import PpoConfig
from rlaif_ray.policy.advantages import generalized_advantages, whiten
from rlaif_ray.policy.algorithm import Experience, Targets
from rlaif_ray.policy.losses import PolicyLoss, explained_variance, policy_loss
from rlaif_ray.policy.rewards import token_rewards


@dataclass(frozen=True, slots=True)
class Ppo:
    config: PpoConfig

    @property
    def has_value_model(self) -> bool:
        return True

    def targets(self, experience: Experience) -> Targets:
        """Whitened GAE of the score on the last action with the KL penalty on every one."""
        if experience.values is None:
            raise ValueError("PPO needs values")
        config, mask = self.config, experience.mask
        rewards = token_rewards(
            experience.scores,
            experience.logprobs,
            experience.reference_logprobs,
            mask,
            kl_coefficient=config.kl_coefficient,
        )
        raw = generalized_advantages(rewards, experience.values, mask, gamma=config.gamma, lam=config.lam)
        explained = explained_variance(experience.values, raw.returns, mask)
        return Targets(whiten(raw.advantages, mask), mask, raw.returns, {metrics.EXPLAINED_VARIANCE: explained})

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
