"""Generalised advantage estimation and whitening, on masked tokens, in float32.

Every function takes the mask of the tokens that count as a required argument; what lies outside it may hold anything,
NaN included, and reaches no result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Advantages:
    """`advantages` and `returns` (B, T) float32, zero outside the mask."""

    advantages: Tensor
    returns: Tensor


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float, last: Tensor | None = None
) -> Advantages:
    """GAE (Schulman et al. 2016, eq. 16) over the actions of each row: A_t = d_t + gamma lam A_{t+1}.

    `rewards`, `values` (B, T); `values[:, t]` is V of the state before action t. V after a row's last action is 0, or
    `last` (B,) where a row was cut off.
    `mask` (B, T) bool marks actions. Other tokens are no step of the process: the recursion carries past them, without
    discount, so observations between two turns of an answer neither cost lambda nor take part.
    Returns are A + V, before any whitening.
    """
    rewards = torch.where(mask, rewards.float(), 0.0)
    values = torch.where(mask, values.float(), 0.0)
    advantages = torch.zeros_like(rewards)
    advantage = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(rewards[:, 0]) if last is None else last.float()
    for t in range(rewards.shape[1] - 1, -1, -1):
        action = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = torch.where(action, delta + gamma * lam * advantage, advantage)
        next_value = torch.where(action, values[:, t], next_value)
        advantages[:, t] = torch.where(action, advantage, 0.0)
    return Advantages(advantages, torch.where(mask, advantages + values, 0.0))


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """`values` (B, T) with the mean 0 and variance 1 of their masked entries; zero elsewhere.

    Give it the whole rollout batch: the statistics of a micro-batch would weigh an answer by its neighbours. With
    fewer than two entries, or all of them equal, only the mean is taken off.
    """
    count = mask.sum()
    if count == 0:
        raise ValueError("nothing to whiten: the mask is empty")
    values = torch.where(mask, values.float(), 0.0)
    mean = values.sum() / count
    centred = torch.where(mask, values - mean, 0.0)
    variance = centred.square().sum() / (count - 1).clamp(min=1)
    return centred * torch.where(variance > 1e-12, variance.clamp(min=1e-12).rsqrt(), 1.0)
