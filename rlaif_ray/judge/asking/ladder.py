"""One choice between two labels, and what to do where the judge does not make it plainly.

The ladder: the labels' log-probabilities; the words of the reply; one call that asks for the verdict alone; one call
that can say nothing but a label; no verdict. Each step is taken only where the one before gave nothing, and no step
falls back on a label, on one half or on zero.
"""

from __future__ import annotations

from dataclasses import replace

from rlaif_ray.judge.asking.choice import bare, choose, label_position, spell_out
from rlaif_ray.judge.asking.replies import Completion, MalformedReply, read_completion
from rlaif_ray.judge.asking.terms import Abilities, AskSettings, PairQuestion
from rlaif_ray.judge.asking.verdicts import parse_verdict, share_of_votes
from rlaif_ray.judge.reading import Reading, Rung
from rlaif_ray.judge.request import Answer, Form, Request, Steps
from rlaif_ray.judge.templates import neutralise
from rlaif_ray.records import Message, Outcome

_SENTENCE_TOKENS = 16

# A malformed reply is bad luck once, and three in a row are how the endpoint is.
_ASKED_AGAIN = 2


class NoCompletion(Exception):
    """A question that brought nothing to read. `outcome` says what became of it, the text why."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


def ask_choice(
    conversation: tuple[Message, ...], question: PairQuestion, abilities: Abilities, settings: AskSettings
) -> Steps[Reading]:
    """Probability of the first label after a conversation that ends by asking for a label. At most five calls."""
    labels, least = question.labels, settings.min_label_mass
    try:
        completion = yield from ask_until_read(choice_request(conversation, abilities))
        first = read_choice(completion, labels, least)
        if first.outcome is Outcome.SCORED or completion.declined:
            return first
        if completion.text.strip():
            conversation = answered(conversation, completion.text, question.verdict_only)
            (answer,) = yield [replace(verdict_request(conversation, abilities), top_logprobs=abilities.top_logprobs)]
            again = try_to_read(answer)
            reading = read_choice(again, labels, least) if again is not None else first
            if reading.outcome is Outcome.SCORED:
                return replace(reading, rung=Rung.REFORMAT)
        (answer,) = yield [replace(choice_request(conversation, abilities), form=Form.CHOICE, choices=labels)]
        confined = try_to_read(answer)
    except NoCompletion as failure:
        return Reading(failure.outcome, str(failure))
    return (read_confined(confined, labels) if confined is not None else None) or first


def choice_request(conversation: tuple[Message, ...], abilities: Abilities) -> Request:
    """Asks for one word and its alternatives."""
    return Request(
        messages=conversation,
        max_tokens=abilities.shortest_reply,
        temperature=0.0 if abilities.temperature else None,
        top_logprobs=abilities.top_logprobs,
    )


def verdict_request(conversation: tuple[Message, ...], abilities: Abilities, sample: int = 0) -> Request:
    """Asks for the verdict alone, with room for a sentence around it."""
    return Request(
        messages=conversation,
        max_tokens=max(abilities.shortest_reply, _SENTENCE_TOKENS),
        temperature=0.0 if abilities.temperature else None,
        sample=sample,
    )


def answered(conversation: tuple[Message, ...], reply: str, turn: str) -> tuple[Message, ...]:
    """The conversation after a judge's reply and the user's next turn. The reply may quote an answer under judgement,
    so it is data as well."""
    return (*conversation, Message("assistant", neutralise(reply.strip())), Message("user", turn))


def ask_until_read(request: Request, spare: int = 1) -> Steps[Completion]:
    """A reply that holds what was asked for. One that does not was paid for, and the question is put again, as the
    sample `spare` further: twice where it was malformed, once where it only lacked something; words without the
    log-probabilities are better than nothing. Raises NoCompletion where none brought anything."""
    reason, outcome, words = "", Outcome.FAILED, None
    for tried in range(_ASKED_AGAIN + 1):
        ask = replace(request, sample=request.sample + tried * spare)
        (answer,) = yield [ask]
        if answer.refused:
            raise NoCompletion(Outcome.FAILED, answer.reason)
        completion = try_to_read(answer)
        if completion is None:
            reason, outcome = f"the endpoint's reply is malformed, and so are the next {_ASKED_AGAIN}", Outcome.FAILED
            if words is None:
                continue
            break
        if completion.declined or _is_whole(ask, completion):
            return completion
        if completion.text.strip():
            words = completion
        else:
            reason, outcome = f"the reply is empty (finish_reason: {completion.finish_reason})", Outcome.ABSTAINED
        if tried:
            break
    if words is None:
        raise NoCompletion(outcome, reason)
    return words


def try_to_read(answer: Answer) -> Completion | None:
    """None for a reply that cannot be read, and for a request that the endpoint will not have. Raises NoCompletion
    where a call was not made or failed."""
    if answer.reply is None:
        if answer.refused:
            return None
        raise NoCompletion(answer.no_reply or Outcome.FAILED, answer.reason)
    try:
        return read_completion(answer.reply.text)
    except MalformedReply:
        return None


def read_choice(completion: Completion, labels: tuple[str, str], min_label_mass: float) -> Reading:
    """The first two rungs: the labels' log-probabilities, else the words of the reply."""
    if completion.declined:
        return Reading(Outcome.ABSTAINED, completion.declined)
    try:
        position = label_position(completion)
        reading = choose(completion.top_tokens(position), labels, min_label_mass)
        if reading.outcome is Outcome.SCORED or bare(completion.tokens[position]) in labels:
            return reading
    except MalformedReply as error:
        reading = Reading(Outcome.ABSTAINED, str(error))
    verdict = stated_verdict(completion, labels)
    if verdict is None:
        return replace(reading, reason=f"{reading.reason}, and its words end with no verdict")
    return _voted(reading, verdict, labels, Rung.TEXT)


def stated_verdict(completion: Completion, labels: tuple[str, str]) -> str | None:
    """The label that a reply's words end by naming. What ends a reply that was cut is not its verdict, unless it is
    the label alone."""
    if completion.finish_reason == "length" and bare(completion.text) not in labels:
        return None
    return parse_verdict(completion.text, labels)


def read_confined(completion: Completion, labels: tuple[str, str]) -> Reading | None:
    """A choice that could say nothing but a label; None where the endpoint listed or said something else, so that it
    was no such choice. The mask hides how likely the labels were without it."""
    try:
        top = completion.top_tokens(label_position(completion))
    except MalformedReply:
        if bare(completion.text) not in labels:
            return None
        return _voted(Reading(Outcome.ABSTAINED, ""), bare(completion.text), labels, Rung.CONSTRAINED)
    spelled = spell_out(top, labels)
    return replace(choose(spelled, labels, 0.0), label_mass=None, rung=Rung.CONSTRAINED) if spelled else None


def _is_whole(request: Request, completion: Completion) -> bool:
    if not request.top_logprobs:
        return bool(completion.text.strip())
    try:
        completion.top_tokens(label_position(completion))
    except MalformedReply:
        return False
    return True


def _voted(reading: Reading, verdict: str, labels: tuple[str, str], rung: Rung) -> Reading:
    votes = [int(verdict == label) for label in labels]
    return replace(
        reading,
        outcome=Outcome.SCORED,
        reason="",
        p_first=share_of_votes(*votes),
        rung=rung,
        votes_first=votes[0],
        votes_second=votes[1],
    )
