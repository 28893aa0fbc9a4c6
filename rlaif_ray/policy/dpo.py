"""Direct preference optimisation: what a policy loses on pairs of answers, in place of a reward model and PPO.

The policy is its own reward model: an answer's implicit reward is beta * log(pi / pi_ref), summed over its tokens
(Rafailov et al. 2023). Column 0 of the (N, 2) tensors is answer a, column 1 answer b, and `p` (N,) is the probability
that a is the better one. To swap a pair's answers, with 1 - p for p, changes no loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlaif_ray.config import DpoConfig
from rlaif_ray.reward.losses import preference_loss


def dpo_loss(log_ratios: Tensor, p: Tensor, *, beta: float) -> Tensor:
    """Soft cross-entropy (N,) of Bradley-Terry on implicit rewards: -[p log s(beta h) + (1 - p) log s(-beta h)].

    h is the difference of the `log_ratios` (N, 2), log pi - log pi_ref of whole answers. At p = 1 it is the paper's
    equation 7.
    """
    rewards = beta * log_ratios
    return preference_loss(rewards[:, 0], rewards[:, 1], p)


def ipo_loss(log_ratios: Tensor, lengths: Tensor, p: Tensor, *, beta: float) -> Tensor:
    """Identity preference optimisation (N,), Azar et al. 2023: (h - (2p - 1) / (2 beta))^2.

    Their loss of a verdict in both orders is [(h - 1 / beta)^2 + h^2] / 2 = (h - 1 / (2 beta))^2 + constant. Its mean
    over verdicts that name a with probability p is [p (h - 1 / beta)^2 + (1 - p) h^2 + (1 - p) (h + 1 / beta)^2 +
    p h^2] / 2, which is the above but for a constant. h is the difference of mean log-ratios a token, as in their
    experiments: of sums, the distance from a fixed target would grow with the answers. `lengths` (N, 2) are in tokens.
    """
    means = log_ratios / lengths
    return (means[:, 0] - means[:, 1] - (2 * p - 1) / (2 * beta)).square()


def flipped(p: Tensor, share: float) -> Tensor:
    """The labels (N,), where a `share` of them is taken to name the wrong answer (conservative DPO, Mitchell 2023)."""
    return (1 - share) * p + share * (1 - p)


@dataclass(frozen=True, slots=True)
class DpoObjective:
    """What the policy minimises on a pair, by the keys of `dpo` with the same names."""

    loss: Literal["sigmoid", "ipo"]
    beta: float
    label_smoothing: float

    @classmethod
    def of(cls, config: DpoConfig) -> DpoObjective:
        return cls(config.loss, config.beta, config.label_smoothing)

    def __call__(self, log_ratios: Tensor, lengths: Tensor, p: Tensor, weight: Tensor) -> Tensor:
        """Losses (N,). `weight` (N,) is what a pair's label counts for."""
        p = flipped(p.to(log_ratios.dtype), self.label_smoothing)
        if self.loss == "ipo":
            return weight * ipo_loss(log_ratios, lengths, p, beta=self.beta)
        return weight * dpo_loss(log_ratios, p, beta=self.beta)

    def leads(self, log_ratios: Tensor, p: Tensor) -> Tensor:
        """By how much the implicit reward of the answer that the label prefers exceeds the other's (N,); 0 in a tie."""
        return self.beta * (log_ratios[:, 0] - log_ratios[:, 1]) * torch.sign(p - 0.5)
