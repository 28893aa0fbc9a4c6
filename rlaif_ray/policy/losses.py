"""Losses of the policy and the value model, and their measures.

Shapes are (B, T): B answers, T tokens; `mask` (bool) marks the actions that count, and masks are applied with `where`,
so that what lies outside may be NaN. Losses are sums over a micro-batch divided by `tokens`, the number of actions of
the whole optimizer step over every rank and micro-batch: how a step is split changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RATIO_BOUND = 20.0
"""Log ratios are cut here before exp: e^20 is far outside any trust region and still finite in float32."""


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


def reference_kl_loss(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor, *, tokens: int) -> Tensor:
    """k3 = exp(d) - 1 - d with d = log pi_ref - log pi, a token, as a loss (Shao et al. 2024, eq. 4).

    Its value is an unbiased estimate of KL(pi || pi_ref) on answers of pi, and never negative; its gradient is not that
    KL's: on the same answers it is that of KL(pi_ref || pi), and answers of an older policy bias both.
    """
    distance = torch.where(mask, reference_logprobs - logprobs, 0.0).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    return (distance.exp() - 1 - distance).sum() / tokens


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
