"""What the toy worlds share: their facts, streams of random numbers by seed, and prompts known by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from rlaif_ray.config import UserError
from rlaif_ray.records import Prompt

FACTS = (
    "storm",
    "vote",
    "strike",
    "parade",
    "fair",
    "rain",
    "fire",
    "flood",
    "trial",
    "match",
    "concert",
    "rescue",
    "robbery",
    "wedding",
    "budget",
    "harvest",
    "eclipse",
    "festival",
    "tunnel",
    "bridge",
)


def generator(seed: int, stream: int) -> np.random.Generator:
    """One of the streams that a seed names; each world numbers its own."""
    return np.random.default_rng([seed, stream])


def one_of(words: Sequence[str], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]


def distinct_prompts(world: str, count: int, world_size: int, draw: Callable[[int], Iterable[str]]) -> list[Prompt]:
    """Prompts on the first `count` different contents of an endless stream, of which `draw` takes as many as it is
    told. A prompt's id is derived from its content, so that it is the same in every stream.

    Raises UserError where the world has fewer.
    """
    if count > world_size:
        raise UserError(f"prompts: the toy world has {world_size} prompts, fewer than the {count} asked for")
    contents: dict[str, None] = {}
    while len(contents) < count:
        contents.update(dict.fromkeys(draw(count - len(contents))))
    return [Prompt(id=f"{world}-{hashlib.sha256(one.encode()).hexdigest()[:16]}", content=one) for one in contents]
