"""What an endpoint supports, found by asking it: one call where it supports all, some ten where it does not.

A parameter that is refused is refused in words; one that is ignored shows in what the reply lacks. So each is tried by
itself, on a question whose answer is known, and what looks best is tried once more as it will be used. No single
malformed reply decides.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from rlaif_ray.judge.asking.choice import bare, label_position
from rlaif_ray.judge.asking.ladder import NoCompletion, choice_request, read_choice, stated_verdict, try_to_read
from rlaif_ray.judge.asking.replies import Completion, MalformedReply
from rlaif_ray.judge.asking.terms import Abilities, Mode
from rlaif_ray.judge.asking.together import together
from rlaif_ray.judge.asking.verdicts import parse_verdict
from rlaif_ray.judge.reading import Rung
from rlaif_ray.judge.request import MOST_LOGPROBS, Form, Request, Steps
from rlaif_ray.records import Message, Outcome

_LABELS = ("1", "2")

# Nothing here asks for JSON, so that only an endpoint that is bound to it gives it.
_QUESTION = (Message("user", "Reply with the digit 1 alone, and nothing else."),)
_SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"reasoning": {"type": "string"}, "verdict": {"type": "string", "enum": list(_LABELS)}},
        "required": ["reasoning", "verdict"],
        "additionalProperties": False,
    }
)

# Several providers allow no more than this.
_FEW_LOGPROBS = 5
# One provider's shortest reply; also what a word with its markup takes.
_FEW_TOKENS = 16
# The probability of a label that a reply must leave to be a choice between them.
_LIKELY = 0.5
# A judge that thinks before it answers needs room for its thoughts.
_MANY_TOKENS = 4096


def probe(mode: Mode = Mode.AUTO) -> Steps[Abilities]:
    """The abilities of an endpoint that is to be asked in a `mode`. Raises NoCompletion where it gives no answer to
    any request, or a call fails."""
    reply = yield from _try(Request(_QUESTION, max_tokens=1, temperature=0.0, top_logprobs=MOST_LOGPROBS))
    abilities = Abilities(form=Form.TEXT) if reply.chooses else (yield from _one_by_one(reply))
    if mode is Mode.STATED or (mode is Mode.AUTO and not abilities.top_logprobs):
        return (yield from _with_form(abilities))
    return abilities


def _one_by_one(whole: _Trial) -> Steps[Abilities]:
    plain = Request(_QUESTION, max_tokens=_FEW_TOKENS, temperature=0.0)
    # Where the whole was not refused, the temperature in it was not.
    settable = not whole.refusal or not (yield from _try(plain)).refusal
    if not settable:
        plain = replace(plain, temperature=None)
    limits = (1, _FEW_TOKENS, _MANY_TOKENS)
    lists = (MOST_LOGPROBS, _FEW_LOGPROBS)
    replies = yield from together(
        [
            *(_try(replace(plain, max_tokens=limit)) for limit in limits),
            *(_try(replace(plain, top_logprobs=count)) for count in lists),
        ]
    )
    worded, listing = replies[: len(limits)], replies[len(limits) :]
    # A judge too weak for the question still shows how much room words need.
    obeying = [limit for limit, reply in zip(limits, worded, strict=True) if reply.verdict]
    speaking = [limit for limit, reply in zip(limits, worded, strict=True) if reply.speaks]
    if not speaking:
        raise NoCompletion(Outcome.FAILED, f"the endpoint answers no question: {worded[1].refusal or 'no text comes'}")
    shortest = (obeying or speaking)[0]
    thinks = shortest == _MANY_TOKENS or any(reply.thinks for reply in worded)
    abilities = Abilities(
        # One that thinks first may have had no room to list its answer.
        top_logprobs=next(
            (n for n, reply in zip(lists, listing, strict=True) if reply.lists or not (reply.speaks or reply.refusal)),
            0,
        ),
        shortest_reply=shortest,
        temperature=settable,
        form=Form.TEXT,
        stated_tokens=_MANY_TOKENS if thinks else Abilities().stated_tokens,
    )
    if abilities.top_logprobs:
        # What was seen so far is 0 and 1.
        reply = yield from _try(replace(choice_request(_QUESTION, abilities), sample=2))
        if not (reply.chooses if obeying else reply.lists):
            return replace(abilities, top_logprobs=0)
    return abilities


def _with_form(abilities: Abilities) -> Steps[Abilities]:
    forms = (Form.SCHEMA, Form.TOOL)
    request = Request(
        _QUESTION,
        max_tokens=abilities.stated_tokens,
        temperature=0.0 if abilities.temperature else None,
        schema=_SCHEMA,
    )
    replies = yield from together([_try(replace(request, form=form)) for form in forms])
    form = next((form for form, reply in zip(forms, replies, strict=True) if reply.bound), Form.TEXT)
    return replace(abilities, form=form)


@dataclass(frozen=True, slots=True)
class _Trial:
    """What one request brought."""

    refusal: str = ""  # why there is no reply to it
    speaks: bool = False  # its reply holds text
    verdict: bool = False  # and states a label
    lists: bool = False  # it lists alternatives to a token
    chooses: bool = False  # it is a label, or one is likely among them
    bound: bool = False  # its text is a JSON object with a verdict
    thinks: bool = False  # the judge reasoned before it answered


def _try(request: Request) -> Steps[_Trial]:
    """Ask, and once more where the reply is malformed. Raises NoCompletion where a call is not made or fails."""
    for ask in (request, replace(request, sample=request.sample + 1)):
        (answer,) = yield [ask]
        if answer.refused:
            return _Trial(refusal=answer.reason)
        completion = try_to_read(answer)
        if completion is not None:
            return _trial(completion, thinks=answer.reply is not None and answer.reply.reasoning_tokens > 0)
    return _Trial(refusal="its replies are malformed")


def _trial(completion: Completion, thinks: bool) -> _Trial:
    text = completion.text.strip()
    try:
        position = label_position(completion)
        lists = len(completion.top_tokens(position)) > 1
        # A weak judge spreads its probability, and says a label all the same.
        chooses = lists and (
            bare(completion.tokens[position]) in _LABELS
            or read_choice(completion, _LABELS, _LIKELY).rung is Rung.LOGPROBS
        )
    except MalformedReply:
        lists = chooses = False
    return _Trial(
        speaks=bool(text),
        verdict=stated_verdict(completion, _LABELS) is not None,
        lists=lists,
        chooses=chooses,
        bound=text.startswith("{") and parse_verdict(text, _LABELS) is not None,
        thinks=thinks or completion.reasoned or "</think>" in text,
    )
