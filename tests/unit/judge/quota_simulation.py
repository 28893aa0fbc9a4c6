"""A limiter, its callers and a server that keeps a quota, on a clock of their own: minutes take a moment."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from judge_server import make_rate

from rlaif_ray.judge.rate_limit import Ending, Lease, Limits, Priority, RateLimiter, Settlement
from rlaif_ray.judge.token_estimate import CallSize, Usage

# One prompt in twenty is twenty times as long; answers are of one token, or exponentially distributed.
_SHORT, _LONG, _LONG_SHARE = 400, 8_000, 0.05
_ANSWER = 40


@dataclass(frozen=True, slots=True)
class Admitted:
    """What a server let in after the first call and up to the last, the seconds between these two, and when it
    refused a call."""

    requests: int
    tokens: int
    seconds: float
    refusals: tuple[float, ...]


class QuotaSimulation:
    """Callers that always want more. Messages take milliseconds, and one in a hundred up to 30 ms more; answers take
    0.2 s to 0.8 s. The server's clock is not the limiter's."""

    def __init__(self, policy: str, limits: Limits, callers: int, seed: int) -> None:
        self._random = random.Random(seed)
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self.limiter = RateLimiter(limits, 75.0, 0.0)
        self._server_ahead = 60 * self._random.random()
        self._rates = {
            "requests": limits.requests_per_minute and make_rate(policy, limits.requests_per_minute),
            "tokens": limits.tokens_per_minute and make_rate(policy, limits.tokens_per_minute),
        }
        self._timer = 0.0
        self._asking: dict[int, int] = {}
        self._admitted: list[tuple[float, int]] = []
        self._refusals: list[float] = []
        for caller in range(callers):
            self._after(self._message(), lambda caller=caller: self._ask(caller))

    def run(self, seconds: float) -> Admitted:
        while self._events[0][0] < seconds:
            self._now, _, event = heapq.heappop(self._events)
            event()
        spent = sum(tokens for _, tokens in self._admitted[1:])
        lasted = self._admitted[-1][0] - self._admitted[0][0]
        return Admitted(len(self._admitted) - 1, spent, lasted, tuple(self._refusals))

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now + seconds, next(self._numbers), event))

    def _message(self) -> float:
        hiccup = 0.03 * self._random.random() if self._random.random() < 0.01 else 0.0
        return 0.001 + self._random.expovariate(1 / 0.0015) + hiccup

    def _ask(self, caller: int) -> None:
        sizes = []
        for _ in range(16):
            length = _LONG if self._random.random() < _LONG_SHARE else _SHORT
            sizes.append(CallSize(round(length * self._random.uniform(0.8, 1.2)), self._random.choice((1, 256))))
        self._asking[self.limiter.ask(str(caller), Priority.BULK, sizes)] = caller
        self._serve()

    def _serve(self) -> None:
        for ticket, grants in self.limiter.serve(self._now):
            caller, message = self._asking.pop(ticket), self._message()
            for lease in grants:
                assert isinstance(lease, Lease)
                self._after(message + lease.delay_s + self._message(), lambda lease=lease: self._arrive(lease))
            self._after(message + self._message(), lambda caller=caller: self._ask(caller))
        wait = self.limiter.wait_s(self._now)
        if wait < math.inf and not self._now < self._timer <= self._now + wait:
            self._timer = self._now + wait + self._random.expovariate(1 / 0.001)
            self._after(self._timer - self._now, self._serve)

    def _arrive(self, lease: Lease) -> None:
        prompt = math.ceil(lease.size.prompt_bytes / 4) + 6
        answer = min(lease.size.max_tokens, max(1, round(self._random.expovariate(1 / _ANSWER))))
        usage = Usage(prompt, answer)
        now = self._now + self._server_ahead
        costs = [(rate, cost) for rate, cost in zip(self._rates.values(), (1, usage.tokens), strict=True) if rate]
        if any(rate.wait_s(cost, now) > 0 for rate, cost in costs):
            self._refusals.append(self._now)
            self._after(self._message(), lambda: self._settled(Settlement(lease, Ending.REFUSED)))
            return
        for rate, cost in costs:
            rate.charge(cost, now)
        self._admitted.append((self._now, usage.tokens))
        latency = self._random.uniform(0.2, 0.8) + self._message()
        self._after(latency, lambda: self._settled(Settlement(lease, Ending.REPLIED, usage)))

    def _settled(self, settlement: Settlement) -> None:
        self.limiter.settle(settlement, self._now)
        self._serve()
