"""Pacing of calls to one quota: requests a minute, tokens a minute, and requests in flight.

A state machine that owns no clock and no task: every method takes `now`, in seconds of one monotonic clock. Callers
ask, and are served by priority and then in turn; `serve` says who got which leases, and `wait_s` when to serve again.

Pacing is the generic cell rate algorithm (ITU-T I.371): each lease moves a theoretical arrival time on by its cost, and
a lease is for the moment when that time is due. There is no full bucket at the start, so no burst that a server would
refuse. Beside it, the charges of any minute stay within the quota, however large single calls are. Tokens are charged
by an upper guess and corrected by what the reply says. A little less than the quota is used; less still after a refusal
that nothing explains, and slowly more again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TypeAlias

from rlaif_ray.judge.rate_headers import SILENT, RateHeaders, Told
from rlaif_ray.judge.token_estimate import CallSize, TokenEstimate, Usage

# Leases are given up to so long ahead of their moment, so that neither a late timer nor a slow message costs the quota
# anything, and so that fast quotas are served in batches: those of half that time at once.
LOOKAHEAD_S = 0.2

# How long a slot of an endpoint without known rates may be used again before it comes back to be shared out.
REUSE_S = 0.3

# The share of a quota left unused: it absorbs the jitter between here and the server's count. Under limits that count
# by the minute a hundredth is enough; where the server counts by the second, the margin widens until it is. Any single
# minute may use up half of the margin.
_LEAST_MARGIN = 0.01
_WIDER = 0.02
_MOST_MARGIN = 0.1
_NARROWER_PER_S = 0.02 / 600

# Refusals closer together are of one window, and say the same.
_WIDER_EVERY_S = 2.0

# How much unused time may be made up for by calling faster, at the least margin. A wider margin is a sign of short
# windows, so less is made up for.
_CREDIT_S = 0.3

# After a longer silence nothing is made up for: it was no stall but nobody's wish to call.
_LONGEST_STALL_S = 1.0

# How finely a minute's charges are kept.
_BUCKET_S = 0.05

# Waits after refusals in a row that no header gives a time for: doubled from the first to the longest.
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 30.0

# So many refusals, and so large a share of what was sent of late, where no rate is known: fewer calls in flight, by
# this factor; doubled again in this time. A smaller share is not the doing of too many calls.
_REFUSALS_TO_SHRINK = 3
_SHARE_TO_SHRINK = 0.25
_OF_LATE = 200
_SHRINK = 0.7
_REGROW_S = 30.0


class Priority(IntEnum):
    """Who is served first: what a training step waits for, then evaluation, then labelling in bulk."""

    LIVE = 0
    EVALUATION = 1
    BULK = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """A quota. None is no bound."""

    requests_per_minute: float | None
    tokens_per_minute: float | None
    max_concurrency: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to send one request, `delay_s` from now. It returns by itself when its time is over, so that a dead
    holder keeps nothing. Within `reusable_s` the holder may send again when the request has ended."""

    id: int
    size: CallSize
    tokens: int  # charged, until settled
    delay_s: float = 0.0
    reusable_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TooLarge:
    """A call that a whole minute's tokens would not bear, and so is given no lease."""

    size: CallSize
    tokens_per_minute: float


Grant: TypeAlias = Lease | TooLarge


class Ending(StrEnum):
    """What became of a lease."""

    UNSENT = "unsent"  # nothing was sent: all of it returns
    SENT = "sent"  # sent, and nobody knows what it used
    REFUSED = "refused"  # HTTP 429
    REPLIED = "replied"


@dataclass(frozen=True, slots=True)
class Settlement:
    """A lease given back, and what the endpoint said of the quota. `usage` is there where a reply told it.
    `untold_replies` came to calls that used leases again since the holder last settled one."""

    lease: Lease
    ending: Ending
    usage: Usage | None = None
    headers: RateHeaders = SILENT
    untold_replies: int = 0


@dataclass(slots=True)
class _Ask:
    ticket: int
    sizes: deque[CallSize]
    grants: list[Grant] = field(default_factory=list)


@dataclass(slots=True)
class _Charges:
    """What was charged within a moment, and when it leaves the minute."""

    until: float
    amount: float


@dataclass(frozen=True, slots=True)
class _Held:
    holder: str
    expiry: float
    moment: float  # when its request may go out
    # By rate; None for a lease that another limiter gave.
    requests: _Charges | None = None
    tokens: _Charges | None = None


class _Pace:
    """One rate: the time when the next call is due, and what the last minute was charged."""

    def __init__(self, per_minute: float | None, now: float) -> None:
        self._configured = math.inf if per_minute is None else per_minute
        self._told = math.inf
        self._due = now
        self._charged_at = -math.inf
        self._minute: deque[_Charges] = deque()
        self._used = 0.0

    @property
    def per_minute(self) -> float:
        return min(self._configured, self._told)

    def hear(self, told: Told) -> bool:
        """Adopt the limit that the endpoint tells; say whether it is news and smaller."""
        before = self.per_minute
        if told.limit is not None:
            self._told = told.limit
        return self.per_minute < before

    def when(self, amount: float, margin: float, now: float) -> float:
        """When a call of so much may go out."""
        while self._minute and self._minute[0].until <= now:
            self._used -= self._minute.popleft().amount
        most = self.per_minute * (1 - margin / 2)
        time, excess = self._due, self._used + min(amount, most) - most
        for charges in self._minute:
            if excess <= 0:
                break
            excess -= charges.amount
            time = max(time, charges.until)
        return time

    def charge(self, amount: float, margin: float, moment: float) -> _Charges:
        """Charge a call that goes out at `moment`."""
        stalled = moment - self._charged_at <= _LONGEST_STALL_S
        credit = _CREDIT_S * (_LEAST_MARGIN / margin) ** 2 if stalled else 0.0
        self._charged_at = moment
        self._due = max(self._due, moment - credit) + self._seconds(amount, margin)
        if not self._minute or moment > self._minute[-1].until - 60.0:
            self._minute.append(_Charges(moment + _BUCKET_S + 60.0, 0.0))
        self._minute[-1].amount += amount
        self._used += amount
        return self._minute[-1]

    def correct(self, charges: _Charges, amount: float, margin: float) -> None:
        """Charge so much more, or less, to what was charged before."""
        self._due += self._seconds(amount, margin)
        if self._minute and charges.until >= self._minute[0].until:
            charges.amount += amount
            self._used += amount

    def _seconds(self, amount: float, margin: float) -> float:
        return amount * 60.0 / (self.per_minute * (1 - margin))


class RateLimiter:
    """Gives leases and takes them back.

    `caution_s` is for a limiter that takes the place of another: it gives nothing for so long, as it does not know what
    was spent before. `first_id` tells its leases from the other's.
    """

    def __init__(
        self, limits: Limits, lease_ttl_s: float, now: float, *, caution_s: float = 0.0, first_id: int = 0
    ) -> None:
        self._most_in_flight = limits.max_concurrency
        self._requests = _Pace(limits.requests_per_minute, now)
        self._tokens = _Pace(limits.tokens_per_minute, now)
        self._estimate = TokenEstimate()
        self._lease_ttl_s = lease_ttl_s
        self._next_id = first_id
        # By holder, in the order of their turns.
        self._asks: dict[Priority, dict[str, deque[_Ask]]] = {priority: {} for priority in Priority}
        self._leases: dict[int, _Held] = {}  # in the order of expiry, as every lease lives equally long
        self._paused_until = now + caution_s
        self._widened = (_LEAST_MARGIN, -math.inf)  # the margin, and when it became so wide
        self._shrunk = (math.inf, now)  # calls in flight that are allowed, and since when
        self._refusals = 0  # in a row
        self._refused_at = -math.inf
        self._replied_of_late = self._refused_of_late = 0

    @property
    def in_flight(self) -> int:
        return len(self._leases)

    def margin(self, now: float) -> float:
        """The share of the quota that is left unused."""
        margin, since = self._widened
        return max(_LEAST_MARGIN, margin - _NARROWER_PER_S * (now - since))

    def ask(self, holder: str, priority: Priority, sizes: Sequence[CallSize]) -> int:
        """Ask for leases for calls of these sizes, at least one, in this order. Returns a ticket; `serve` tells what
        it got. Holders take turns, however often they ask."""
        ticket = self._next_id
        self._next_id += 1
        self._asks[priority].setdefault(holder, deque()).append(_Ask(ticket, deque(sizes)))
        return ticket

    def serve(self, now: float) -> list[tuple[int, list[Grant]]]:
        """Tickets that got something, each at least one grant; what more they asked for is to be asked for again."""
        self._expire(now)
        served: dict[int, _Ask] = {}
        # Not for each lease that falls due: in batches, where the quota is fast.
        ahead = LOOKAHEAD_S / 2
        while len(self._leases) < self._most_allowed(now):
            turns = self._turns()
            if not turns:
                break
            holder, asks = next(iter(turns.items()))
            ask = asks[0]
            moment = self._moment(ask.sizes[0], now)
            if moment > now + ahead:
                break
            ahead = LOOKAHEAD_S
            ask.grants.append(self._grant(holder, ask.sizes.popleft(), moment, now))
            served[ask.ticket] = ask
            if not ask.sizes:
                asks.popleft()
            del turns[holder]
            if asks:
                turns[holder] = asks
        for turns in self._asks.values():
            for holder, asks in list(turns.items()):
                if asks[0].ticket in served:
                    asks.popleft()
                if not asks:
                    del turns[holder]
        return [(ticket, ask.grants) for ticket, ask in served.items()]

    def wait_s(self, now: float) -> float:
        """Seconds until there may be something to serve; infinite where nobody asks. A settlement or an ask can bring
        it forward."""
        turns = self._turns()
        if not turns:
            return math.inf
        first = next(iter(turns.values()))[0]
        wait = self._moment(first.sizes[0], now) - LOOKAHEAD_S / 2 - now
        if len(self._leases) >= self._most_allowed(now):
            # Whichever comes first: a lease of the dead expires, or the number allowed has grown again.
            returned = next((held.expiry for held in self._leases.values()), now) - now
            wait = max(wait, returned if self._shrunk[0] == math.inf else min(returned, 1.0))
        return max(0.0, wait)

    def settle(self, settlement: Settlement, now: float) -> None:
        """Take a lease back and correct its charge. One that expired, or that a limiter before this one gave, is not
        given back what it did not use, as nobody knows any more what it was charged."""
        lease, usage, margin = settlement.lease, settlement.usage, self.margin(now)
        held = self._leases.pop(lease.id, None)
        if settlement.ending is Ending.UNSENT:
            if held is not None and held.requests is not None and held.tokens is not None:
                self._requests.correct(held.requests, -1, margin)
                self._tokens.correct(held.tokens, -lease.tokens, margin)
            return
        if usage is not None:
            self._estimate.learn(lease.size, usage)
            # Whatever a hostile reply says it used, no call bars the way for longer than a minute.
            excess = min(usage.tokens, self._tokens.per_minute) - lease.tokens
            if held is not None and held.tokens is not None:
                self._tokens.correct(held.tokens, excess, margin)
            elif excess > 0:
                self._tokens.charge(excess, margin, now)
        moment = -math.inf if held is None else held.moment
        self._remember(settlement)
        if settlement.untold_replies:
            self._refusals = 0
        if settlement.ending is Ending.REFUSED:
            self._refuse(settlement.headers, moment, now)
        else:
            self._hear(settlement.headers)
            # Of the time that the request was counted at, not of when the answer to it was written.
            self._pause_until(moment + (settlement.headers.wait_s or 0.0))
            if moment > self._refused_at and settlement.ending is Ending.REPLIED:
                self._refusals = 0

    def adopt(self, holder: str, leases: Sequence[Lease], now: float) -> None:
        """Take over leases that a limiter before this one gave. Those that this one knows stay as they are."""
        for lease in leases:
            self._leases.setdefault(lease.id, _Held(holder, self._expiry(now), now))

    def release(self, holder: str) -> list[int]:
        """Take back all leases and asks of a holder that died, and return the tickets of the asks. What the leases
        were charged stays: their requests may be out."""
        self._leases = {lease: held for lease, held in self._leases.items() if held.holder != holder}
        return [ask.ticket for turns in self._asks.values() for ask in turns.pop(holder, ())]

    def throttled(self, now: float) -> bool:
        """Whether more callers would get no more leases."""
        self._expire(now)
        return self._moment(CallSize(0, 0), now) > now or len(self._leases) >= self._most_allowed(now)

    def _turns(self) -> dict[str, deque[_Ask]]:
        """Of the most urgent that wait."""
        return next((turns for turns in self._asks.values() if turns), {})

    def _grant(self, holder: str, size: CallSize, moment: float, now: float) -> Grant:
        if self._estimate.least(size) > self._tokens.per_minute:
            return TooLarge(size, self._tokens.per_minute)
        tokens, margin = self._charge_of(size), self.margin(now)
        requests_charged = self._requests.charge(1, margin, moment)
        tokens_charged = self._tokens.charge(tokens, margin, moment)
        lease = Lease(self._next_id, size, tokens, max(0.0, moment - now), REUSE_S if self._is_free else 0.0)
        self._next_id += 1
        self._leases[lease.id] = _Held(holder, self._expiry(now), moment, requests_charged, tokens_charged)
        return lease

    def _charge_of(self, size: CallSize) -> int:
        # Where only the guess is too large for a minute, the call may still fit.
        return math.floor(min(self._estimate.tokens(size), self._tokens.per_minute))

    def _moment(self, size: CallSize, now: float) -> float:
        """When a request of this size may go out."""
        margin = self.margin(now)
        tokens_at = self._tokens.when(self._charge_of(size), margin, now)
        return max(now, self._paused_until, self._requests.when(1, margin, now), tokens_at)

    def _expiry(self, now: float) -> float:
        return now + LOOKAHEAD_S + REUSE_S + self._lease_ttl_s

    @property
    def _is_free(self) -> bool:
        """Whether no rate is known."""
        return self._requests.per_minute == self._tokens.per_minute == math.inf

    def _most_allowed(self, now: float) -> int:
        allowed, since = self._shrunk
        doublings = min((now - since) / _REGROW_S, 64.0)
        return math.floor(min(self._most_in_flight, max(1.0, allowed) * math.exp2(doublings)))

    def _hear(self, headers: RateHeaders) -> bool:
        return self._requests.hear(headers.requests) | self._tokens.hear(headers.tokens)

    def _refuse(self, headers: RateHeaders, moment: float, now: float) -> None:
        explained = self._hear(headers)
        asked = headers.wait_s
        # A request that was under way when another was refused tells nothing that its refusal did not.
        if moment > self._refused_at:
            self._refusals += 1
            if not explained:
                self._slow_down(now)
            if asked is None:
                asked = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (self._refusals - 1))
            self._refused_at = now + asked
        self._pause_until(now + (asked or 0.0))

    def _slow_down(self, now: float) -> None:
        if now >= self._widened[1] + _WIDER_EVERY_S:
            self._widened = (min(_MOST_MARGIN, self.margin(now) + _WIDER), now)
        refused, sent = self._refused_of_late, self._refused_of_late + self._replied_of_late
        if self._is_free and refused >= max(_REFUSALS_TO_SHRINK, _SHARE_TO_SHRINK * sent):
            allowed = min(self._most_allowed(now), len(self._leases) + 1)
            self._shrunk = (allowed * _SHRINK, now)

    def _remember(self, settlement: Settlement) -> None:
        self._refused_of_late += settlement.ending is Ending.REFUSED
        self._replied_of_late += settlement.untold_replies + (settlement.ending is Ending.REPLIED)
        if self._refused_of_late + self._replied_of_late > _OF_LATE:
            self._refused_of_late //= 2
            self._replied_of_late //= 2

    def _pause_until(self, time: float) -> None:
        self._paused_until = max(self._paused_until, time)

    def _expire(self, now: float) -> None:
        while self._leases:
            lease, held = next(iter(self._leases.items()))
            if held.expiry > now:
                return
            del self._leases[lease]
