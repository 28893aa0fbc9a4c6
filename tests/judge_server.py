"""A strict chat-completions server on the loopback, in a process of its own, for tests and benchmarks.

It enforces requests and tokens a minute as providers do, charges what a request really uses, fails at seeded rates in
every way that the wire allows, and keeps its own log, which is the bill that a client's books are held against.
`strict_server` starts one; `python tests/judge_server.py --log FILE [--port N] [--settings JSON]` does by hand.
"""

from __future__ import annotations

import argparse
import asyncio
import email.utils
import hashlib
import json
import math
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any, Protocol

from aiohttp import web

POLICIES = ("bucket-1s", "bucket-60s", "fixed-60s", "sliding-60s", "window-1s")

# What a 429 tells of when to come again.
REFUSAL_HEADERS = ("seconds", "ms", "date", "reset", "none")

# Faults before the request is billed, then faults after it was.
_UNBILLED = ("429", "500", "503", "cut")
_LOST = ("timeout", "cut_billed", "cut_midway")
_MALFORMED = ("not_json", "no_choices", "no_logprobs", "truncated", "empty", "html")
_HOSTILE = ("huge", "wrong_types", "nan")
FAULTS = (*_UNBILLED, *_LOST, *_MALFORMED, *_HOSTILE)

_HUGE_BYTES = 8 * 2**20
_FLUSH_S = 0.2
_START_S = 20.0
_QUIET_S = 30.0

_FENCED = re.compile(r"begin_\w+\n(.*?)\nend_", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """`faults` gives the share of requests that each fault befalls; `mean_completion` is for requests that may have
    more than one token, and is drawn from an exponential distribution by the request's content."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    policy: str = "bucket-1s"
    refusal_header: str = "none"
    rate_headers: bool = False  # x-ratelimit-* on every reply
    told_requests_per_minute: float | None = None  # the limit that these headers tell, where it is not the true one
    latency_s: float = 0.0
    latency_jitter_s: float = 0.0
    hold_s: float = 60.0  # how long a timeout is held, unless the client hangs up before
    faults: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    quota_requests: int | None = None  # after so many are answered, the account is spent
    with_logprobs: bool = True
    labels: tuple[str, str] = ("1", "2")
    mean_completion: float = 40.0


@dataclass(frozen=True, slots=True)
class BillLine:
    """One HTTP request as the server saw it."""

    arrived: float  # seconds since the epoch
    key: str  # of the Idempotency-Key header
    digest: str  # SHA-256 of the request's body
    status: int  # 0 where the connection was cut before any
    tokens: int  # billed
    sent: bool  # the reply went out to its last byte
    cause: str  # the fault that befell it, or the limit that refused it: requests, tokens, quota


class Rate(Protocol):
    """One limit. Times are in seconds of one clock."""

    def wait_s(self, cost: float, now: float) -> float:
        """Until so much would pass; 0 where it does now."""

    def charge(self, cost: float, now: float) -> None: ...

    def remaining(self, now: float) -> float: ...

    def reset_s(self, now: float) -> float:
        """Until the limit is as if unused."""


class Bucket:
    """Starts full, refills continuously. What is larger than the whole bucket passes when it is full."""

    def __init__(self, per_minute: float, burst_s: float) -> None:
        self._rate = per_minute / 60
        self._size = max(1.0, self._rate * burst_s)
        self._level, self._at = self._size, 0.0

    def wait_s(self, cost: float, now: float) -> float:
        return max(0.0, min(cost, self._size) - self.remaining(now)) / self._rate

    def charge(self, cost: float, now: float) -> None:
        self._level, self._at = self.remaining(now) - cost, now

    def remaining(self, now: float) -> float:
        return min(self._size, self._level + (now - self._at) * self._rate)

    def reset_s(self, now: float) -> float:
        return (self._size - self.remaining(now)) / self._rate


class FixedWindow:
    """Counts from zero at every multiple of its length."""

    def __init__(self, per_minute: float, length_s: float) -> None:
        self._length = length_s
        self._limit = max(1.0, per_minute * length_s / 60)
        self._window, self._used = -1, 0.0

    def wait_s(self, cost: float, now: float) -> float:
        return 0.0 if min(cost, self._limit) <= self.remaining(now) else self.reset_s(now)

    def charge(self, cost: float, now: float) -> None:
        self._used = self._limit - self.remaining(now) + cost
        self._window = math.floor(now / self._length)

    def remaining(self, now: float) -> float:
        return self._limit - (self._used if math.floor(now / self._length) == self._window else 0.0)

    def reset_s(self, now: float) -> float:
        return (math.floor(now / self._length) + 1) * self._length - now


class SlidingWindow:
    """Counts the last minute, at every moment."""

    def __init__(self, per_minute: float) -> None:
        self._limit = max(1.0, per_minute)
        self._charges: deque[tuple[float, float]] = deque()
        self._used = 0.0

    def wait_s(self, cost: float, now: float) -> float:
        excess = min(cost, self._limit) - self.remaining(now)
        for at, amount in self._charges:
            if excess <= 0:
                break
            excess -= amount
            if excess <= 0:
                return at + 60 - now
        return 0.0

    def charge(self, cost: float, now: float) -> None:
        self._charges.append((now, cost))
        self._used += cost

    def remaining(self, now: float) -> float:
        while self._charges and self._charges[0][0] <= now - 60:
            self._used -= self._charges.popleft()[1]
        return self._limit - self._used

    def reset_s(self, now: float) -> float:
        return self._charges[-1][0] + 60 - now if self._charges else 0.0


def make_rate(policy: str, per_minute: float) -> Rate:
    match policy:
        case "bucket-1s":
            return Bucket(per_minute, 1.0)
        case "bucket-60s":
            return Bucket(per_minute, 60.0)
        case "fixed-60s":
            return FixedWindow(per_minute, 60.0)
        case "sliding-60s":
            return SlidingWindow(per_minute)
        case "window-1s":
            return FixedWindow(per_minute, 1.0)
    raise ValueError(f"no such policy: {policy}")


def prompt_tokens(messages: list[dict[str, Any]]) -> int:
    """Three a message, and one for every four characters begun."""
    return sum(3 + math.ceil(len(message["content"]) / 4) for message in messages)


def completion_tokens(digest: str, most: int, mean: float) -> int:
    """Exponentially distributed by the content, at least 1 and at most `most`."""
    uniform = int(digest[:13], 16) / 16**13
    return max(1, min(most, round(-mean * math.log(1 - uniform))))


def p_first(content: str) -> float:
    """The judge's mind: of two fenced answers, each character more moves the odds by e^0.1, and the first place by
    e^0.45. Without two such answers, it goes by the content's hash."""
    answers = _FENCED.findall(content)
    if len(answers) < 2:
        return (hashlib.sha256(content.encode()).digest()[0] + 0.5) / 256
    odds = 0.1 * (len(answers[-2]) - len(answers[-1])) + 0.45
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, odds))))


class JudgeServer:
    """The server's state and its handlers."""

    def __init__(self, settings: ServerSettings, log: IO[str]) -> None:
        self._settings = settings
        self._log = log
        self._lines: list[str] = []
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._seen = 0
        self._answered = 0
        self._started = time.monotonic()
        self._limits: list[tuple[str, float, Rate]] = [
            (name, per_minute, make_rate(settings.policy, per_minute))
            for name, per_minute in (
                ("requests", settings.requests_per_minute),
                ("tokens", settings.tokens_per_minute),
            )
            if per_minute is not None
        ]

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        arrived, now = time.time(), time.monotonic() - self._started
        self._seen += 1
        fault = self._fault()
        digest = hashlib.sha256(body).hexdigest()
        line = [arrived, request.headers.get("Idempotency-Key", ""), digest, 0, 0, False, fault]
        self._open += 1
        self._idle.clear()
        try:
            response = await self._respond(request, json.loads(body), digest, now, line)
            try:
                await response.prepare(request)
                await response.write_eof()
            except ConnectionResetError:  # it was cut here, or the client hung up: the bill says so
                return response
            line[5] = True
            return response
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()
            self._lines.append(json.dumps(line))

    async def quiet(self, _: web.Request) -> web.Response:
        """Answers when no request is open and the log is written."""
        await self._idle.wait()
        self.flush()
        return web.Response()

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        self._log.writelines(f"{line}\n" for line in lines)
        self._log.flush()

    async def flush_always(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_S)
            self.flush()

    def _fault(self) -> str:
        draw = random.Random(f"{self._settings.seed}:{self._seen}").random() if self._settings.faults else 1.0
        for fault, share in self._settings.faults.items():
            draw -= share
            if draw < 0:
                return fault
        return ""

    async def _respond(
        self, request: web.Request, body: dict[str, Any], digest: str, now: float, line: list[Any]
    ) -> web.StreamResponse:
        fault = line[6]
        quota = self._settings.quota_requests
        if quota is not None and self._answered >= quota:
            line[6] = "quota"
            return self._error(line, 429, "You exceeded your current quota.", "insufficient_quota", {})
        if fault in _UNBILLED:
            return self._unbilled(request, fault, line)
        most = body.get("max_completion_tokens", body.get("max_tokens", 16))
        used = prompt_tokens(body["messages"]), completion_tokens(digest, most, self._settings.mean_completion)
        costs = {"requests": 1.0, "tokens": float(sum(used))}
        for name, _, rate in self._limits:
            wait = rate.wait_s(costs[name], now)
            if wait > 0:
                line[6] = name
                headers = self._rate_headers(now) | self._when(name, wait)
                return self._error(line, 429, f"Rate limit of {name} reached.", "rate_limit_exceeded", headers)
        for name, _, rate in self._limits:
            rate.charge(costs[name], now)
        headers = self._rate_headers(now)
        self._answered += 1
        line[4] = sum(used)
        if fault == "timeout":
            await asyncio.sleep(self._settings.hold_s)
        await self._think()
        if fault == "cut_billed":
            return _cut(request)
        line[3] = 200
        text = self._text(body, digest, used, fault)
        if fault == "cut_midway":
            response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "100000"})
            await response.prepare(request)
            await response.write(text[: len(text) // 2])
            return _cut(request)
        content_type = "text/html" if fault == "html" else "application/json"
        return web.Response(body=text, content_type=content_type, headers=headers)

    def _unbilled(self, request: web.Request, fault: str, line: list[Any]) -> web.StreamResponse:
        if fault == "cut":
            return _cut(request)
        if fault == "429":
            headers = self._when("requests", 1.0)
            return self._error(line, 429, "Too many requests, for no reason.", "rate_limit_exceeded", headers)
        return self._error(line, int(fault), "The server had an error.", "server_error", {})

    def _error(
        self, line: list[Any], status: int, message: str, code: str, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        line[3] = status
        error = {"error": {"message": message, "type": code, "param": None, "code": code}}
        return web.json_response(error, status=status, headers=headers)

    async def _think(self) -> None:
        seconds = self._settings.latency_s + random.random() * self._settings.latency_jitter_s
        if seconds:
            await asyncio.sleep(seconds)

    def _when(self, name: str, wait_s: float) -> dict[str, str]:
        match self._settings.refusal_header:
            case "seconds":
                return {"Retry-After": str(math.ceil(wait_s))}
            case "ms":
                return {"Retry-After-Ms": str(math.ceil(wait_s * 1e3))}
            case "date":
                # Dates know whole seconds only.
                return {"Retry-After": email.utils.formatdate(math.ceil(time.time() + wait_s), usegmt=True)}
            case "reset":
                return {f"x-ratelimit-remaining-{name}": "0", f"x-ratelimit-reset-{name}": duration(wait_s)}
        return {}

    def _rate_headers(self, now: float) -> dict[str, str]:
        if not self._settings.rate_headers:
            return {}
        headers = {}
        for name, per_minute, rate in self._limits:
            told = self._settings.told_requests_per_minute if name == "requests" else None
            headers[f"x-ratelimit-limit-{name}"] = f"{told or per_minute:.0f}"
            headers[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(rate.remaining(now))))
            headers[f"x-ratelimit-reset-{name}"] = duration(rate.reset_s(now))
        return headers

    def _text(self, body: dict[str, Any], digest: str, used: tuple[int, int], fault: str) -> bytes:
        match fault:
            case "not_json":
                return b"upstream connect error or disconnect/reset before headers"
            case "empty":
                return b""
            case "html":
                return b"<html><body><h1>502 Bad Gateway</h1></body></html>"
            case "huge":
                return b'{"choices": [{"message": {"content": "' + b"1" * _HUGE_BYTES + b'"}}]}'
            case "wrong_types":
                return b'{"choices": {"0": 7}, "usage": {"prompt_tokens": "many", "completion_tokens": null}}'
        reply = self._reply(body, digest, used)
        if fault == "no_choices":
            reply["choices"] = []
        if fault == "no_logprobs":
            reply["choices"][0]["logprobs"] = None
        if fault == "nan":
            for token in (reply["choices"][0]["logprobs"] or {"content": []})["content"]:
                for entry in token["top_logprobs"]:
                    entry["logprob"] = math.nan
        text = json.dumps(reply).encode()
        return text[: len(text) // 2] if fault == "truncated" else text

    def _reply(self, body: dict[str, Any], digest: str, used: tuple[int, int]) -> dict[str, Any]:
        p = p_first("\n".join(message["content"] for message in body["messages"] if message["role"] == "user"))
        label = self._settings.labels[0 if p > 0.5 else 1]
        message: dict[str, Any] = {"role": "assistant", "content": self._content(body, label, p)}
        if body.get("tools"):
            function = body["tools"][0]["function"]
            arguments = json.dumps(filled(function["parameters"], label, p))
            call = {"name": function["name"], "arguments": arguments}
            message |= {"content": None, "tool_calls": [{"id": "call_0", "type": "function", "function": call}]}
        most = body.get("max_completion_tokens", body.get("max_tokens", 16))
        return {
            "id": f"chatcmpl-{digest[:12]}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body.get("model", "strict"),
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "length" if used[1] >= most else "stop",
                    "message": message,
                    "logprobs": self._logprobs(p) if body.get("logprobs") and self._settings.with_logprobs else None,
                }
            ],
            "usage": {"prompt_tokens": used[0], "completion_tokens": used[1], "total_tokens": sum(used)},
        }

    def _content(self, body: dict[str, Any], label: str, p: float) -> str:
        schema = (body.get("response_format") or {}).get("json_schema", {}).get("schema")
        if schema is not None:
            return json.dumps(filled(schema, label, p))
        if body.get("max_completion_tokens", body.get("max_tokens", 16)) <= 4:
            return label
        return f"The answers differ in length.\n{label}"

    def _logprobs(self, p: float) -> dict[str, Any]:
        """The first token's: nine tenths of the mass on the two labels, the rest on others."""
        first, second = self._settings.labels
        top = [_listed(first, 0.9 * p), _listed(f" {second}", 0.9 * (1 - p)), *_OTHERS]
        top.sort(key=lambda entry: -float(entry["logprob"]))
        return {"content": [{**top[0], "top_logprobs": top}]}


def _listed(token: str, share: float) -> dict[str, Any]:
    return {"token": token, "logprob": math.log(max(share, 1e-300)), "bytes": list(token.encode())}


# Of top 20, eighteen that are no labels.
_OTHERS = [_listed(f"word{number}", 0.05 / 2**number) for number in range(1, 19)]


def _cut(request: web.Request) -> web.Response:
    """End the connection without another byte."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def filled(schema: Mapping[str, Any], label: str, p: float) -> dict[str, Any]:
    """An object by a flat JSON schema: an enum gets the label where it has it, a number follows p."""
    values: dict[str, Any] = {}
    for name, kind in schema["properties"].items():
        if "enum" in kind:
            values[name] = label if label in kind["enum"] else kind["enum"][0]
        elif kind.get("type") in ("integer", "number"):
            low, high = kind.get("minimum", 1), kind.get("maximum", 10)
            values[name] = round(low + p * (high - low))
        else:
            values[name] = "The answers differ in length."
    return values


def duration(seconds: float) -> str:
    """As OpenAI writes them: 20ms, 1.5s, 6m0s. Rounded up to a millisecond."""
    ms = math.ceil(seconds * 1e3)
    if ms < 1_000:
        return f"{ms}ms"
    if ms < 60_000:
        return f"{ms / 1e3:g}s"
    return f"{ms // 60_000}m{ms % 60_000 / 1e3:g}s"


@dataclass(frozen=True, slots=True)
class StrictServer:
    """A running server. `url` is what a client's base_url should be."""

    url: str
    pid: int
    _log: Path

    def bill(self) -> list[BillLine]:
        """All requests so far, in the order of their end, once none is open any more."""
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/quiet", timeout=_QUIET_S):
            pass
        return read_bill(self._log)


def read_bill(log: Path) -> list[BillLine]:
    return [BillLine(*json.loads(line)) for line in log.read_text().splitlines()]


def admitted(bill: Sequence[BillLine]) -> tuple[int, int, float]:
    """Requests and tokens that the server admitted after the first and up to the last, and seconds between these
    two: what was used of what that time permits."""
    lines = sorted((line for line in bill if line.tokens), key=lambda line: line.arrived)
    return len(lines) - 1, sum(line.tokens for line in lines[1:]), lines[-1].arrived - lines[0].arrived


@contextmanager
def strict_server(*, log: Path | None = None, **settings: Any) -> Iterator[StrictServer]:
    """Run a server until the block ends. `settings` are those of ServerSettings; `log` keeps the bill."""
    with tempfile.TemporaryDirectory() as directory:
        path = log or Path(directory) / "bill.jsonl"
        text = json.dumps(asdict(ServerSettings(**settings)))
        command = [sys.executable, __file__, "--log", str(path), "--settings", text]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                raise RuntimeError(f"the judge server did not start: exit code {process.wait(_START_S)}")
            yield StrictServer(url, process.pid, path)
        finally:
            process.terminate()
            process.wait(_START_S)


async def serve(port: int, log: Path, settings: ServerSettings) -> None:
    """Until SIGTERM or SIGINT. The address goes to stdout when it is up."""
    with log.open("a") as file:
        server = JudgeServer(settings, file)
        application = web.Application(client_max_size=2**26)
        application.router.add_post("/v1/chat/completions", server.complete)
        application.router.add_get("/quiet", server.quiet)
        # A client that hangs up ends its request, so that the bill need not wait for it.
        runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
        flusher = asyncio.create_task(server.flush_always())
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await stop.wait()
        flusher.cancel()
        await runner.shutdown()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)
        server.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--settings", type=json.loads, default={}, help="ServerSettings as JSON")
    arguments = parser.parse_args()
    known = {entry.name for entry in fields(ServerSettings)}
    if unknown := set(arguments.settings) - known:
        parser.error(f"--settings: no such setting: {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
    settings = ServerSettings(**arguments.settings)
    if unknown := {settings.policy} - set(POLICIES) | set(settings.faults) - set(FAULTS):
        parser.error(f"--settings: no such policy or fault: {', '.join(sorted(unknown))}")
    if settings.refusal_header not in REFUSAL_HEADERS:
        parser.error(f"--settings: refusal_header is none of {', '.join(REFUSAL_HEADERS)}")
    asyncio.run(serve(arguments.port, arguments.log, settings))


if __name__ == "__main__":
    main()
