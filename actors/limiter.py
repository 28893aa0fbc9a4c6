"""The one keeper of a quota: every judge actor of the cluster that calls the same endpoint asks it for leases."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError

from rlaif_ray.config import JudgeConfig
from rlaif_ray.judge.rate_limit import Lease, Limits, RateLimiter, Settlement

# Shared by all jobs of a cluster, as a quota is.
NAMESPACE = "rlaif-ray"

# Longer than a call can live, so that no lease returns while its request is still under way.
_LEASE_MARGIN_S = 15.0


class LimiterActor:
    """A `RateLimiter` with a clock, and waiting."""

    def __init__(self, limits: Limits, lease_ttl_s: float) -> None:
        self._limiter = RateLimiter(limits, lease_ttl_s, time.monotonic())
        self._settled = asyncio.Event()
        self._turn = asyncio.Lock()

    async def acquire(self, holder: str, wanted: Sequence[int]) -> list[Lease]:
        """Leases for the first of the `wanted` calls, given by their expected tokens: at least one, as many as are
        due now. `holder` is the id of the calling actor. Callers are served in the order of their coming."""
        async with self._turn:
            while True:
                leases: list[Lease] = []
                for tokens in wanted:
                    lease = self._limiter.acquire(tokens, holder, time.monotonic())
                    if lease is None:
                        break
                    leases.append(lease)
                if leases:
                    return leases
                await self._wait(self._limiter.wait_s(time.monotonic()))

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        for settlement in settlements:
            self._limiter.settle(settlement)
        self._settled.set()

    async def release(self, holder: str) -> None:
        """An actor died: its leases are free at once, and not only at their expiry."""
        self._limiter.release(holder)
        self._settled.set()

    async def pause(self, seconds: float) -> None:
        """The endpoint refused a call for rate: nobody calls for so long."""
        self._limiter.pause(seconds, time.monotonic())

    async def throttled(self) -> bool:
        """Whether more callers would get no more leases."""
        return self._limiter.throttled(time.monotonic())

    async def _wait(self, seconds: float) -> None:
        self._settled.clear()
        try:
            await asyncio.wait_for(self._settled.wait(), seconds)
        except TimeoutError:
            return


class Limiter:
    """The limiter of a config's quota, as pools and workers call it. The first to come starts it and sets its limits.

    It ends with the job that started it; another job that still calls then starts it anew.
    """

    def __init__(self, config: JudgeConfig) -> None:
        self._config = config
        self._actor = _connect(config)

    async def acquire(self, holder: str, wanted: Sequence[int]) -> list[Lease]:
        return list(await self._call("acquire", holder, wanted))

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        await self._call("settle", settlements)

    async def release(self, holder: str) -> None:
        await self._call("release", holder)

    async def pause(self, seconds: float) -> None:
        await self._call("pause", seconds)

    async def throttled(self) -> bool:
        return bool(await self._call("throttled"))

    async def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return await getattr(self._actor, method).remote(*arguments)
        except RayActorError:
            self._actor = _connect(self._config)
            return await getattr(self._actor, method).remote(*arguments)


def _connect(config: JudgeConfig) -> Any:
    quota = hashlib.sha256(f"{config.base_url}\0{config.model}\0{config.api_key_env}".encode()).hexdigest()[:8]
    limits = Limits(config.requests_per_minute, config.tokens_per_minute, config.max_concurrency)
    return (
        ray.remote(LimiterActor)
        .options(
            name=f"limiter-{quota}",
            namespace=NAMESPACE,
            get_if_exists=True,
            num_cpus=0,
            max_concurrency=1_000,
            max_restarts=-1,
            max_task_retries=-1,
        )
        .remote(limits, config.timeout_s + _LEASE_MARGIN_S)
    )
