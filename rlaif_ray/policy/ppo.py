"""PPO for language models: rewards, losses and their measures (Schulman et al. 2017; Ziegler et al. 2019).

Shapes are (B, T): B answers, T tokens; `mask` (bool) marks the actions that count, and masks are applied with `where`,
so that what lies outside may be NaN. Losses are sums over a micro-batch divided by `tokens`, the number of actions of
the whole optimizer step over every rank and micro-batch: how a step is split changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LOG_RATIO_BOUND = 20.0
"""Log ratios are cut here before exp: e^20 is far outside any trust region and still finite in float32."""


@dataclass(frozen=True, slots=True)
class AnswerRewards:
    """`scores` (B,) float32, normalised, zero where not `valid`; `valid` (B,) bool: the answers to learn from."""

    scores: Tensor
    valid: Tensor


def answer_rewards(
    rewards: Tensor,
    valid: Tensor,
    truncated: Tensor,
    *,
    clip: float,
    on_truncation: Literal["penalty", "mask"],
    truncation_score: float,
) -> AnswerRewards:
    """Clip normalised rewards (B,) to +-`clip`, and settle truncation.

    `valid` (B,) says which answers were scored; the others keep no number. `truncated` (B,) says which ones hit the
    length limit: a `penalty` puts `truncation_score` (in the rewards' units) in place of their score, and `mask` makes
    them invalid.
    """
    scores = rewards.float().clamp(-clip, clip)
    if on_truncation == "penalty":
        scores = torch.where(truncated, truncation_score, scores)
    else:
        valid = valid & ~truncated
    return AnswerRewards(torch.where(valid, scores, 0.0), valid)


def token_rewards(
    scores: Tensor, logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor, *, kl_coefficient: float
) -> Tensor:
    """r_t = -beta (log pi(a_t) - log pi_ref(a_t)), plus the answer's score on its last action (B, T).

    The KL estimate is k1 under the policy that sampled: unbiased, and a reward, so no gradient goes through it.
    Rows without an action get no reward.
    """
    kl = torch.where(mask, logprobs.float() - reference_logprobs.float(), 0.0)
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, positions, -1).amax(dim=1, keepdim=True)
    terminal = mask & (positions == last)
    return torch.where(terminal, scores[:, None].float(), 0.0) - kl_coefficient * kl


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """`loss` carries the gradient; the rest are detached sums over the masked tokens."""

    loss: Tensor
    clipped: Tensor
    kl: Tensor  # k3 of the sampling policy from this one: exp(d) - 1 - d, d = log pi - log pi_old


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip: float, tokens: int
) -> PolicyLoss:
    """The clipped surrogate, max(-A r, -A clip(r, 1 - clip, 1 + clip)) (Schulman et al. 2017, eq. 7)."""
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    advantages = torch.where(mask, advantages, 0.0)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip, 1 + clip)
    with torch.no_grad():
        clipped = (bounded > plain).sum()
        kl = (ratio - 1 - log_ratio).sum()
    return PolicyLoss(torch.maximum(plain, bounded).sum() / tokens, clipped, kl)


@dataclass(frozen=True, slots=True)
class ValueLoss:
    """`loss` carries the gradient; `clipped` counts the tokens whose clipped error was the larger."""

    loss: Tensor
    clipped: Tensor


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float, tokens: int
) -> ValueLoss:
    """Half the larger of two squared errors: of V, and of V kept within +-`clip` of the value before the update."""
    values = torch.where(mask, values.float(), 0.0)
    old_values = torch.where(mask, old_values, 0.0)
    returns = torch.where(mask, returns, 0.0)
    plain = (values - returns).square()
    near = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
    return ValueLoss(0.5 * torch.maximum(plain, near).sum() / tokens, (near > plain).sum().detach())


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the masked tokens; NaN where the returns do not vary."""
    targets = returns[mask].double()
    errors = targets - values[mask].double()
    variance = targets.var(correction=0)
    if variance <= 1e-12:
        return float("nan")
    return float(1 - errors.var(correction=0) / variance)
