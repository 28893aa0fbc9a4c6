"""Pacing of calls to one quota: requests a minute, tokens a minute, and requests in flight.

A state machine that owns no clock and no task: every method takes `now`, in seconds of one monotonic clock. Pacing is
the generic cell rate algorithm (ITU-T I.371): each permit moves a theoretical arrival time on by its cost, and a permit
is given only when that time is due. There is no full bucket at the start, so no burst that a server would refuse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Share of the quota that is used: the rest absorbs network jitter between here and the server's count.
_USED_SHARE = 0.99

# How far ahead of its time a permit may be given, so that fast quotas need not wake for every single one.
_BURST_S = 0.05


@dataclass(frozen=True, slots=True)
class Limits:
    """A quota. None is no bound."""

    requests_per_minute: float | None
    tokens_per_minute: float | None
    max_concurrency: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to send one request. It returns by itself at its expiry, so that a dead holder keeps nothing."""

    id: int
    tokens: int  # charged, until settled


@dataclass(frozen=True, slots=True)
class Settlement:
    """A lease given back. `tokens` is what the request used; `sent` False returns the whole permit."""

    lease: Lease
    tokens: int
    sent: bool = True


class _Pace:
    """One rate, as a theoretical arrival time."""

    def __init__(self, per_minute: float | None, now: float) -> None:
        self._interval = 0.0 if per_minute is None else 60.0 / (per_minute * _USED_SHARE)
        self._due = now

    def wait_s(self, now: float) -> float:
        return max(0.0, self._due - _BURST_S - now)

    def charge(self, amount: float, now: float) -> None:
        self._due = max(self._due, now) + amount * self._interval

    def correct(self, amount: float) -> None:
        self._due += amount * self._interval


class RateLimiter:
    """Gives leases and takes them back."""

    def __init__(self, limits: Limits, lease_ttl_s: float, now: float) -> None:
        self._max_concurrency = limits.max_concurrency
        self._requests = _Pace(limits.requests_per_minute, now)
        self._tokens = _Pace(limits.tokens_per_minute, now)
        self._lease_ttl_s = lease_ttl_s
        # Expiry and holder by lease; in the order of expiry, as every lease lives equally long.
        self._leases: dict[int, tuple[float, str]] = {}
        self._paused_until = -math.inf
        self._next_id = 0

    @property
    def in_flight(self) -> int:
        return len(self._leases)

    def acquire(self, tokens: int, holder: str, now: float) -> Lease | None:
        """A lease, charged `tokens`, or None when none is due."""
        if self.wait_s(now) > 0:
            return None
        self._requests.charge(1, now)
        self._tokens.charge(tokens, now)
        lease = Lease(self._next_id, tokens)
        self._next_id += 1
        self._leases[lease.id] = (now + self._lease_ttl_s, holder)
        return lease

    def wait_s(self, now: float) -> float:
        """Seconds until a lease may be due; a settlement can bring it forward."""
        self._expire(now)
        waits = [self._requests.wait_s(now), self._tokens.wait_s(now), self._paused_until - now]
        if len(self._leases) >= self._max_concurrency:
            waits.append(next(iter(self._leases.values()))[0] - now)
        return max(0.0, *waits)

    def settle(self, settlement: Settlement) -> None:
        """Take a lease back and correct its token charge. A lease that expired meanwhile is corrected all the same."""
        self._leases.pop(settlement.lease.id, None)
        if settlement.sent:
            self._tokens.correct(settlement.tokens - settlement.lease.tokens)
        else:
            self._requests.correct(-1)
            self._tokens.correct(-settlement.lease.tokens)

    def release(self, holder: str) -> None:
        """Take back all leases of a holder that died. What they were charged stays: their requests may be out."""
        self._leases = {lease: entry for lease, entry in self._leases.items() if entry[1] != holder}

    def pause(self, seconds: float, now: float) -> None:
        """Give no lease for so long: the server refused one. A shorter pause does not cut a longer one."""
        self._paused_until = max(self._paused_until, now + seconds)

    def throttled(self, now: float) -> bool:
        """Whether more callers would get no more leases."""
        return self.wait_s(now) > 0

    def _expire(self, now: float) -> None:
        while self._leases:
            lease, (expiry, _) = next(iter(self._leases.items()))
            if expiry > now:
                return
            del self._leases[lease]
