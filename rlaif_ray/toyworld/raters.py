"""Simulated people who compare two answers: noisy, and with a lean to the one that they see first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from rlaif_ray.records import Prompt

# A rater picks the better of two answers with probability sigmoid(dU / RATER_NOISE), plus a lean to the first shown.
RATER_NOISE = 0.45
FIRST_POSITION_LEAN = 0.6


@dataclass(frozen=True, slots=True)
class RaterLabel:
    """Which of two answers a rater named."""

    prompt: Prompt
    preferred: str
    other: str


def first_probability(difference: float) -> float:
    """Probability that a rater names the answer shown first, which is better by `difference` utility units."""
    logit = difference / RATER_NOISE + FIRST_POSITION_LEAN
    # Written with tanh, which no logit overflows.
    return 0.5 * (1.0 + math.tanh(0.5 * logit))


def compare(
    prompts: Iterable[Prompt],
    answer: Callable[[Prompt, np.random.Generator], str],
    utility: Callable[[Prompt, str], float],
    rng: np.random.Generator,
) -> list[RaterLabel]:
    """One label a prompt: two different answers to it, of which either may be shown first, and a coin that falls as
    `first_probability` says of their utilities."""
    labels = []
    for prompt in prompts:
        first, second = answer(prompt, rng), answer(prompt, rng)
        while second == first:
            second = answer(prompt, rng)
        names_first = rng.random() < first_probability(utility(prompt, first) - utility(prompt, second))
        labels.append(RaterLabel(prompt, *((first, second) if names_first else (second, first))))
    return labels
