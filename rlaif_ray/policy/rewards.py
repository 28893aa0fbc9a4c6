"""What answers earn: their scores, bounded and settled, and those spread over tokens with the KL penalty.

Shapes are (B,) for answers and (B, T) for tokens; `mask` (bool) marks the actions that count, and is applied with
`where`, so that what lies outside may be NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


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
    on_truncation: Literal["penalty", "mask", "bootstrap"],
    truncation_score: float,
) -> AnswerRewards:
    """Clip normalised rewards (B,) to +-`clip`, and settle truncation.

    `valid` (B,) says which answers were scored; the others keep no number. `truncated` (B,) says which ones hit the
    length limit: a `penalty` puts `truncation_score` (in the rewards' units) in place of their score, `mask` makes them
    invalid, and with `bootstrap` they have no score, as their values say what would have followed.
    """
    scores = rewards.float().clamp(-clip, clip)
    if on_truncation == "penalty":
        scores = torch.where(truncated, truncation_score, scores)
    elif on_truncation == "bootstrap":
        scores = torch.where(truncated, 0.0, scores)
    else:
        valid = valid & ~truncated
    return AnswerRewards(torch.where(valid, scores, 0.0), valid)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, *, kl_coefficient: float) -> Tensor:
    """r_t = -beta (log pi(a_t) - log pi_ref(a_t)), plus the answer's score on its last action (B, T).

    `kl` (B, T) holds those differences: k1 under the policy that sampled is unbiased, and as a reward no gradient goes
    through it. Rows without an action get no reward.
    """
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, positions, -1).amax(dim=1, keepdim=True)
    terminal = mask & (positions == last)
    return torch.where(terminal, scores[:, None].float(), 0.0) - kl_coefficient * torch.where(mask, kl.float(), 0.0)
