"""An actor that calls an endpoint as fast as its quota's limiter lets it, with load skewed to a few long prompts."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from itertools import count

import openai
import ray

from actors.limiter import Limiter
from rlaif_ray.config import EndpointConfig
from rlaif_ray.judge.rate_limit import Priority
from rlaif_ray.judge.request import Request
from rlaif_ray.judge.token_estimate import CallSize, Usage
from rlaif_ray.records import Message

# One prompt in twenty is twenty times as long.
_SHORT, _LONG, _LONG_SHARE = 400, 8_000, 0.05


class LimitedCaller:
    def __init__(self, endpoint: EndpointConfig, name: str) -> None:
        self._endpoint = endpoint
        self._name = name
        self._limiter = Limiter(endpoint)
        self._client = openai.AsyncOpenAI(base_url=endpoint.base_url, api_key="none", max_retries=0)
        self._numbers = count()
        self._random = random.Random(name)
        self._answered = 0

    async def open(self) -> str:
        """Connect, so that what starting costs is spent before the first call. Returns the actor's id."""
        with contextlib.suppress(openai.NotFoundError):
            await self._client.models.list()
        return str(ray.get_runtime_context().get_actor_id())

    async def answered(self) -> int:
        return self._answered

    async def run(self, seconds: float, at_a_time: int = 32, priority: Priority = Priority.BULK) -> int:
        """Call for so long. Returns how many calls were answered."""
        deadline = time.monotonic() + seconds
        await asyncio.gather(*(self._loop(deadline, priority) for _ in range(at_a_time)))
        return self._answered

    async def _loop(self, deadline: float, priority: Priority) -> None:
        while time.monotonic() < deadline:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._call(priority)
            except TimeoutError:
                return

    async def _call(self, priority: Priority) -> None:
        length = _LONG if self._random.random() < _LONG_SHARE else _SHORT
        content = f"{self._name} {next(self._numbers)} ".ljust(round(length * self._random.uniform(0.8, 1.2)), "?")
        request = Request((Message("user", content),), max_tokens=self._random.choice((1, 256)))
        lease = await self._limiter.permit(CallSize.of(request), priority)
        try:
            response = await self._client.chat.completions.with_raw_response.create(
                model=self._endpoint.model,
                messages=[{"role": "user", "content": content}],
                max_tokens=request.max_tokens,
            )
        except openai.RateLimitError as error:
            self._limiter.refused(lease, error.response.headers)
        except openai.APIError:
            self._limiter.failed(lease, {})
        else:
            usage = response.parse().usage
            assert usage is not None
            self._answered += 1
            self._limiter.replied(lease, Usage(usage.prompt_tokens, usage.completion_tokens), response.headers)
