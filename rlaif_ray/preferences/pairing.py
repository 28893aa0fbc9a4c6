"""Which of the answers to a prompt are compared.

`random`, `all` and `best_worst` choose prompt by prompt; `active` spends the whole collection's budget where reward
models are least sure.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlaif_ray.judge.hygiene import NotSent, why_not_sent
from rlaif_ray.records import Pair, Prompt

Pairing = Literal["random", "all", "best_worst", "active"]
MemberScores = Mapping[str, tuple[float, ...]]  # sample id to its normalised score by each reward model


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled answer as text."""

    sample_id: str
    text: str


@dataclass(frozen=True, slots=True)
class AnsweredPrompt:
    """A prompt and the answers that were sampled to it."""

    prompt: Prompt
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class PairDraw:
    """The pairs to judge, in the order of their prompts. `not_sent` counts, by reason, those that were drawn and are
    not sent to judges."""

    pairs: tuple[Pair, ...]
    not_sent: Counter[NotSent]


def draw_pairs(
    answered: Sequence[AnsweredPrompt],
    pairing: Pairing,
    *,
    pairs_per_prompt: int,
    seed: int,
    similarity_bound: float,
    scores: MemberScores | None = None,
) -> PairDraw:
    """Pairs of answers to the same prompt, none twice, the same for the same seed and scores.

    `random`: up to `pairs_per_prompt` of each prompt. `all`: all. `best_worst`: of each prompt the pair whose mean
    scores lie farthest apart. `active`: of all prompts together as many as `random` would draw, the most uncertain
    first. The last two leave out answers without scores, and raise ValueError where there are no scores at all.

    A pair that is not worth asking about is counted, and the next one takes its place. Which answer is shown first is
    drawn at random; a pair's id names its two samples in that order.
    """
    possible = [_possible_pairs(one, seed) for one in answered]
    if pairing == "random":
        draws = [_worth_sending(pairs, pairs_per_prompt, similarity_bound) for pairs in possible]
    elif pairing == "all":
        draws = [_worth_sending(pairs, len(pairs), similarity_bound) for pairs in possible]
    elif scores is None:
        raise ValueError(f"pairing {pairing} needs scores")
    elif pairing == "best_worst":
        draws = [_worth_sending(_ranked(pairs, scores, score_gap), 1, similarity_bound) for pairs in possible]
    else:
        ranked = _ranked(itertools.chain.from_iterable(possible), scores, uncertainty)
        draws = [_worth_sending(ranked, pairs_per_prompt * len(answered), similarity_bound)]
    place = {one.prompt.id: number for number, one in enumerate(answered)}
    pairs = sorted((pair for draw in draws for pair in draw.pairs), key=lambda pair: place[pair.prompt.id])
    return PairDraw(tuple(pairs), sum((draw.not_sent for draw in draws), Counter()))


def score_gap(a: Sequence[float], b: Sequence[float]) -> float:
    """How far apart two answers' mean scores lie, given each answer's score by each reward model."""
    return abs(statistics.fmean(a) - statistics.fmean(b))


def uncertainty(a: Sequence[float], b: Sequence[float]) -> float:
    """How unsure reward models are of the better of two answers, likewise: over an ensemble, the standard deviation of
    the difference; of one model, the difference's size, negated."""
    differences = [of_a - of_b for of_a, of_b in zip(a, b, strict=True)]
    return statistics.pstdev(differences) if len(differences) > 1 else -abs(differences[0])


def _possible_pairs(answered: AnsweredPrompt, seed: int) -> list[Pair]:
    """All pairs of the answers to one prompt, in a random order, each in a random order of presentation."""
    digest = hashlib.sha256(f"{seed}\0{answered.prompt.id}".encode()).digest()
    generator = random.Random(int.from_bytes(digest[:8], "big"))
    combinations = list(itertools.combinations(answered.answers, 2))
    generator.shuffle(combinations)
    return [_pair(answered.prompt, *(both if generator.random() < 0.5 else both[::-1])) for both in combinations]


def _pair(prompt: Prompt, a: Answer, b: Answer) -> Pair:
    return Pair(
        id=f"{a.sample_id}~{b.sample_id}",
        prompt=prompt,
        response_a=a.text,
        response_b=b.text,
        sample_a=a.sample_id,
        sample_b=b.sample_id,
    )


def _worth_sending(candidates: Iterable[Pair], count: int, similarity_bound: float) -> PairDraw:
    """The first `count` candidates that are worth asking about."""
    pairs: list[Pair] = []
    not_sent: Counter[NotSent] = Counter()
    for pair in candidates:
        if len(pairs) == count:
            break
        reason = why_not_sent(pair, similarity_bound)
        if reason is None:
            pairs.append(pair)
        else:
            not_sent[reason] += 1
    return PairDraw(tuple(pairs), not_sent)


def _ranked(
    pairs: Iterable[Pair], scores: MemberScores, worth: Callable[[Sequence[float], Sequence[float]], float]
) -> list[Pair]:
    """The pairs whose answers both have scores, those of the highest worth first, and equal ones by id."""
    keyed = []
    for pair in pairs:
        a, b = scores.get(pair.sample_a or ""), scores.get(pair.sample_b or "")
        if a is not None and b is not None:
            keyed.append((-worth(a, b), pair.id, pair))
    return [pair for _, _, pair in sorted(keyed, key=lambda key: key[:2])]
