"""Reading a chat completion's JSON, whoever gave it: an API's own text, or what a local labeler writes in its shape.

A judge's endpoint is not to be trusted: whatever arrives, reading raises `MalformedReply` and nothing else. Reading is
pure, so that a stored reply can be read again at no cost.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

# What endpoints list for a token of which they know no more than that it is unlikely.
_UNKNOWN_LOGPROB = -9999.0

# Listed probabilities are rounded, so that they may add up to a little more than 1.
_ROUNDING = 0.01


class MalformedReply(ValueError):
    """A reply that is no chat completion, or that lacks what was asked for. Its text says what is wrong."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One of the likeliest tokens at a position, with its log-probability in nats."""

    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Position:
    """One generated position: the token that was drawn, and the likeliest ones."""

    token: str
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """One read reply. Texts are empty where the endpoint gave none."""

    text: str  # the message's, or a forced tool call's arguments
    finish_reason: str
    refusal: str  # the judge's own words
    reasoned: bool  # it shows that it reasoned before it answered
    model: str  # as the endpoint names it
    fingerprint: str
    tokens: tuple[str, ...]  # drawn, one for each position with log-probabilities
    listed: tuple[Any, ...]  # likeliest tokens of each position, unread: `top_tokens` reads one
    _read: dict[int, tuple[TokenLogprob, ...]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def declined(self) -> str:
        """Why there will be no verdict, however it is asked for; empty where nothing speaks against one."""
        if self.refusal:
            return f"the judge refused: {self.refusal[:200]}"
        return "the endpoint's content filter withheld the reply" if self.finish_reason == "content_filter" else ""

    def top_tokens(self, position: int) -> tuple[TokenLogprob, ...]:
        """The likeliest tokens at a position, unlikely ones of unknown probability left out. Raises MalformedReply."""
        if position in self._read:
            return self._read[position]
        if not self.listed:
            raise MalformedReply(f"the endpoint returned no log-probabilities (finish_reason: {self.finish_reason})")
        listed = self.listed[position]
        if not isinstance(listed, list) or not listed:
            raise MalformedReply("the endpoint returned no top_logprobs, only the sampled token's")
        top = tuple(_token_logprob(entry) for entry in listed)
        if sum(math.exp(entry.logprob) for entry in top) > 1 + _ROUNDING:
            raise MalformedReply("the listed log-probabilities add up to more than 1")
        self._read[position] = top = tuple(entry for entry in top if entry.logprob > _UNKNOWN_LOGPROB)
        return top


@lru_cache(maxsize=16)  # whoever reads one reads it twice: what it says, and which model said it
def read_completion(raw: str) -> Completion:
    """A reply's first choice. Raises MalformedReply."""
    try:
        reply = json.loads(raw)
    except (ValueError, RecursionError):
        raise MalformedReply("the reply is not JSON") from None
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise MalformedReply("the reply holds no choices")
    choice = choices[0]
    message = choice.get("message")
    if not isinstance(message, dict):
        raise MalformedReply("the reply holds no message")
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    positions = [entry for entry in content if isinstance(entry, dict)] if isinstance(content, list) else []
    return Completion(
        text=_content(message.get("content")) or _arguments(message.get("tool_calls")),
        finish_reason=_text(choice.get("finish_reason")),
        refusal=_text(message.get("refusal")),
        reasoned=bool(message.get("reasoning_content") or message.get("reasoning")),
        model=_text(reply.get("model")),
        fingerprint=_text(reply.get("system_fingerprint")),
        tokens=tuple(_text(entry.get("token")) for entry in positions),
        listed=tuple(entry.get("top_logprobs") for entry in positions),
    )


def storable(text: str) -> str:
    """The text with halves of surrogate pairs replaced: legal in JSON, and nothing that could be sent or stored."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def model_returned(raw: str) -> str:
    """The model that answered, as the endpoint names it, with its fingerprint where it gives one; empty where it does
    not say."""
    try:
        reply = read_completion(raw)
    except MalformedReply:
        return ""
    return " ".join(filter(None, (reply.model, reply.fingerprint)))


def write_completion(
    text: str, finish_reason: str, positions: Sequence[Position], prompt_tokens: int, completion_tokens: int
) -> str:
    """A local labeler's reply, in the shape of a chat completion. It reads back as it was written."""
    return json.dumps(
        {
            "choices": [
                {
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": finish_reason,
                    "logprobs": {
                        "content": [
                            {
                                "token": position.token,
                                "top_logprobs": [
                                    {"token": entry.token, "logprob": max(entry.logprob, _UNKNOWN_LOGPROB)}
                                    for entry in position.top
                                ],
                            }
                            for position in positions
                        ]
                    },
                }
            ],
            "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


def _token_logprob(entry: Any) -> TokenLogprob:
    token, logprob = (entry.get("token"), entry.get("logprob")) if isinstance(entry, dict) else (None, None)
    if not isinstance(token, str) or not isinstance(logprob, (int, float)) or isinstance(logprob, bool):
        raise MalformedReply("a listed token lacks its text or its log-probability")
    if not logprob <= _ROUNDING:  # NaN included
        raise MalformedReply("a listed log-probability is above 0 or no number")
    return TokenLogprob(token, min(float(max(logprob, _UNKNOWN_LOGPROB)), 0.0))


def _content(content: Any) -> str:
    """A message's text; of one in parts, the parts that are text."""
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "".join(_text(part.get("text")) for part in parts)
    return _text(content)


def _arguments(tool_calls: Any) -> str:
    call = tool_calls[0] if isinstance(tool_calls, list) and tool_calls else None
    function = call.get("function") if isinstance(call, dict) else None
    return _text(function.get("arguments")) if isinstance(function, dict) else ""


def _text(value: Any) -> str:
    return storable(value) if isinstance(value, str) else ""
