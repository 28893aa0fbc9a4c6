"""A judge that answers from a script, and the questions it is asked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rlaif_ray.judge.asking.terms import Abilities, AskSettings
from rlaif_ray.judge.request import Answer, Form, Reply, Request, Steps
from rlaif_ray.records import Message, Outcome

T = TypeVar("T")

LISTS = Abilities()
WORDS_ONLY = Abilities(top_logprobs=0)
SETTINGS = AskSettings()

FAILED = Answer("k", None, Outcome.FAILED, "timed out 6 times")
OVER_BUDGET = Answer("k", None, Outcome.OVER_BUDGET, "the budget is spent")
REFUSED = Answer("k", None, Outcome.FAILED, "HTTP 400: no", refused=True)


@dataclass(frozen=True)
class Pairwise:
    labels: tuple[str, str] = ("1", "2")
    choose_after: str = "So, which label?"
    verdict_only: str = "The label alone, please."
    verdict_schema: str = '{"verdict": "schema"}'

    def choose(self) -> tuple[Message, ...]:
        return (Message("user", "choose"),)

    def reason(self) -> tuple[Message, ...]:
        return (Message("user", "reason"),)

    def state(self, form: Form) -> tuple[Message, ...]:
        return (Message("user", f"state as {form}"),)


@dataclass(frozen=True)
class Pointwise:
    scale: tuple[int, int] = (1, 10)
    verdict_only: str = "The number alone, please."
    verdict_schema: str = '{"score": "schema"}'

    def score(self) -> tuple[Message, ...]:
        return (Message("user", "score"),)

    def state(self, form: Form) -> tuple[Message, ...]:
        return (Message("user", f"state as {form}"),)


def chat(
    text: str | None,
    *positions: Mapping[str, float],
    finish: str = "stop",
    tokens: Sequence[str] | None = None,
    **message: Any,
) -> str:
    """A chat completion. A position maps tokens to probabilities; the likeliest is drawn where `tokens` names none."""
    drawn = tokens or [max(position, key=lambda token: position[token]) for position in positions]
    content = [
        {
            "token": token,
            "top_logprobs": [{"token": each, "logprob": math.log(share)} for each, share in position.items()],
        }
        for token, position in zip(drawn, positions, strict=True)
    ]
    choice = {
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": finish,
        "logprobs": {"content": content} if positions else None,
    }
    return json.dumps({"model": "m-2026", "system_fingerprint": "fp", "choices": [choice]})


def as_answer(said: str | Answer) -> Answer:
    return said if isinstance(said, Answer) else Answer("k", Reply(said, 10, 1, None, 0.1, 0.0))


def drive(steps: Steps[T], judge: Callable[[Request], str | Answer]) -> tuple[T, list[list[Request]]]:
    """What a way of asking returns, and the batches that it asked."""
    batches: list[list[Request]] = []
    try:
        requests = next(steps)
        while True:
            batches.append(list(requests))
            requests = steps.send([as_answer(judge(request)) for request in requests])
    except StopIteration as end:
        return end.value, batches


def in_turn(*said: str | Answer) -> Callable[[Request], str | Answer]:
    """A judge that says each of these once, and no more."""
    left = iter(said)
    return lambda request: next(left)
