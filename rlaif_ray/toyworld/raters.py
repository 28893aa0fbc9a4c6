"""Simulated people who compare two summaries: noisy, and with a lean to the one that they see first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlaif_ray.records import Prompt
from rlaif_ray.toyworld.headlines import hurried_answer, prompts, rater_probability

_RATER_STREAM = 3  # beside those of `headlines`


@dataclass(frozen=True, slots=True)
class RaterLabel:
    """Which of two summaries a rater named."""

    prompt: Prompt
    preferred: str
    other: str


def rater_labels(count: int, seed: int) -> list[RaterLabel]:
    """The first `count` labels of the stream that `seed` names: two different demonstrators' summaries to a prompt, of
    which either may be shown first, and a coin that falls as `rater_probability` says.

    Prompts are distinct, and drawn apart from those of `prompts` and `demonstrations`.
    """
    rng = np.random.default_rng([seed, _RATER_STREAM])
    labels = []
    for prompt in prompts(count, int(rng.integers(2**63))):
        first, second = hurried_answer(prompt, rng), hurried_answer(prompt, rng)
        while second == first:
            second = hurried_answer(prompt, rng)
        names_first = rng.random() < rater_probability(prompt, first, second)
        labels.append(RaterLabel(prompt, *((first, second) if names_first else (second, first))))
    return labels
