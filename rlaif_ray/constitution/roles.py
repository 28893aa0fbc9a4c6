"""Role confusion: a reply that is not what was asked for, such as a critique where a revision belongs.

The rules read the form of a reply and never its worth. They are for English; what they miss passes as it is.
"""

from __future__ import annotations

import re

from rlaif_ray.judge.hygiene import are_similar, normalised

# A reply so similar to another text repeats it.
_REPEATED = 0.9
# So many words in common at the beginning are no accident.
_OPENING_WORDS = 5

_REPLY = "(?:answer|reply|response)"
_REVISION = f"(?:revised|rewritten|improved|corrected|updated|new) (?:{_REPLY}|version)"
_ANNOUNCES_A_REVISION = re.compile(
    r"\W*(?:"
    rf"(?:(?:the|my|a) )?(?:revision|{_REVISION})"  # Revised answer:
    rf"|[^\n:]{{0,30}}\bhere(?: is|['’]s) [^\n:]{{0,30}}{_REVISION}[^\n:]{{0,80}}"  # Sure, here's a new answer for you:
    r")[*_]*:[*_]*",
    re.IGNORECASE,
)
_SPEAKS_OF_AN_ANSWER = (
    "assumes|claims|contains|describes|encourages|explains|exposes|fails|helps|implies|includes|mentions|offers"
    "|provides|states|suggests|treats"
)
_OPENS_LIKE_A_CRITIQUE = re.compile(
    r"\W*(?:"
    r"(?:critique|criticism)[*_]*:"
    rf"|(?:the|this|that|my|your) (?:previous|last|earlier|original|first|(?:assistant|model)['’]s) {_REPLY}\b"
    rf"|(?:this|that|your) {_REPLY}\b"
    rf"|the {_REPLY} (?:{_SPEAKS_OF_AN_ANSWER})\b"
    r"|the (?:reply|response) (?:above|is|was|gives|does|could|should)\b"  # `The answer is 42.` answers
    r")",
    re.IGNORECASE,
)


def why_no_critique(reply: str, *, answer: str, request: str) -> str | None:
    """What the reply to a critique request is instead of a critique; None where it may well be one."""
    if not normalised(reply):
        return "the critique is empty"
    if _repeats(reply, answer):
        return "the critique repeats the answer"
    if _echoes(reply, request):
        return "the critique repeats its request"
    if _ANNOUNCES_A_REVISION.match(reply):
        return "the critique is a revision"
    return None


def why_no_revision(reply: str, *, critique: str | None, requests: tuple[str, ...]) -> str | None:
    """What the reply to a revision request is instead of a revision; None where it may well be one. `requests` are the
    round's two."""
    if not normalised(reply):
        return "the revision is empty"
    if any(_echoes(reply, request) for request in requests):
        return "the revision repeats a request"
    if critique is not None and (_repeats(reply, critique) or _opening(reply) == _opening(critique) != ()):
        return "the revision repeats the critique"
    if _OPENS_LIKE_A_CRITIQUE.match(reply):
        return "the revision is a critique"
    return None


def unannounced(revision: str) -> str:
    """A revision without a line that only says that it comes."""
    return (
        _ANNOUNCES_A_REVISION.sub("", revision, count=1).strip() if _ANNOUNCES_A_REVISION.match(revision) else revision
    )


def _repeats(reply: str, text: str) -> bool:
    return are_similar(normalised(reply), normalised(text), _REPEATED)


def _echoes(reply: str, request: str) -> bool:
    return normalised(reply).startswith(normalised(request)) or _repeats(reply, request)


def _opening(text: str) -> tuple[str, ...]:
    """The first words of a text; none where there are fewer."""
    words = normalised(text).split(" ", _OPENING_WORDS)[:_OPENING_WORDS]
    return tuple(words) if len(words) == _OPENING_WORDS else ()
