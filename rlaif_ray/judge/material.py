"""What a judge is shown or held to beside the question: few-shot examples, criteria, a rubric, principles.

Each is a YAML or JSON list in a file that a user writes, or one that is shipped. A bad file is refused when it is
read, with the place in it. This module knows nothing of templates: they say where its texts stand.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from rlaif_ray.config import UserError

SHIPPED = Path(__file__).parent / "material"

LEVELS = (1, 2, 3, 4, 5)
"""The levels of every criterion of a rubric, from the worst."""


def _said(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


def _all_levels(levels: dict[int, str]) -> dict[int, str]:
    if sorted(levels) != list(LEVELS):
        raise ValueError("must describe each of the levels 1, 2, 3, 4 and 5")
    return dict(sorted(levels.items()))


Verbatim = Annotated[str, AfterValidator(_said)]
Sentence = Annotated[str, StringConstraints(strip_whitespace=True), AfterValidator(_said)]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


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
    """One sentence of a constitution, by which a pair is judged (Bai et al. 2022, Constitutional AI, section 4.1)."""

    id: Sentence
    text: Sentence
    weight: Weight = 1.0
    tags: tuple[Sentence, ...] = ()


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
    path, examples = _load(name, "examples", Example)
    seen: dict[Hashable, tuple[int, str]] = {}
    for number, example in enumerate(examples, start=1):
        better = example.answer_a if example.better == "a" else example.answer_b
        pair = (example.prompt, frozenset({example.answer_a, example.answer_b}))
        earlier, earlier_better = seen.setdefault(pair, (number, better))
        if earlier_better != better:
            raise UserError(f"{path}: items {earlier} and {number} contradict each other on one pair; keep one of them")
        if earlier != number:
            raise UserError(f"{path}: items {earlier} and {number} are the same pair; keep one of them")
    return examples


def load_criteria(name: str) -> tuple[str, ...]:
    """Plain sentences that say what to weigh."""
    path, criteria = _load(name, "criteria", Sentence)
    _refuse_repetition(path, "text", criteria)
    return criteria


def load_rubric(name: str) -> tuple[Criterion, ...]:
    """Criteria with levels."""
    path, rubric = _load(name, "rubric", Criterion)
    _refuse_repetition(path, "name", [criterion.name for criterion in rubric])
    return rubric


def load_principles(name: str) -> tuple[Principle, ...]:
    """A constitution's principles."""
    path, principles = _load(name, "principles", Principle)
    _refuse_repetition(path, "id", [principle.id for principle in principles])
    return principles


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
    return item.model_dump()


def _load(name: str, kind: str, item: type[T]) -> tuple[Path, tuple[T, ...]]:
    path = SHIPPED / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob(f"{kind}*.yaml")))
        raise UserError(f"judge.{kind}: no file {name!r} and none shipped of that name ({shipped})")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: is not YAML ({error.problem}); correct or quote what stands there") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML in UTF-8 ({' '.join(str(error).split())})") from None
    if not isinstance(tree, list) or not tree:
        raise UserError(f"{path}: must be a list with at least one item, each starting with `- `")
    try:
        return path, TypeAdapter(tuple[item, ...]).validate_python(tree)  # type: ignore[valid-type]
    except ValidationError as error:
        problem = error.errors()[0]
        number, *keys = problem["loc"]
        place = f"item {int(number) + 1}" + "".join(f", {key}" for key in keys)
        message = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else problem["msg"]
        raise UserError(f"{path}, {place}: {message}") from None


def _refuse_repetition(path: Path, what: str, values: Sequence[str]) -> None:
    for number, value in enumerate(values, start=1):
        earlier = values.index(value) + 1
        if earlier != number:
            raise UserError(f"{path}: items {earlier} and {number} have the same {what} {value!r}; change one of them")
