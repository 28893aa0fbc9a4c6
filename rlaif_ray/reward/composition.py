"""Rewards that add up: the answers as all sources read them, what each says, and their weighted sum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rlaif_ray.records import Prompt, Rollouts


@dataclass(frozen=True, slots=True)
class DecodedAnswer:
    """One answer as judges and rules read it."""

    sample_id: str
    group_id: str  # answers that were drawn together for one prompt share it
    prompt: Prompt
    text: str


@dataclass(frozen=True, slots=True)
class RewardPart:
    """What one source says of a batch of answers."""

    values: NDArray[np.float64]  # (B,); NaN where it says nothing
    reasons: Counter[str] = field(default_factory=Counter)  # why something has no number, and how often
    details: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)  # (B,) each: logged, and not added


def decoded_answers(
    rollouts: Sequence[Rollouts], decode: Callable[[Rollouts], Sequence[str]], prompts: Mapping[str, Prompt]
) -> list[DecodedAnswer]:
    """The answers of all shards, in order. Raises KeyError for a prompt that is not among `prompts`."""
    return [
        DecodedAnswer(sample_id, group_id, prompts[prompt_id], text)
        for shard in rollouts
        for sample_id, group_id, prompt_id, text in zip(
            shard.sample_ids, shard.group_ids, shard.prompt_ids, decode(shard), strict=True
        )
    ]


def composed(
    parts: Mapping[str, NDArray[np.float64]], weights: Mapping[str, float]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The weighted sum (B,) of the parts, and where it holds (B,): every part that has a weight must say something.

    A part of weight 0 is looked at and not added, whatever it says. NaN where the sum does not hold.
    """
    (size,) = {len(values) for values in parts.values()}
    total = np.zeros(size)
    for name, weight in weights.items():
        if weight:
            total += weight * parts[name]
    values = total.astype(np.float32)
    valid = np.isfinite(values)
    return np.where(valid, values, np.float32(np.nan)), valid
