"""Which answers share the next forward: a pure queue that is told the time.

A forward costs as much as its longest answer times their number, so answers of like length go together. The oldest
answer always goes with the next batch, so that none starves: one with n older ones waits for n batches at most.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WaitingAnswer:
    """One answer to score. Only those of one model version can share a forward; times are in seconds of one clock."""

    number: int  # unique, in the order of arrival
    version: int
    tokens: int
    arrived: float


class BatchQueue:
    """Answers that wait for a forward."""

    def __init__(self, *, max_batch_tokens: int, max_wait_s: float) -> None:
        """A batch holds at most `max_batch_tokens`, padding included; a longer answer stands alone. An answer waits
        `max_wait_s` for company where an actor is free."""
        self._max_tokens = max_batch_tokens
        self._max_wait_s = max_wait_s
        self._by_number: dict[int, WaitingAnswer] = {}
        self._by_age: list[int] = []
        self._by_length: dict[int, list[tuple[int, int]]] = {}  # version -> (tokens, number), sorted

    def __len__(self) -> int:
        return len(self._by_number)

    def __contains__(self, number: int) -> bool:
        return number in self._by_number

    @property
    def oldest(self) -> WaitingAnswer | None:
        return self._by_number[self._by_age[0]] if self._by_age else None

    def add(self, answer: WaitingAnswer) -> None:
        """Queue an answer, or put it back: it stands where its number says."""
        if answer.number in self._by_number:
            raise ValueError(f"answer {answer.number} waits already")
        self._by_number[answer.number] = answer
        insort(self._by_age, answer.number)
        insort(self._by_length.setdefault(answer.version, []), (answer.tokens, answer.number))

    def remove(self, number: int) -> None:
        """Forget a waiting answer."""
        answer = self._by_number.pop(number)
        del self._by_age[bisect_left(self._by_age, number)]
        alike = self._by_length[answer.version]
        del alike[bisect_left(alike, (answer.tokens, number))]
        if not alike:
            del self._by_length[answer.version]

    def due_s(self, now: float) -> float | None:
        """Seconds until a free actor should take a batch: none where more waits than one forward holds, else until the
        oldest answer has waited its time. None where nothing waits."""
        oldest = self.oldest
        if oldest is None:
            return None
        alike = self._by_length[oldest.version]
        if alike[-1][0] * len(alike) >= self._max_tokens:
            return 0.0
        return max(0.0, oldest.arrived + self._max_wait_s - now)

    def take(self) -> list[WaitingAnswer]:
        """The next batch, with the oldest answer in it. Raises IndexError where nothing waits.

        None in it is more than twice as long as another. Of such runs around the oldest it is the one with the most
        real tokens over padding, so that a full batch is as full as can be.
        """
        oldest = self._by_number[self._by_age[0]]
        alike = self._by_length[oldest.version]
        place = bisect_left(alike, (oldest.tokens, oldest.number))
        reach = max(1, self._max_tokens // oldest.tokens)
        first = max(0, place + 1 - reach)
        totals = list(itertools.accumulate((tokens for tokens, _ in alike[first : place + reach]), initial=0))
        best, most = range(place, place + 1), oldest.tokens
        for end in range(place + 1, first + len(totals)):
            longest = alike[end - 1][0]
            start = max(0, end - max(1, self._max_tokens // longest))
            if start > place or longest > 2 * oldest.tokens:
                break
            start = max(start, bisect_left(alike, ((longest + 1) // 2, 0)))
            gained = 2 * (totals[end - first] - totals[start - first]) - longest * (end - start)
            if gained > most:
                best, most = range(start, end), gained
        batch = [self._by_number[alike[row][1]] for row in best]
        for answer in batch:
            self.remove(answer.number)
        return batch
