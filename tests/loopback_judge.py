"""A chat-completions server on the loopback that prefers the longer answer, counts, and fails on request."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

_ANSWER = re.compile(r"Answer [12]:\nbegin_\w+\n(.*?)\nend_", re.DOTALL)


@dataclass
class LoopbackJudge:
    """What it saw, and which faults are still to come. A fault takes the place of the next answers."""

    url: str = ""
    latency_s: float = 0.0
    with_logprobs: bool = True
    faults: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)  # of requests that were answered
    keys: set[str] = field(default_factory=set)
    arrivals: list[float] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    async def complete(self, request: web.Request) -> web.StreamResponse:
        self.arrivals.append(time.monotonic())
        self.keys.add(request.headers.get("Authorization", ""))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            body = await request.json()
            if self.latency_s:
                await asyncio.sleep(self.latency_s)
            if self.faults:
                return self._fail(self.faults.pop(0), request)
            return self._answer(body)
        finally:
            self.in_flight -= 1

    def _fail(self, fault: str, request: web.Request) -> web.StreamResponse:
        if fault == "cut":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        status, _, retry_after = fault.partition(" ")
        headers = {"Retry-After": retry_after} if retry_after else {}
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        error = {"error": {"message": f"fault {fault} for key {key}", "code": None}}
        return web.json_response(error, status=int(status), headers=headers)

    def _answer(self, body: dict[str, Any]) -> web.Response:
        content = body["messages"][-1]["content"]
        assert (body["max_tokens"], body["temperature"], body["top_logprobs"]) == (1, 0.0, 20)
        self.prompts.append(content)
        p = p_first(*_ANSWER.findall(content))
        top = [("1", 0.9 * p), (" 2", 0.9 * (1 - p)), ("The", 0.05)]
        entries = [{"token": token, "logprob": math.log(share)} for token, share in top]
        logprobs = {"content": [{**entries[0], "top_logprobs": entries}]} if self.with_logprobs else None
        return web.json_response(
            {
                "id": hashlib.sha256(json.dumps(body).encode()).hexdigest()[:8],
                "object": "chat.completion",
                "model": body["model"],
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "length",
                        "message": {"role": "assistant", "content": "1"},
                        "logprobs": logprobs,
                    }
                ],
                "usage": {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101},
            }
        )


def p_first(first: str, second: str) -> float:
    """The judge's mind: each character more moves the odds by e^0.1, and the first place by e^0.45."""
    return 1 / (1 + math.exp(-0.1 * (len(first) - len(second)) - 0.45))


@contextmanager
def serving(judge: LoopbackJudge) -> Iterator[LoopbackJudge]:
    """Serve from a thread until the block ends."""
    with serving_handler(judge.complete) as judge.url:
        yield judge


@contextmanager
def serving_handler(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Iterator[str]:
    """Serve chat completions by any handler from a thread, and give the address."""
    loop = asyncio.new_event_loop()
    started = threading.Event()

    async def start() -> web.AppRunner:
        application = web.Application()
        application.router.add_post("/v1/chat/completions", handler)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner

    runners: list[web.AppRunner] = []

    def run() -> None:
        asyncio.set_event_loop(loop)
        runners.append(loop.run_until_complete(start()))
        started.set()
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield f"http://127.0.0.1:{runners[0].addresses[0][1]}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(runners[0].cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
