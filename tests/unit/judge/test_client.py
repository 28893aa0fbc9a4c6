"""The client against a server on the loopback."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from loopback_judge import LoopbackJudge, serving, serving_handler

from rlaif_ray.config import JudgeConfig, UserError
from rlaif_ray.judge.choice import read_choice
from rlaif_ray.judge.client import CallFailed, JudgeClient
from rlaif_ray.judge.ledger import Reply, Sampling, worst_prompt_tokens
from rlaif_ray.judge.retry import FailureKind
from rlaif_ray.judge.templates import load_template
from rlaif_ray.records import Message, Order, Pair, Prompt

MESSAGES = load_template("quality").messages(Pair("pair", Prompt("prompt", "Say."), "a", "b"), Order.AB)


@pytest.fixture
def server() -> Iterator[LoopbackJudge]:
    with serving(LoopbackJudge()) as judge:
        yield judge


async def complete(server: LoopbackJudge, messages: tuple[Message, ...] = MESSAGES, **changes: Any) -> Reply:
    client = JudgeClient(JudgeConfig.model_validate({"model": "m", "base_url": server.url, **changes}))
    try:
        return await client.complete(messages, Sampling())
    finally:
        await client.close()


async def test_a_reply_is_kept_raw_with_its_usage_and_cost(server: LoopbackJudge) -> None:
    """100 tokens in at $3 and 1 out at $5 per million: .0003 + .000005."""
    reply = await complete(server, price={"input": 3.0, "output": 5.0})
    assert (reply.prompt_tokens, reply.completion_tokens) == (100, 1)
    assert reply.cost_usd == pytest.approx(0.000305)
    assert '"chat.completion"' in reply.text
    # Answers of one length: only the lean to the first place is left, 1 / (1 + e^-0.45).
    assert read_choice(reply.text, ("1", "2"), 0.5).p_first == pytest.approx(0.610639)


@pytest.mark.parametrize(
    ("fault", "kind", "retry_after_s", "maybe_billed"),
    [
        ("429 7", FailureKind.RATE_LIMITED, 7.0, False),
        ("500", FailureKind.TRANSIENT, None, False),
        ("cut", FailureKind.TRANSIENT, None, True),
        ("422", FailureKind.ITEM, None, False),
        ("401", FailureKind.RUN, None, False),
    ],
)
async def test_failures_are_typed(
    server: LoopbackJudge, fault: str, kind: FailureKind, retry_after_s: float | None, maybe_billed: bool
) -> None:
    server.faults = [fault]
    with pytest.raises(CallFailed) as error:
        await complete(server)
    failure = error.value.failure
    assert (failure.kind, failure.retry_after_s, failure.maybe_billed) == (kind, retry_after_s, maybe_billed)
    assert failure.reason
    assert len(server.arrivals) == 1  # no retry of its own


async def test_a_timeout_may_have_been_billed(server: LoopbackJudge) -> None:
    server.latency_s = 0.5
    with pytest.raises(CallFailed) as error:
        await complete(server, timeout_s=0.1)
    assert error.value.failure.maybe_billed
    assert error.value.failure.kind is FailureKind.TRANSIENT


async def test_the_key_comes_from_the_environment_and_is_quoted_nowhere(
    server: LoopbackJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-very-secret")
    server.faults = ["400"]
    with pytest.raises(CallFailed) as error:
        await complete(server, api_key_env="SOME_KEY")
    assert server.keys == {"Bearer sk-very-secret"}
    assert "[key]" in error.value.failure.reason
    assert "sk-very-secret" not in error.value.failure.reason


@pytest.mark.parametrize("value", [None, ""])
async def test_a_missing_key_names_its_variable(
    server: LoopbackJudge, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SOME_KEY", value)
    with pytest.raises(UserError, match=r"judge\.api_key_env.*SOME_KEY"):
        await complete(server, api_key_env="SOME_KEY")


async def test_a_model_that_knows_the_newer_name_of_the_limit_is_asked_by_it() -> None:
    seen: list[set[str]] = []

    async def choosy(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        seen.append({name for name in body if name.startswith("max_")})
        if "max_tokens" in body:
            message = "Unsupported parameter: use 'max_completion_tokens' instead."
            return web.json_response({"error": {"message": message}}, status=400)
        return web.json_response({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    with serving_handler(choosy) as url:
        client = JudgeClient(JudgeConfig(model="m", base_url=url))
        await client.complete(MESSAGES, Sampling())
        await client.complete(MESSAGES, Sampling())
        await client.close()
    assert seen == [{"max_tokens"}, {"max_completion_tokens"}, {"max_completion_tokens"}]


async def test_unknown_usage_is_booked_at_its_worst() -> None:
    async def terse(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0)
        return web.json_response({"choices": []})

    with serving_handler(terse) as url:
        client = JudgeClient(JudgeConfig(model="m", base_url=url))
        reply = await client.complete(MESSAGES, Sampling())
        await client.close()
    assert (reply.prompt_tokens, reply.completion_tokens) == (worst_prompt_tokens(MESSAGES), 1)
