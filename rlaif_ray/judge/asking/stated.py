"""Verdicts and scores in words, for endpoints without log-probabilities: reasoning first, then the verdict, as JSON
where the endpoint can be bound to it. Several are drawn at once, and what could be read of them is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from rlaif_ray.judge.asking.ladder import (
    NoCompletion,
    answered,
    ask_until_read,
    stated_verdict,
    try_to_read,
    verdict_request,
)
from rlaif_ray.judge.asking.replies import Completion
from rlaif_ray.judge.asking.terms import Abilities, AskSettings, PairQuestion
from rlaif_ray.judge.asking.together import together
from rlaif_ray.judge.asking.verdicts import reasoning_of, share_of_votes
from rlaif_ray.judge.reading import Reading, Rung
from rlaif_ray.judge.request import Form, Request, Steps
from rlaif_ray.records import Message, Outcome

V = TypeVar("V")

# Where samples disagree on why there is nothing to read, the gravest reason is told.
_GRAVITY = (Outcome.OVER_BUDGET, Outcome.FAILED, Outcome.ABSTAINED)


@dataclass(frozen=True, slots=True)
class Statement(Generic[V]):
    """What one sample said."""

    value: V
    rationale: str
    rung: Rung


def ask_stated(question: PairQuestion, abilities: Abilities, settings: AskSettings) -> Steps[Reading]:
    """Probability of the first label from counted verdicts, of those that could be read. At most four calls
    a sample."""
    try:
        votes = yield from ask_statements(
            question.state(abilities.form),
            question.verdict_schema,
            question.verdict_only,
            lambda completion: stated_verdict(completion, question.labels),
            abilities,
            settings,
        )
    except NoCompletion as failure:
        return Reading(failure.outcome, str(failure))
    first = sum(vote.value == question.labels[0] for vote in votes)
    second = len(votes) - first
    majority = question.labels[0 if first >= second else 1]
    return Reading(
        Outcome.SCORED,
        "",
        p_first=share_of_votes(first, second),
        rung=worst_rung(votes),
        rationale=next(vote.rationale for vote in votes if vote.value == majority),
        votes_first=first,
        votes_second=second,
    )


def ask_statements(
    messages: tuple[Message, ...],
    schema: str,
    verdict_only: str,
    read: Callable[[Completion], V | None],
    abilities: Abilities,
    settings: AskSettings,
) -> Steps[list[Statement[V]]]:
    """`settings.samples` statements, those left out that could not be read. Raises NoCompletion where none could, and
    where the budget ended before all were drawn."""
    request = Request(
        messages,
        max_tokens=abilities.stated_tokens,
        temperature=_temperature(abilities, settings),
        form=abilities.form,
        schema=schema if abilities.form in (Form.SCHEMA, Form.TOOL) else "",
    )
    drawn = yield from together(
        [
            _ask_statement(replace(request, sample=sample), verdict_only, read, abilities, settings.samples)
            for sample in range(settings.samples)
        ]
    )
    statements = [one for one in drawn if isinstance(one, Statement)]
    failures = [one for one in drawn if isinstance(one, NoCompletion)]
    gravest = min(failures, key=lambda failure: _GRAVITY.index(failure.outcome), default=None)
    if gravest is not None and (not statements or gravest.outcome is Outcome.OVER_BUDGET):
        raise gravest
    return statements


def worst_rung(statements: Sequence[Statement[V]]) -> Rung:
    """The last resort that any of them needed."""
    return Rung.REFORMAT if any(one.rung is Rung.REFORMAT for one in statements) else Rung.TEXT


def _ask_statement(
    request: Request, verdict_only: str, read: Callable[[Completion], V | None], abilities: Abilities, samples: int
) -> Steps[Statement[V] | NoCompletion]:
    try:
        reply = yield from ask_until_read(request, samples)
        if reply.declined:
            return NoCompletion(Outcome.ABSTAINED, reply.declined)
        value, rung = read(reply), Rung.TEXT
        if value is None:
            conversation = answered(request.messages, reply.text, verdict_only)
            (answer,) = yield [verdict_request(conversation, abilities, request.sample)]
            again = try_to_read(answer)
            value, rung = None if again is None else read(again), Rung.REFORMAT
    except NoCompletion as failure:
        return failure
    if value is None:
        reason = f"the reply ends with no verdict (finish_reason: {reply.finish_reason}), nor does the one after it"
        return NoCompletion(Outcome.ABSTAINED, reason)
    return Statement(value, reasoning_of(reply.text), rung)


def _temperature(abilities: Abilities, settings: AskSettings) -> float | None:
    if not abilities.temperature:
        return None
    return 0.0 if settings.samples == 1 else settings.sample_temperature
