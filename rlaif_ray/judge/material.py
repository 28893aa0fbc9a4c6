"""What a judge is shown or held to beside the question: few-shot examples, criteria, a rubric, principles; and what a
policy revises its answers by: a constitution and worked revisions.

Each is a YAML or JSON list in a file that a user writes, or one that is shipped. A bad file is refused when it is
read, with the place in it. This module knows nothing of templates: they say where its texts stand.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from rlaif_ray.config import UserError
from rlaif_ray.judge.material_files import find, read_list, repetitions, sift

LEVELS = (1, 2, 3, 4, 5)
"""The levels of every criterion of a rubric, from the worst."""


def _said(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank; write something")
    return text


def _all_levels(levels: dict[int, str]) -> dict[int, str]:
    if sorted(levels) != list(LEVELS):
        raise ValueError("must describe each of the levels 1, 2, 3, 4 and 5")
    return dict(sorted(levels.items()))


Verbatim = Annotated[str, AfterValidator(_said)]
Sentence = Annotated[str, StringConstraints(strip_whitespace=True), AfterValidator(_said)]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]


class _Item(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Example(_Item):
    """A pair whose better answer is known, shown to the judge before the pair that it is asked about."""

    prompt: Verbatim
    answer_a: Verbatim
    answer_b: Verbatim
    better: Literal["a", "b"]
    rationale: Sentence | None = None

    @model_validator(mode="after")
    def _answers_differ(self) -> Example:
        if self.answer_a == self.answer_b:
            raise ValueError("answer_a and answer_b are the same; give two different answers")
        return self


class Criterion(_Item):
    """One dimension of a rubric, asked by itself on its levels from 1, the worst, to 5."""

    name: Sentence
    weight: Weight = 1.0
    question: Sentence
    levels: Annotated[dict[int, Sentence], AfterValidator(_all_levels)]


class Principle(_Item):
    """One principle of a constitution. A pair is judged by its text, and an answer is criticised and revised on its
    requests (Bai et al. 2022, Constitutional AI, sections 3.1 and 4.1)."""

    id: Sentence
    text: Sentence
    critique: Sentence | None = None
    revision: Sentence | None = None
    weight: Weight = 1.0
    tags: tuple[Sentence, ...] = ()


class RevisingPrinciple(Principle):
    """A principle that has what revising by it needs."""

    critique: Sentence
    revision: Sentence


class RevisionExample(_Item):
    """A worked critique and revision, shown to a model before it is asked for its own."""

    prompt: Verbatim
    answer: Verbatim
    critique_request: Sentence
    critique: Verbatim
    revision_request: Sentence
    revision: Verbatim

    @model_validator(mode="after")
    def _roles_differ(self) -> RevisionExample:
        if self.critique == self.revision:
            raise ValueError("critique and revision are the same; say in one what is wrong, and in the other do better")
        return self


@dataclass(frozen=True)
class Material:
    """Everything that a config names for its judge to read. `hash` identifies all of it in every judgement."""

    examples: tuple[Example, ...] = ()
    criteria: tuple[str, ...] = ()
    rubric: tuple[Criterion, ...] = ()
    principles: tuple[Principle, ...] = ()

    @cached_property
    def hash(self) -> str:
        text = json.dumps(asdict(self), default=_fields, ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


NO_MATERIAL = Material()


def load_material(
    *,
    examples: str | None = None,
    criteria: str | None = None,
    rubric: str | None = None,
    principles: str | None = None,
) -> Material:
    """Read each file that is named, by its shipped name or its path. Raises UserError naming the file and the place."""
    return Material(
        examples=load_examples(examples) if examples else (),
        criteria=load_criteria(criteria) if criteria else (),
        rubric=load_rubric(rubric) if rubric else (),
        principles=load_principles(principles) if principles else (),
    )


def load_examples(name: str) -> tuple[Example, ...]:
    """Few-shot examples. No pair may stand there twice, least of all with both answers called better."""
    path, examples = _load(name, "judge.examples", "examples", Example)
    seen: dict[Hashable, tuple[int, str]] = {}
    for number, example in enumerate(examples, start=1):
        better = example.answer_a if example.better == "a" else example.answer_b
        pair = (example.prompt, frozenset({example.answer_a, example.answer_b}))
        earlier, earlier_better = seen.setdefault(pair, (number, better))
        if earlier_better != better:
            raise UserError(f"{path}, items {earlier} and {number} contradict each other on one pair; keep one of them")
        if earlier != number:
            raise UserError(f"{path}, items {earlier} and {number} are the same pair; keep one of them")
    return examples


def load_criteria(name: str) -> tuple[str, ...]:
    """Plain sentences that say what to weigh."""
    return _load_distinct(name, "judge.criteria", "criteria", Sentence, "text", str)


def load_rubric(name: str) -> tuple[Criterion, ...]:
    """Criteria with levels."""
    return _load_distinct(name, "judge.rubric", "rubric", Criterion, "name", attrgetter("name"))


def load_principles(name: str) -> tuple[Principle, ...]:
    """A constitution to judge by."""
    return _load_distinct(name, "judge.principles", "principles", Principle, "id", attrgetter("id"))


def load_constitution(name: str) -> tuple[RevisingPrinciple, ...]:
    """A constitution to revise by: every principle has both of its requests."""
    return _load_distinct(name, "constitution.principles", "principles", RevisingPrinciple, "id", attrgetter("id"))


def load_revision_examples(name: str) -> tuple[RevisionExample, ...]:
    """Worked critiques and revisions, to be shown in their order."""
    return _load_distinct(name, "constitution.examples", "revisions", RevisionExample, "prompt", attrgetter("prompt"))


T = TypeVar("T")


def draw(items: Sequence[T], seed: int, key: str, count: int, weights: Sequence[float] | None = None) -> tuple[T, ...]:
    """`count` different items, each next one with a chance in proportion to its weight among those left.

    A pure function: a rerun draws the same, on any machine. `key` names what is drawn and for which pair, such as
    "principles/<pair id>": two draws from lists of one length with one key and seed are the same draw. A larger
    `count` only adds to a smaller one (Efraimidis and Spirakis 2006, exponential keys). Raises ValueError where
    there are fewer items than `count`.
    """
    if not 0 <= count <= len(items):
        raise ValueError(f"cannot draw {count} of {len(items)}")
    if len(items) == count == 1:
        return (items[0],)
    times = [
        -math.log(_uniform(seed, key, index)) / weight
        for index, weight in enumerate(weights if weights is not None else [1.0] * len(items))
    ]
    return tuple(items[index] for index in sorted(range(len(items)), key=times.__getitem__)[:count])


def _uniform(seed: int, key: str, index: int) -> float:
    """In (0, 1], from 53 bits of a hash."""
    digest = hashlib.sha256(f"{seed}\0{key}\0{index}".encode()).digest()
    return ((int.from_bytes(digest[:8]) >> 11) + 1) / 2.0**53


def _fields(item: Any) -> Any:
    # A judge never reads the requests of a principle.
    return item.model_dump(exclude={"critique", "revision"})


def _load(name: str, key: str, shipped: str, kind: type[T]) -> tuple[Path, tuple[T, ...]]:
    path = find(name, key, shipped)
    right, wrong = sift(read_list(path), kind)
    if wrong:
        raise UserError(f"{path}, {wrong[0]}")
    return path, tuple(right.values())


def _load_distinct(
    name: str, key: str, shipped: str, kind: type[T], what: str, identity: Callable[[T], str]
) -> tuple[T, ...]:
    """Items of which no two have the same identity, called `what` in the file."""
    path, items = _load(name, key, shipped, kind)
    for sentence in repetitions(what, dict(enumerate(map(identity, items), start=1))):
        raise UserError(f"{path}, {sentence}")
    return items
