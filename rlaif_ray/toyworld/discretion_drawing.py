"""Draws the requests of Discretion, and answers to them: prompts, demonstrations and people's labels. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rlaif_ray.records import Demonstration, Prompt
from rlaif_ray.toyworld.discretion import (
    ASKED_PER_PROMPT,
    KINDS,
    SORRY,
    WARNINGS_PER_PROMPT,
    Request,
    helpful_utility,
    request_of,
)
from rlaif_ray.toyworld.drawing import FACTS, distinct_prompts, generator, one_of
from rlaif_ray.toyworld.raters import RaterLabel, compare

# Demonstrators tell all that is asked; or they leave a fact out; or they have one wrong.
_DEMONSTRATIONS = (0.75, 0.15, 0.10)

_ASKED_AND_KINDS = math.perm(len(FACTS), ASKED_PER_PROMPT) * math.perm(len(KINDS), WARNINGS_PER_PROMPT)
_UNASKED = len(FACTS) - ASKED_PER_PROMPT
_ORDINARY_COUNT = _ASKED_AND_KINDS * math.perm(_UNASKED, 3)
# Any of three asked facts in any of three warnings; or two of them, in order, in any two.
_RED_TEAM_COUNT = _ASKED_AND_KINDS * (3 * 3 * math.perm(_UNASKED, 2) + 3 * 2 * 3 * _UNASKED)
_PROMPT_STREAM, _RED_TEAM_STREAM, _DEMONSTRATION_STREAM, _ANSWER_STREAM, _REFERENCE_STREAM, _RATER_STREAM = range(6)


def prompts(count: int, seed: int) -> list[Prompt]:
    """The first `count` ordinary requests of the stream that `seed` names, no two alike.

    Raises UserError where the world has fewer.
    """
    return _distinct_prompts(count, generator(seed, _PROMPT_STREAM), red_team=False)


def red_team_prompts(count: int, seed: int) -> list[Prompt]:
    """The first `count` red-team requests of the stream that `seed` names, no two alike.

    Raises UserError as `prompts` does.
    """
    return _distinct_prompts(count, generator(seed, _RED_TEAM_STREAM), red_team=True)


def with_references(prompts: list[Prompt], seed: int) -> list[Prompt]:
    """The prompts, each with a demonstrator's answer as its reference."""
    rng = generator(seed, _REFERENCE_STREAM)
    return [replace(prompt, reference=helpful_answer(prompt, rng)) for prompt in prompts]


def demonstrations(count: int, seed: int) -> list[Demonstration]:
    """The first `count` demonstrations of the stream that `seed` names: helpful answers to distinct ordinary requests.

    Their prompts are drawn apart from those of `prompts`. Raises UserError as that does.
    """
    drawn = _distinct_prompts(count, generator(seed, _DEMONSTRATION_STREAM), red_team=False)
    rng = generator(seed, _ANSWER_STREAM)
    return [Demonstration(prompt, helpful_answer(prompt, rng)) for prompt in drawn]


def rater_labels(count: int, seed: int) -> list[RaterLabel]:
    """The first `count` labels of the stream that `seed` names: two answers of any quality to an ordinary request,
    compared by `helpful_utility`.

    Prompts are distinct, and drawn apart from those of `prompts` and `demonstrations`.
    """
    rng = generator(seed, _RATER_STREAM)
    return compare(prompts(count, int(rng.integers(2**63))), varied_answer, helpful_utility, rng)


def helpful_answer(prompt: Prompt, rng: np.random.Generator) -> str:
    """One demonstrator's answer, to any request: what is asked, warned of or not. Raises ValueError as `conduct`."""
    told = _shuffled(request_of(prompt).asked, rng)
    slip = rng.choice(len(_DEMONSTRATIONS), p=_DEMONSTRATIONS)
    if slip > 0:
        told.pop()
    if slip == 2:
        invented = [fact for fact in FACTS if fact not in prompt.text.split()]
        told.insert(rng.integers(len(told) + 1), one_of(invented, rng))
    return " ".join(told)


def varied_answer(prompt: Prompt, rng: np.random.Generator) -> str:
    """An answer of any quality: with things left out, not asked for or said twice, and `sorry` with no regard to need.

    Raises ValueError as `conduct` does.
    """
    asked = request_of(prompt).asked
    told = [fact for fact in _shuffled(asked, rng) if rng.random() < 0.7]
    if rng.random() < 0.2:
        told.insert(rng.integers(len(told) + 1), one_of([fact for fact in FACTS if fact not in asked], rng))
    if told and rng.random() < 0.15:
        told.insert(rng.integers(len(told) + 1), one_of(told, rng))
    if not told or rng.random() < 0.2:
        told.insert(0, SORRY)
    return " ".join(told)


def draw_request(rng: np.random.Generator, *, red_team: bool) -> Request:
    """A request: ordinary, or one of which one or two facts that are asked for are warned of."""
    facts = _shuffled(FACTS, rng)
    asked, unasked = facts[:ASKED_PER_PROMPT], facts[ASKED_PER_PROMPT:]
    harmful = asked[: rng.integers(1, ASKED_PER_PROMPT)] if red_team else []
    warned = _shuffled([*harmful, *unasked][:WARNINGS_PER_PROMPT], rng)
    kinds = _shuffled(KINDS, rng)[:WARNINGS_PER_PROMPT]
    return Request(tuple(_shuffled(asked, rng)), dict(zip(warned, kinds, strict=True)))


def _distinct_prompts(count: int, rng: np.random.Generator, *, red_team: bool) -> list[Prompt]:
    world_size = _RED_TEAM_COUNT if red_team else _ORDINARY_COUNT
    return distinct_prompts(
        "discretion",
        count,
        world_size,
        lambda more: (draw_request(rng, red_team=red_team).content for _ in range(more)),
    )


def _shuffled(words: Sequence[str], rng: np.random.Generator) -> list[str]:
    return [words[place] for place in rng.permutation(len(words))]
