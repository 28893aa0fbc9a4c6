"""Several questions at once, each asked in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from rlaif_ray.judge.request import Answer, Request, Steps

T = TypeVar("T")


def together(ways: Sequence[Steps[T]]) -> Steps[list[T]]:
    """Ask all that the ways want to know next as one batch, until each has returned. Results in the ways' order."""
    results: dict[int, T] = {}
    answers: dict[int, Sequence[Answer] | None] = dict.fromkeys(range(len(ways)))
    while answers:
        asked: dict[int, Sequence[Request]] = {}
        for index, received in answers.items():
            try:
                asked[index] = next(ways[index]) if received is None else ways[index].send(received)
            except StopIteration as end:
                results[index] = end.value
        if not asked:
            break
        batch = yield [request for requests in asked.values() for request in requests]
        rest = iter(batch)
        answers = {index: [next(rest) for _ in requests] for index, requests in asked.items()}
    return [results[index] for index in range(len(ways))]
