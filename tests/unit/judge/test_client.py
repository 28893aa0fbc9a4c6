"""The client against servers on the loopback."""

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from rlaif_ray.config import EndpointConfig, UserError
from rlaif_ray.judge.client import CallFailed, Completion, JudgeClient, request_body
from rlaif_ray.judge.prices import worst_prompt_tokens
from rlaif_ray.judge.request import Form, Request
from rlaif_ray.judge.retry import Failure, FailureKind
from rlaif_ray.judge.transport import LARGEST_BODY_BYTES
from rlaif_ray.records import Message

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

QUESTION = Request(messages=(Message("system", "Judge."), Message("user", "Which?")), top_logprobs=20)
SCHEMA = '{"type": "object"}'
KEY = "sk-proj-4fGh7Kq2LmN9pRsTuVwXyZ0123456789abcd"
REPLY: dict[str, Any] = {
    "choices": [{"message": {"content": "1"}}],
    "usage": {
        "prompt_tokens": 100,
        "completion_tokens": 10,
        "total_tokens": 110,
        "prompt_tokens_details": {"cached_tokens": 64},
        "completion_tokens_details": {"reasoning_tokens": 9},
    },
}


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """Serve chat completions by a handler, and give the address."""
    application = web.Application()
    application.router.add_post("/v1/chat/completions", handler)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


def answering(body: Any = REPLY, status: int = 200, headers: dict[str, str] | None = None) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return web.Response(body=content, status=status, headers=headers)

    return answer


async def complete(handler: Handler, request: Request = QUESTION, **settings: Any) -> Completion:
    async with serving(handler) as url:
        client = JudgeClient(EndpointConfig.model_validate({"model": "m", "base_url": url, **settings}))
        try:
            return await client.complete(request, "call-key")
        finally:
            await client.close()


async def failure_of(handler: Handler, **settings: Any) -> Failure:
    with pytest.raises(CallFailed) as error:
        await complete(handler, **settings)
    assert str(error.value) == error.value.failure.reason
    return error.value.failure


# What is sent.


def body_of(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"messages": (Message("user", "Which?"),), "max_tokens": 7, **changes}
    return request_body(EndpointConfig(model="m", base_url="http://x/v1"), Request(**fields))


ASKED = {
    "model": "m",
    "messages": [{"role": "user", "content": "Which?"}],
    "max_tokens": 7,
    "temperature": 0.0,
}


@pytest.mark.parametrize(
    ("changes", "added"),
    [
        ({}, {}),
        ({"temperature": 0.7, "top_logprobs": 5}, {"temperature": 0.7, "logprobs": True, "top_logprobs": 5}),
        ({"form": Form.CHOICE, "choices": ("1", "2")}, {"structured_outputs": {"choice": ["1", "2"]}}),
        (
            {"form": Form.SCHEMA, "schema": SCHEMA},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "verdict", "strict": True, "schema": {"type": "object"}},
                }
            },
        ),
        (
            {"form": Form.TOOL, "schema": SCHEMA},
            {
                "tools": [{"type": "function", "function": {"name": "verdict", "parameters": {"type": "object"}}}],
                "tool_choice": {"type": "function", "function": {"name": "verdict"}},
            },
        ),
        (
            {"prefill": "Answer"},
            {
                "messages": [*ASKED["messages"], {"role": "assistant", "content": "Answer"}],
                "continue_final_message": True,
                "add_generation_prompt": False,
            },
        ),
    ],
)
def test_the_body_of_each_form(changes: dict[str, Any], added: dict[str, Any]) -> None:
    assert body_of(**changes) == {**ASKED, **added}


def test_a_temperature_of_the_endpoints_own_is_not_sent() -> None:
    assert "temperature" not in body_of(temperature=None)


def test_extra_fields_are_sent() -> None:
    endpoint = EndpointConfig(model="m", base_url="http://x/v1", extra_body={"reasoning_effort": "low"})
    assert request_body(endpoint, QUESTION)["reasoning_effort"] == "low"


async def test_what_the_server_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    seen: list[tuple[Mapping[str, str], Any]] = []

    async def look(request: web.Request) -> web.StreamResponse:
        seen.append((request.headers, await request.json()))
        return web.json_response(REPLY)

    settings: dict[str, Any] = {
        "api_key_env": "SOME_KEY",
        "extra_headers": {"X-Team": "blue"},
        "extra_body": {"seed": 3},
    }
    await complete(look, **settings)
    ((headers, body),) = seen
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert (headers["Idempotency-Key"], headers["X-Team"]) == ("call-key", "blue")
    assert body == request_body(EndpointConfig(model="m", base_url="http://x/v1", **settings), QUESTION)


async def test_a_model_that_knows_the_newer_name_of_the_limit_is_asked_by_it() -> None:
    """Two calls at once are both refused, and both go again; the third is right from the start."""
    seen: list[set[str]] = []

    async def choosy(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        seen.append({name for name in body if name.startswith("max_")})
        if "max_tokens" in body:
            await asyncio.sleep(0.05)
            message = "Unsupported parameter: use 'max_completion_tokens' instead."
            return web.json_response({"error": {"message": message}}, status=400)
        return web.json_response(REPLY)

    async with serving(choosy) as url:
        client = JudgeClient(EndpointConfig(model="m", base_url=url))
        await asyncio.gather(client.complete(QUESTION, "a"), client.complete(QUESTION, "b"))
        await client.complete(QUESTION, "c")
        await client.close()
    assert seen == [{"max_tokens"}] * 2 + [{"max_completion_tokens"}] * 3


async def test_proxies_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    hosts: list[str] = []

    async def proxy(request: web.Request) -> web.StreamResponse:
        hosts.append(request.host)
        return web.json_response(REPLY)

    async with serving(proxy) as url:
        monkeypatch.setenv("http_proxy", url.removesuffix("/v1"))
        client = JudgeClient(EndpointConfig(model="m", base_url="http://judge.invalid/v1"))
        await client.complete(QUESTION, "key")
        await client.close()
    assert hosts == ["judge.invalid"]


# What comes back.


async def test_a_reply_is_kept_raw_with_its_usage_and_cost() -> None:
    """36 tokens at $3, 64 of the cache at $.30 and 10 out at $5 per million: 108 + 19.2 + 50 microdollars."""
    price = {"input": 3.0, "cached_input": 0.3, "output": 5.0}
    headers = {"X-RateLimit-Remaining-Requests": "59", "Server-Timing": "3"}
    completion = await complete(answering(headers=headers), price=price)
    reply = completion.reply
    assert json.loads(reply.text) == REPLY
    assert (reply.prompt_tokens, reply.cached_tokens) == (100, 64)
    assert (reply.completion_tokens, reply.reasoning_tokens) == (10, 9)
    assert reply.cost_usd == pytest.approx(177.2e-6, abs=1e-15)
    assert reply.latency_s > 0
    assert completion.headers == {"x-ratelimit-remaining-requests": "59"}


async def test_without_a_price_a_reply_has_no_cost() -> None:
    assert (await complete(answering())).reply.cost_usd is None


WORST = (worst_prompt_tokens(QUESTION), 1, 0, 0)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 2}, (5, 2, 0, 0)),
        ({"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": None}, (5, 2, 0, 0)),
        # What the judge thought is in the total alone: 30 - 5.
        ({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 30}, (5, 25, 0, 0)),
        ({"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 9}}, (5, 2, 5, 0)),
        (None, WORST),
        ({}, WORST),
        ({"prompt_tokens": -5, "completion_tokens": 2}, WORST),
        ({"prompt_tokens": True, "completion_tokens": 2}, WORST),
        ({"prompt_tokens": "5", "completion_tokens": 2}, WORST),
        ({"prompt_tokens": 10**30, "completion_tokens": 2}, WORST),
        ({"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": [1]}, WORST),
    ],
)
async def test_usage_that_is_missing_or_nonsense_is_booked_at_its_worst(
    usage: Any, tokens: tuple[int, int, int, int]
) -> None:
    reply = (await complete(answering({"choices": [], "usage": usage}))).reply
    assert (reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens, reply.reasoning_tokens) == tokens


@pytest.mark.parametrize(
    "body", [b"", b"upstream connect error", b'{"choices": [{"mess', b"[" * 100_000, b"9" * 10_000, b"\xff\xfe{}"]
)
async def test_a_reply_that_is_no_json_is_a_reply(body: bytes) -> None:
    reply = (await complete(answering(body))).reply
    assert reply.text == body.decode(errors="replace")
    assert (reply.prompt_tokens, reply.completion_tokens) == WORST[:2]


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_of_an_endless_reply_only_so_much_is_read(encoding: str) -> None:
    content = b"1" * (4 * LARGEST_BODY_BYTES)
    body = gzip.compress(content) if encoding == "gzip" else content
    reply = (await complete(answering(body, headers={"Content-Encoding": encoding}))).reply
    assert len(reply.text) == LARGEST_BODY_BYTES


# What fails.


@pytest.mark.parametrize(
    ("status", "error", "headers", "kind", "retry_after_s"),
    [
        (429, {"code": "rate_limit_exceeded"}, {"Retry-After": "7"}, FailureKind.RATE_LIMITED, 7.0),
        (429, {"code": "insufficient_quota"}, {}, FailureKind.QUOTA, None),
        (429, {"type": "insufficient_quota"}, {}, FailureKind.QUOTA, None),
        (500, {}, {}, FailureKind.TRANSIENT, None),
        (529, {"type": "overloaded_error"}, {"Retry-After-Ms": "250"}, FailureKind.TRANSIENT, 0.25),
        (422, {}, {}, FailureKind.ITEM, None),
        (401, {}, {}, FailureKind.RUN, None),
    ],
)
async def test_failures_are_typed(
    status: int, error: dict[str, str], headers: dict[str, str], kind: FailureKind, retry_after_s: float | None
) -> None:
    arrivals: list[str] = []

    async def refuse(request: web.Request) -> web.StreamResponse:
        arrivals.append(request.path)
        return await answering({"error": {"message": "no", **error}}, status, headers)(request)

    failure = await failure_of(refuse)
    assert (failure.kind, failure.retry_after_s, failure.maybe_billed) == (kind, retry_after_s, False)
    assert set(failure.headers) == {name.lower() for name in headers}
    assert len(arrivals) == 1  # no retry of its own


async def test_a_refused_parameter_is_named() -> None:
    error = {"message": "Only the default is supported.", "param": "temperature", "code": "unsupported_value"}
    failure = await failure_of(answering({"error": error}, 400))
    assert failure.refused
    assert "Only the default" in failure.reason
    assert "temperature" in failure.reason


async def test_a_page_in_place_of_an_error_is_cut_short() -> None:
    failure = await failure_of(answering(b"<html>" + b"x" * 100_000, 502))
    assert failure.kind is FailureKind.TRANSIENT
    assert len(failure.reason) < 1_000


async def test_a_redirect_is_not_followed_with_the_key() -> None:
    failure = await failure_of(answering(b"", 307, {"Location": "http://127.0.0.1:1/v1/chat/completions"}))
    assert failure.kind is FailureKind.RUN
    assert "judge.base_url" in failure.reason


async def cut(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def cut_midway(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"choices": [')
    return await cut(request)


async def never_done(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.02)


async def silent(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(5)
    return web.Response()


@pytest.mark.parametrize("handler", [cut, cut_midway, never_done, silent])
async def test_what_is_lost_on_the_way_may_have_been_billed(handler: Handler) -> None:
    failure = await failure_of(handler, timeout_s=0.2)
    assert failure.kind is FailureKind.TRANSIENT
    assert failure.maybe_billed


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:1/v1", "http://no-such-host.invalid/v1"])
async def test_what_was_never_sent_was_not_billed(base_url: str) -> None:
    client = JudgeClient(EndpointConfig(model="m", base_url=base_url))
    with pytest.raises(CallFailed) as error:
        await client.complete(QUESTION, "key")
    await client.close()
    assert error.value.failure.kind is FailureKind.TRANSIENT
    assert not error.value.failure.maybe_billed


# Keys.


async def test_a_mounted_key_is_sent(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    seen: list[str] = []

    async def look(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers["Authorization"])
        return web.json_response(REPLY)

    await complete(look, api_key_file=tmp_path / "key")
    assert seen == [f"Bearer {KEY}"]


@pytest.mark.parametrize("value", [None, "", "  \n"])
def test_a_missing_key_names_its_variable(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SOME_KEY", value)
    with pytest.raises(UserError, match=r"judge\.api_key_env.*SOME_KEY"):
        JudgeClient(EndpointConfig(model="m", base_url="http://x/v1", api_key_env="SOME_KEY"))


@pytest.mark.parametrize("content", [None, b"", b"sk-one\nsk-two\n", b"\xff\xfe", "sk-ключ".encode()])
def test_a_key_file_without_a_key_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(UserError, match=r"judge\.api_key_file: \S*key") as error:
        JudgeClient(EndpointConfig(model="m", base_url="http://x/v1", api_key_file=tmp_path / "key"))
    assert "sk-" not in str(error.value)


@pytest.mark.parametrize(
    "quoted",
    [
        KEY,
        f"Bearer {KEY}",
        KEY[:20],
        KEY[7:30],
        f"{KEY[:6]}...{KEY[-4:]}",
        f"{KEY[:8]}{'*' * 20}{KEY[-4:]}",
        f"sk-…{KEY[-4:]}",
        f"****{KEY[-4:]}",
    ],
)
@pytest.mark.parametrize("status", [200, 400, 401, 500])
async def test_a_quoted_key_is_taken_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, quoted: str, status: int
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    handler = answering({"error": {"message": f"Incorrect API key provided: {quoted}. See the docs."}}, status)
    if status == 200:
        said = (await complete(handler, api_key_env="SOME_KEY")).reply.text
    else:
        failure = await failure_of(handler, api_key_env="SOME_KEY")
        said = repr(failure)
    assert "provided: [key]" in said.replace("Bearer ", "")
    assert "See the docs." in said
    assert KEY[-4:] not in said
    assert KEY[:6] not in said
    assert KEY not in caplog.text
