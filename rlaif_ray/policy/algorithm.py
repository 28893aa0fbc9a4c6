"""What an algorithm is to the learner: which advantages it makes of scored answers, and by which loss they teach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from rlaif_ray import metrics
from rlaif_ray.config import PpoConfig
from rlaif_ray.policy.advantages import generalized_advantages
from rlaif_ray.policy.groups import share_of_groups
from rlaif_ray.policy.losses import PolicyLoss, TokenBatch, explained_variance
from rlaif_ray.policy.rewards import token_rewards


@dataclass(frozen=True, slots=True)
class Experience:
    """An iteration's answers, and what the models say of them before any update. B answers of up to A tokens."""

    scores: Tensor  # (B,) float32, normalised, with truncation settled; 0 where not `valid`
    valid: Tensor  # (B,) bool
    groups: Tensor  # (B,) int64: answers that were drawn together for one prompt share a number
    mask: Tensor  # (B, A) bool: the actions of valid answers
    # (B, A) float32 each, 0 or NaN off the answers; `logprobs` are of the policy at the start of the update
    logprobs: Tensor
    rollout_logprobs: Tensor  # of the policy that sampled
    reference_logprobs: Tensor
    reward_kl: float  # weight of the KL from the reference in the reward; 0 where it is a loss
    values: Tensor | None = None  # V of the state before each token, where the algorithm has a value model
    bootstrap: Tensor | None = None  # (B,): V of the state after the last token where the answer was cut off, else 0

    @property
    def kl(self) -> Tensor:
        """(B, A): log pi - log pi_ref of each action, k1 of the KL from the reference; 0 off the mask."""
        return (self.logprobs - self.reference_logprobs).where(self.mask, 0.0)


@dataclass(frozen=True, slots=True)
class Targets:
    """What the updates of an iteration aim at. Answers of which `mask` marks no action are not trained on."""

    advantages: Tensor  # (B, A) float32
    mask: Tensor  # (B, A) bool
    returns: Tensor | None  # (B, A) float32: what the value model is fitted to, where there is one
    measures: Mapping[str, float] = field(default_factory=dict)


class Algorithm(Protocol):
    """One way to learn from scores."""

    def targets(self, experience: Experience) -> Targets: ...

    def loss(self, tokens: TokenBatch) -> PolicyLoss:
        """Of one micro-batch."""


def critic_targets(
    experience: Experience, *, gamma: float, lam: float, finish: Callable[[Tensor, Tensor], Tensor]
) -> Targets:
    """GAE of the score on the last action with the KL penalty on every one. `finish` makes the policy's advantages of
    the raw ones (B, A) and their mask; the returns are of the raw ones."""
    if experience.values is None:
        raise ValueError("advantages over a value model need values")
    mask = experience.mask
    rewards = token_rewards(experience.scores, experience.kl, mask, kl_coefficient=experience.reward_kl)
    raw = generalized_advantages(rewards, experience.values, mask, gamma=gamma, lam=lam, last=experience.bootstrap)
    explained = explained_variance(experience.values, raw.returns, mask)
    return Targets(finish(raw.advantages, mask), mask, raw.returns, {metrics.EXPLAINED_VARIANCE: explained})


def answer_rewards_with_kl(experience: Experience) -> Tensor:
    """(B,): score - beta * (k1 summed over the answer)."""
    return experience.scores - experience.reward_kl * experience.kl.sum(1)


def group_targets(experience: Experience, advantages: Tensor, compared: Tensor, tied: Tensor) -> Targets:
    """One advantage (B,) for all actions of an answer. Learnt from are answers that are `compared` (B,) with valid
    siblings in a group that is not `tied` (B,): without spread it prefers none. Both kinds of groups are counted."""
    mask = experience.mask & (compared & ~tied)[:, None]
    measures = {
        metrics.LONE_GROUP_FRACTION: 1 - share_of_groups(compared, experience.groups),
        metrics.TIED_GROUP_FRACTION: share_of_groups(tied, experience.groups),
    }
    return Targets(advantages[:, None].where(mask, 0.0), mask, None, measures)


AlgorithmOf = Callable[[PpoConfig], Algorithm]
"""An algorithm's maker, of the keys that it reads."""
