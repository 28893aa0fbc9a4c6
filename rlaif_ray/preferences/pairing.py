"""Which of a prompt's answers are compared."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rlaif_ray.judge.hygiene import NotSent, why_not_sent
from rlaif_ray.records import Pair, Prompt


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled answer as text."""

    sample_id: str
    text: str


@dataclass(frozen=True, slots=True)
class PairDraw:
    """The pairs of one prompt. `not_sent` counts, by reason, those that were drawn and are not sent to judges."""

    pairs: tuple[Pair, ...]
    not_sent: Counter[NotSent]


def draw_pairs(prompt: Prompt, answers: Sequence[Answer], count: int, seed: int, similarity_bound: float) -> PairDraw:
    """Up to `count` random pairs, none twice, the same for the same (seed, prompt id).

    A pair that is not worth asking about is counted, and the next one drawn takes its place. A pair's id names its two
    samples, whatever the draw.
    """
    digest = hashlib.sha256(f"{seed}\0{prompt.id}".encode()).digest()
    generator = random.Random(int.from_bytes(digest[:8], "big"))
    candidates = list(itertools.combinations(answers, 2))
    generator.shuffle(candidates)
    pairs: list[Pair] = []
    not_sent: Counter[NotSent] = Counter()
    for candidate in candidates:
        if len(pairs) == count:
            break
        a, b = candidate if generator.random() < 0.5 else candidate[::-1]
        pair = Pair(
            id=f"{a.sample_id}~{b.sample_id}",
            prompt=prompt,
            response_a=a.text,
            response_b=b.text,
            sample_a=a.sample_id,
            sample_b=b.sample_id,
        )
        reason = why_not_sent(pair, similarity_bound)
        if reason is None:
            pairs.append(pair)
        else:
            not_sent[reason] += 1
    return PairDraw(tuple(pairs), not_sent)
