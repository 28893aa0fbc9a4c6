"""How many tokens a call will use, guessed before it is sent and learned from what calls did use. Pure.

Guesses err upwards: a quota is charged the guess when the call goes out and the difference is given back when the reply
comes, so a guess too high costs nothing for long, while one too low would overrun the quota.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from dataclasses import dataclass

from rlaif_ray.judge.request import Request

# Before anything is known: tokens of common vocabularies cover about four bytes of English, and two of other scripts.
_FIRST_TOKENS_PER_BYTE = 0.5
_LEAST_TOKENS_PER_BYTE = 0.125

# What a chat template adds to a message, in bytes of content.
_MESSAGE_BYTES = 16

_UPPER_QUANTILE = 0.9
_REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class CallSize:
    """What is known of a call's tokens before it is sent."""

    prompt_bytes: int
    max_tokens: int

    @classmethod
    def of(cls, request: Request) -> CallSize:
        content = sum(len(message.content.encode()) + _MESSAGE_BYTES for message in request.messages)
        return cls(content + len(request.prefill.encode()) + len(request.schema.encode()), request.max_tokens)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a call used, as its reply tells."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class TokenEstimate:
    """Prompts by a learned ratio of tokens to bytes; answers by what answers under the same bound were long."""

    def __init__(self) -> None:
        self._per_byte = _Recent()
        self._answers: dict[int, _Recent] = {}  # by max_tokens

    def tokens(self, size: CallSize) -> int:
        """An upper guess: exceeded by about one call in ten, and not on average."""
        per_byte = self._per_byte.upper() or _FIRST_TOKENS_PER_BYTE
        answers = self._answers.get(size.max_tokens)
        answer = float(size.max_tokens) if answers is None else min(answers.upper(), size.max_tokens)
        return math.ceil(size.prompt_bytes * per_byte + answer)

    def least(self, size: CallSize) -> int:
        """A guess that hardly any call stays under."""
        return math.ceil(size.prompt_bytes * (self._per_byte.least() or _LEAST_TOKENS_PER_BYTE)) + 1

    def learn(self, size: CallSize, usage: Usage) -> None:
        """Take in a call that was answered. What no call of its size can use is nonsense, and counts as the most that
        it can: a token covers at least a byte."""
        if size.prompt_bytes > 0:
            self._per_byte.add(min(usage.prompt_tokens, size.prompt_bytes), size.prompt_bytes)
        self._answers.setdefault(size.max_tokens, _Recent()).add(min(usage.completion_tokens, size.max_tokens), 1)


class _Recent:
    """Ratios of amounts to their bases, the most recent ones."""

    def __init__(self) -> None:
        self._pairs: deque[tuple[float, float]] = deque()
        self._sorted: list[float] = []
        self._amount = self._base = 0.0

    def add(self, amount: float, base: float) -> None:
        self._pairs.append((amount, base))
        bisect.insort(self._sorted, amount / base)
        self._amount += amount
        self._base += base
        if len(self._pairs) > _REMEMBERED:
            amount, base = self._pairs.popleft()
            del self._sorted[bisect.bisect_left(self._sorted, amount / base)]
            self._amount -= amount
            self._base -= base

    def upper(self) -> float:
        """The upper quantile, or the mean where a few large ones raise it above; raised further while there are few
        to go by. 0 where there are none."""
        if not self._sorted:
            return 0.0
        quantile = self._sorted[math.ceil(_UPPER_QUANTILE * len(self._sorted)) - 1]
        return max(quantile, self._amount / self._base) * (1 + 1 / len(self._sorted))

    def least(self) -> float:
        return self._sorted[0] if self._sorted else 0.0
