"""Which of a prompt's answers are compared."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from rlaif_ray.records import Pair, Prompt


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled answer as text."""

    sample_id: str
    text: str


@dataclass(frozen=True, slots=True)
class PairDraw:
    """The pairs of one prompt. `too_similar` counts those that were drawn and not sent to judges."""

    pairs: tuple[Pair, ...]
    too_similar: int


def draw_pairs(prompt: Prompt, answers: Sequence[Answer], count: int, seed: int, similarity_bound: float) -> PairDraw:
    """Up to `count` random pairs, none twice, the same for the same (seed, prompt id).

    A pair of too similar answers is counted, and the next one drawn takes its place: a judge has nothing to choose
    there, and its label would be its lean. The pair's id names the two samples, whatever the draw.
    """
    digest = hashlib.sha256(f"{seed}\0{prompt.id}".encode()).digest()
    generator = random.Random(int.from_bytes(digest[:8], "big"))
    candidates = list(itertools.combinations(answers, 2))
    generator.shuffle(candidates)
    pairs: list[Pair] = []
    too_similar = 0
    for candidate in candidates:
        if len(pairs) == count:
            break
        a, b = candidate if generator.random() < 0.5 else candidate[::-1]
        if are_too_similar(a.text, b.text, similarity_bound):
            too_similar += 1
            continue
        pairs.append(
            Pair(
                id=f"{a.sample_id}~{b.sample_id}",
                prompt=prompt,
                response_a=a.text,
                response_b=b.text,
                sample_a=a.sample_id,
                sample_b=b.sample_id,
            )
        )
    return PairDraw(tuple(pairs), too_similar)


def are_too_similar(a: str, b: str, bound: float) -> bool:
    """Whether two answers are the same but for white space, or their similarity reaches `bound`.

    Similarity is twice the number of matching characters over the number of all (Ratcliff and Metzener 1988).
    """
    a, b = " ".join(a.split()), " ".join(b.split())
    if a == b:
        return True
    if bound >= 1:
        return False
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    # Two cheap upper bounds first: most pairs are far apart.
    return matcher.real_quick_ratio() >= bound and matcher.quick_ratio() >= bound and matcher.ratio() >= bound
