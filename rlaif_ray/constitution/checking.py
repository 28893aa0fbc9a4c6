"""All that is wrong with a user's constitution, or with a file of worked revisions, at once.

What is an error here is what a run refuses. What is a warning, a run takes, and does badly by.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from rlaif_ray.config import UserError
from rlaif_ray.constitution.roles import why_no_critique, why_no_revision
from rlaif_ray.judge.hygiene import are_similar, normalised
from rlaif_ray.judge.material import RevisingPrinciple, RevisionExample
from rlaif_ray.judge.material_files import find, read_list, repetitions, sift

_FEWEST_PRINCIPLES = 4
_SIMILAR = 0.9
_LONGEST_REQUEST_WORDS = 100
_SMALLEST_SHARE = 0.01

_NAMES_THE_ANSWER = re.compile(r"\b(?:answer(?:s|ed)?|repl(?:y|ied)|response|said|wrote)\b", re.IGNORECASE)


_Check = Callable[[Path, list[Any]], "CheckedFile"]


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A file of principles, or of examples. A sentence on each error and each warning names the place and a remedy."""

    path: Path
    principles: tuple[RevisingPrinciple, ...]  # those without an error
    examples: tuple[RevisionExample, ...]
    errors: tuple[str, ...]
    warnings: tuple[str, ...]


def check(name: str) -> CheckedFile:
    """A constitution or a file of examples, as its items' keys tell, by path or shipped name. Raises UserError where
    there is no such file."""
    return _checked(find(name, "--check", ""), lambda path, items: _by_keys(items)(path, items))


def check_constitution(name: str) -> CheckedFile:
    """What `constitution.principles` names."""
    return _checked(find(name, "constitution.principles", "principles"), _constitution)


def check_examples(name: str) -> CheckedFile:
    """What `constitution.examples` names."""
    return _checked(find(name, "constitution.examples", "revisions"), _examples)


def lines(checked: CheckedFile) -> list[str]:
    """What a check found, for a terminal: a line on the file, one on each finding, and of a constitution the share of
    draws that each principle has."""
    kind = "example" if checked.examples else "principle"
    counts = (
        f"{_counted(len(checked.principles) + len(checked.examples), kind)} without an error",
        _counted(len(checked.errors), "error"),
        _counted(len(checked.warnings), "warning"),
    )
    total = sum(principle.weight for principle in checked.principles)
    return [
        f"{checked.path}: {', '.join(counts)}",
        *(f"  error: {sentence}" for sentence in checked.errors),
        *(f"  warning: {sentence}" for sentence in checked.warnings),
        *(
            f"  {principle.id}: {principle.weight / total:.1%} of draws; {', '.join(principle.tags) or 'no tags'}"
            for principle in checked.principles
        ),
    ]


def _checked(path: Path, checked: _Check) -> CheckedFile:
    try:
        items = read_list(path)
    except UserError as error:
        return CheckedFile(path, (), (), (str(error),), ())
    return checked(path, items)


def _by_keys(items: list[Any]) -> _Check:
    return _examples if any(isinstance(item, dict) and "prompt" in item for item in items) else _constitution


def _constitution(path: Path, items: list[Any]) -> CheckedFile:
    principles, errors = sift(items, RevisingPrinciple)
    errors += repetitions("id", _texts(items, "id"))
    warnings = [*_of_all(principles), *_of_each(principles), *_of_pairs(principles)]
    return CheckedFile(path, tuple(principles.values()), (), _in(path, errors), _in(path, warnings))


def _examples(path: Path, items: list[Any]) -> CheckedFile:
    examples, errors = sift(items, RevisionExample)
    errors += repetitions("prompt", _texts(items, "prompt"))
    return CheckedFile(path, (), tuple(examples.values()), _in(path, errors), _in(path, _of_examples(examples)))


def _in(path: Path, sentences: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{path}, {sentence}" for sentence in sentences)


def _texts(items: list[Any], key: str) -> dict[int, str]:
    """What the items say under a key, by their number, as far as it is text."""
    return {
        number: item[key].strip()
        for number, item in enumerate(items, start=1)
        if isinstance(item, dict) and isinstance(item.get(key), str)
    }


def _of_all(principles: Mapping[int, RevisingPrinciple]) -> Iterable[str]:
    if len(principles) < _FEWEST_PRINCIPLES:
        yield (
            f"whole file: only {len(principles)} principles without an error, and a policy learns little but them; "
            f"write at least {_FEWEST_PRINCIPLES}"
        )
    if untagged := [number for number, principle in principles.items() if not principle.tags]:
        yield f"{_numbered(untagged)}: no tags; add some, such as [harm], to tell figures apart by them"


def _of_each(principles: Mapping[int, RevisingPrinciple]) -> Iterable[str]:
    total = sum(principle.weight for principle in principles.values())
    for number, principle in principles.items():
        if principle.weight / total < _SMALLEST_SHARE:
            yield (
                f"item {number}, weight: {principle.weight:g} is {principle.weight / total:.2%} of all, so that it is "
                "hardly ever drawn; raise it or take the principle out"
            )
        if normalised(principle.critique) == normalised(principle.revision):
            yield f"item {number}: critique and revision ask the same; ask what is wrong first, then for better"
        for key, request in (("critique", principle.critique), ("revision", principle.revision)):
            yield from _of_request(f"item {number}, {key}", request)


def _of_request(place: str, request: str) -> Iterable[str]:
    if not _NAMES_THE_ANSWER.search(request):
        yield f"{place}: does not speak of the answer; say that it is the last answer that is meant"
    if (words := len(request.split())) > _LONGEST_REQUEST_WORDS:
        yield f"{place}: has {words} words; a small model loses its way in so many, so keep to {_LONGEST_REQUEST_WORDS}"


def _of_pairs(principles: Mapping[int, RevisingPrinciple]) -> Iterable[str]:
    for (number, one), (other_number, other) in combinations(principles.items(), 2):
        if alike := [
            key
            for key in ("text", "critique", "revision")
            if are_similar(normalised(getattr(one, key)), normalised(getattr(other, key)), _SIMILAR)
        ]:
            yield (
                f"{_numbered([number, other_number])}: nearly the same {' and '.join(alike)}; say what sets them apart "
                "or keep one of them"
            )


def _of_examples(examples: Mapping[int, RevisionExample]) -> Iterable[str]:
    for number, example in examples.items():
        requests = (example.critique_request, example.revision_request)
        critique = why_no_critique(example.critique, answer=example.answer, request=example.critique_request)
        revision = why_no_revision(example.revision, critique=example.critique, requests=requests)
        for key, confusion in (("critique", critique), ("revision", revision)):
            if confusion is not None:
                yield f"item {number}, {key}: teaches what a run takes for confusion: {confusion}; write it anew"
        for key, request in (("critique_request", requests[0]), ("revision_request", requests[1])):
            yield from _of_request(f"item {number}, {key}", request)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _numbered(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"item {numbers[0]}"
    return f"items {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
