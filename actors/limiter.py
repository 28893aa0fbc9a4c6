"""The one keeper of a quota: every judge actor of the cluster that calls the same endpoint asks it for leases.

`Limiter` is what workers hold. It turns many calls' asking and settling into few messages, and survives the keeper: a
keeper that was started anew is told which leases are out before it is asked for more.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeAlias

import ray
from ray.exceptions import RayActorError

from actors.spawn import shared
from rlaif_ray.config import EndpointConfig
from rlaif_ray.judge.rate_headers import SILENT, read_rate_headers
from rlaif_ray.judge.rate_limit import (
    Ending,
    Grant,
    Lease,
    Limits,
    Priority,
    RateLimiter,
    Settlement,
    TooLarge,
)
from rlaif_ray.judge.token_estimate import CallSize, Usage

# Asks that wait at the keeper, of all holders together.
_ASKERS_AT_A_TIME = 1_000

# Longer than a call can live, so that no lease returns while its request is still under way.
_LEASE_MARGIN_S = 15.0

# What went out just before a keeper died is not known to the next.
_CAUTION_S = 1.0

# Calls that one message asks for, and messages under way at a time: more than one, so that the way there and back costs
# nothing.
_MOST_ASKED = 8
_TAKERS = 16

# The spacing that late requests keep, as a share of what they should have had.
_CATCH_UP = 0.8

# How long a slot that may be used again is kept for a call to come.
_SPARE_S = 0.005

# How long a keeper that is gone may take to come back.
_PATIENCE_S = 30.0
_AGAIN_S = 0.2


_Waiter: TypeAlias = tuple[CallSize, asyncio.Future[Lease]]


class CallTooLarge(Exception):
    """A call that a whole minute's tokens would not bear: it can never be sent."""

    def __init__(self, refused: TooLarge) -> None:
        super().__init__(
            f"a prompt of {refused.size.prompt_bytes:,} bytes takes more than the {refused.tokens_per_minute:,.0f} "
            "tokens that judge.tokens_per_minute allows in a whole minute"
        )


class LimiterActor:
    """A `RateLimiter` with a clock, and waiting. `heir` says that it takes the place of one that died."""

    def __init__(self, limits: Limits, lease_ttl_s: float, heir: bool) -> None:
        heir = heir or ray.get_runtime_context().was_current_actor_reconstructed
        # Leases of this keeper are not those of the one before.
        self._epoch = secrets.randbits(48)
        self._limiter = RateLimiter(
            limits,
            lease_ttl_s,
            time.monotonic(),
            caution_s=_CAUTION_S if heir else 0.0,
            first_id=self._epoch << 48,
        )
        self._waiting: dict[int, asyncio.Future[list[Grant]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def register(self, holder: str, held: Sequence[Lease]) -> int:
        """A holder says what it holds, and is told the epoch to ask with."""
        self._limiter.adopt(holder, held, time.monotonic())
        return self._epoch

    async def acquire(
        self, epoch: int | None, holder: str, priority: Priority, sizes: Sequence[CallSize]
    ) -> list[Grant] | None:
        """Grants for the first of the calls of these sizes: at least one, as many as are due soon. None where the
        holder has to register first; none in the list where it is thought dead."""
        if epoch != self._epoch:
            return None
        ticket = self._limiter.ask(holder, priority, sizes)
        future: asyncio.Future[list[Grant]] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = future
        self._serve()
        return await future

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        now = time.monotonic()
        for settlement in settlements:
            self._limiter.settle(settlement, now)
        self._serve()

    async def release(self, holder: str) -> None:
        """An actor died: its leases are free at once, and not only at their expiry."""
        for ticket in self._limiter.release(holder):
            self._waiting.pop(ticket).set_result([])
        self._serve()

    async def throttled(self) -> bool:
        """Whether more callers would get no more leases."""
        return self._limiter.throttled(time.monotonic())

    def _serve(self) -> None:
        for ticket, grants in self._limiter.serve(time.monotonic()):
            self._waiting.pop(ticket).set_result(grants)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            wait = self._limiter.wait_s(time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait, self._serve)


class Limiter:
    """The limiter of an endpoint's quota, as pools and workers call it. The first to come starts it and sets its
    limits. It ends with the job that started it; another job that still calls then starts it anew.

    A worker awaits `permit` for each request, or `grant` and then `turn`, and calls exactly one of `replied`,
    `refused`, `failed` and `unsent` with the lease. `headers` are the response's, names in lower case.
    """

    def __init__(self, endpoint: EndpointConfig) -> None:
        self._endpoint = endpoint
        context = ray.get_runtime_context()
        self._holder: str = context.get_actor_id() or context.get_worker_id()
        self._actor = _connect(endpoint, heir=False)
        self._epoch: int | None = None
        self._waiting: dict[Priority, deque[_Waiter]] = {priority: deque() for priority in Priority}
        self._asked = dict.fromkeys(Priority, 0)  # of those that wait, the first so many
        self._takers: dict[Priority, set[asyncio.Task[None]]] = {priority: set() for priority in Priority}
        self._held: dict[int, tuple[Lease, float]] = {}  # and when it came
        self._spare: dict[int, Lease] = {}
        self._refused_at = -math.inf
        self._last = 0.0, 0.0  # when the last request was due, and when it went out
        self._untold_replies = 0
        self._settlements: list[Settlement] = []
        self._settler: asyncio.Task[None] | None = None

    async def permit(self, size: CallSize, priority: Priority = Priority.BULK) -> Lease:
        """Wait until a request of this size may be sent: it is to be sent at once. Raises CallTooLarge."""
        lease = await self.grant(size, priority)
        await self.turn(lease)
        return lease

    async def grant(self, size: CallSize, priority: Priority = Priority.BULK) -> Lease:
        """The right to send a request of this size, a little ahead of its `turn`: time to get ready. Raises
        CallTooLarge."""
        if self._spare:
            return replace(self._spare.popitem()[1], size=size)
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiting[priority].append((size, future))
        takers = self._takers[priority]
        if len(takers) < _TAKERS:
            taker = asyncio.create_task(self._take(priority))
            takers.add(taker)
            taker.add_done_callback(takers.discard)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.unsent(future.result())
            raise

    async def turn(self, lease: Lease) -> None:
        """Wait for the lease's moment: the request is to be sent at once. After a stall, what was held up goes out at
        a quicker pace, and not all at once."""
        _, came = self._held[lease.id]
        due = came + lease.delay_s
        while True:
            last_due, last_sent = self._last
            now = time.monotonic()
            spaced = last_sent + _CATCH_UP * (due - last_due)
            # Where no rate is known there is no pace to keep.
            wait = (due if lease.reusable_s > 0 else max(due, spaced)) - now
            if wait <= 0:
                break
            try:
                await asyncio.sleep(wait)
            except asyncio.CancelledError:
                self.unsent(lease)
                raise
        if lease.reusable_s == 0:
            self._last = max(due, last_due), now

    def replied(self, lease: Lease, usage: Usage | None, headers: Mapping[str, str]) -> None:
        """The endpoint answered. `usage` is None where it does not tell."""
        said = read_rate_headers(headers, time.time())
        if said == SILENT and self._reuse(lease):
            self._untold_replies += 1
        else:
            self._settle(Settlement(lease, Ending.REPLIED, usage, said))

    def refused(self, lease: Lease, headers: Mapping[str, str]) -> None:
        """HTTP 429. Everyone waits for as long as the headers say, or a little where they do not."""
        self._refused_at = time.monotonic()
        self._settle(Settlement(lease, Ending.REFUSED, None, read_rate_headers(headers, time.time())))

    def failed(self, lease: Lease, headers: Mapping[str, str]) -> None:
        """Sent, and failed in any other way: nobody knows what it used."""
        self._settle(Settlement(lease, Ending.SENT, None, read_rate_headers(headers, time.time())))

    def unsent(self, lease: Lease) -> None:
        """Not sent after all."""
        self._settle(Settlement(lease, Ending.UNSENT))

    async def release(self, holder: str) -> None:
        """The actor of this id died."""
        await self._call("release", holder)

    async def throttled(self) -> bool:
        """Whether more callers would get no more leases."""
        return bool(await self._call("throttled"))

    async def _take(self, priority: Priority) -> None:
        """Ask for those that wait, until all are asked for."""
        waiting = self._waiting[priority]
        while sizes := [
            size for size, _ in islice(waiting, self._asked[priority], self._asked[priority] + _MOST_ASKED)
        ]:
            self._asked[priority] += len(sizes)
            try:
                grants = await self._acquire(priority, sizes)
            except Exception as error:  # handed on to everyone who waits for a permit
                while waiting:
                    _, future = waiting.popleft()
                    if not future.done():
                        future.set_exception(error)
                return
            finally:
                self._asked[priority] -= len(sizes)
            came = time.monotonic()
            for grant in grants:
                if isinstance(grant, Lease):
                    self._held[grant.id] = grant, came
                    self._hand_on(grant, priority)
                elif any(size == grant.size for size, _ in waiting):
                    _, future = _pop(waiting, grant.size)
                    if not future.done():
                        future.set_exception(CallTooLarge(grant))

    async def _acquire(self, priority: Priority, sizes: Sequence[CallSize]) -> list[Grant]:
        while True:
            grants = await self._call("acquire", self._epoch, self._holder, priority, sizes)
            if grants is not None:
                return list(grants)
            held = [lease for lease, _ in self._held.values()]
            self._epoch = await self._call("register", self._holder, held)

    def _hand_on(self, lease: Lease, first: Priority) -> None:
        """Give a lease to one who waits, of those it was asked for first; back where nobody does any more."""
        for priority in (first, *Priority):
            while self._waiting[priority]:
                size, future = _pop(self._waiting[priority], lease.size)
                if not future.done():
                    future.set_result(replace(lease, size=size))
                    return
        self.unsent(lease)

    def _reuse(self, lease: Lease) -> bool:
        """Give the lease to another call that waits, or comes in a moment, where it is good for more than one."""
        _, came = self._held[lease.id]
        if lease.reusable_s == 0 or came < self._refused_at or time.monotonic() > came + lease.reusable_s:
            return False
        if any(self._waiting.values()):
            self._hand_on(lease, Priority.LIVE)
        else:
            self._spare[lease.id] = lease
            asyncio.get_running_loop().call_later(_SPARE_S, self._give_back, lease.id)
        return True

    def _give_back(self, spare: int) -> None:
        lease = self._spare.pop(spare, None)
        if lease is not None:
            self._settle(Settlement(lease, Ending.UNSENT))  # its last call was told of, or will be

    def _settle(self, settlement: Settlement) -> None:
        self._held.pop(settlement.lease.id)
        self._settlements.append(replace(settlement, untold_replies=self._untold_replies))
        self._untold_replies = 0
        if self._settler is None or self._settler.done():
            self._settler = asyncio.create_task(self._settle_all())

    async def _settle_all(self) -> None:
        while self._settlements:
            settlements, self._settlements = self._settlements, []
            await self._call("settle", settlements)

    async def _call(self, method: str, *arguments: Any) -> Any:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return await getattr(self._actor, method).remote(*arguments)
            except RayActorError:
                if time.monotonic() > deadline:
                    raise
                # Ray frees the name of a dead actor a moment later.
                await asyncio.sleep(_AGAIN_S)
                self._actor = _connect(self._endpoint, heir=True)


def _pop(waiting: deque[_Waiter], size: CallSize) -> _Waiter:
    """Take out the first whose call is of this size, as that is what the lease was charged for; else the first."""
    waiter = next((waiter for waiter in waiting if waiter[0] == size), waiting[0])
    waiting.remove(waiter)
    return waiter


def _connect(endpoint: EndpointConfig, *, heir: bool) -> Any:
    quota = endpoint.quota or f"{endpoint.base_url}\0{endpoint.model}\0{endpoint.api_key_env}\0{endpoint.api_key_file}"
    limits = Limits(endpoint.requests_per_minute, endpoint.tokens_per_minute, endpoint.max_concurrency)
    return shared(
        LimiterActor,
        f"limiter-{hashlib.sha256(quota.encode()).hexdigest()[:8]}",
        args=(limits, endpoint.timeout_s + _LEASE_MARGIN_S, heir),
        concurrency=_ASKERS_AT_A_TIME,
    )
