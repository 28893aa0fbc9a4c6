"""The yardstick is measured first: the strict server's limits, faults and bill."""

from __future__ import annotations

import json
import math
from typing import Any

import aiohttp
import pytest
from judge_server import FAULTS, BillLine, admitted, duration, make_rate, p_first, strict_server


def admissions(policy: str, per_minute: float, times: list[float], cost: float = 1.0) -> list[bool]:
    rate = make_rate(policy, per_minute)
    passed = []
    for now in times:
        passed.append(rate.wait_s(cost, now) == 0)
        if passed[-1]:
            rate.charge(cost, now)
    return passed


def test_a_bucket_starts_full_and_refills_evenly() -> None:
    """120 a minute with one second of burst: two at once, and another half a second later."""
    assert admissions("bucket-1s", 120, [0, 0, 0, 0.4, 0.5, 0.6, 1.0]) == [True, True, False, False, True, False, True]
    assert admissions("bucket-60s", 3, [0, 0, 0, 0, 20]) == [True, True, True, False, True]


def test_a_fixed_window_forgets_at_its_end() -> None:
    assert admissions("fixed-60s", 2, [58, 59, 59.9, 60, 60, 60]) == [True, True, False, True, True, False]
    assert admissions("window-1s", 120, [0.8, 0.9, 0.99, 1.0, 1.0, 1.5]) == [True, True, False, True, True, False]


def test_a_sliding_window_forgets_each_call_after_a_minute() -> None:
    assert admissions("sliding-60s", 2, [0, 50, 59, 60, 61, 110]) == [True, True, False, True, False, True]


@pytest.mark.parametrize("policy", ["bucket-1s", "bucket-60s", "fixed-60s", "sliding-60s", "window-1s"])
def test_what_it_says_of_the_wait_is_when_it_lets_in(policy: str) -> None:
    rate, now = make_rate(policy, 300), 7.3
    for _ in range(1_000):
        wait = rate.wait_s(3.0, now)
        if wait > 0:
            assert rate.wait_s(3.0, now + 0.9 * wait) > 0
            now += wait + 1e-9
        assert rate.wait_s(3.0, now) == 0
        rate.charge(3.0, now)


def test_durations_are_written_as_openai_does() -> None:
    assert [duration(seconds) for seconds in (0.02, 1.5, 360.0, 61.25)] == ["20ms", "1.5s", "6m0s", "1m1.25s"]


def test_what_was_admitted_is_counted_from_the_first_to_the_last() -> None:
    """Three calls of 10 tokens at 0, 1 and 4 s, and one refused at 9: two calls and 20 tokens in 4 s."""
    bill = [BillLine(at, "", "", 200, 10, True, "") for at in (4.0, 0.0, 1.0)]
    assert admitted([*bill, BillLine(9.0, "", "", 429, 0, True, "requests")]) == (2, 20, 4.0)


async def post(url: str, number: int = 0, *, timeout_s: float = 60.0, **body: Any) -> tuple[int, bytes, dict[str, str]]:
    message = {"role": "user", "content": f"Question {number}?"}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session,
        session.post(
            f"{url}/chat/completions",
            json={"model": "strict", "messages": [message], "max_tokens": 1} | body,
            headers={"Idempotency-Key": f"key-{number}"},
        ) as response,
    ):
        return response.status, await response.read(), {name.lower(): text for name, text in response.headers.items()}


async def test_a_reply_is_billed_and_says_what_the_judge_thinks() -> None:
    """Twelve characters are three tokens, and the message three more."""
    with strict_server() as server:
        status, text, _ = await post(server.url, logprobs=True, top_logprobs=20)
        (line,) = server.bill()
    assert (status, line.status, line.key, line.sent, line.tokens) == (200, 200, "key-0", True, 3 + 3 + 1)
    reply = json.loads(text)
    assert reply["usage"] == {"prompt_tokens": 6, "completion_tokens": 1, "total_tokens": 7}
    (token,) = reply["choices"][0]["logprobs"]["content"]
    chances = {entry["token"]: math.exp(entry["logprob"]) for entry in token["top_logprobs"]}
    assert len(chances) == 20
    assert chances["1"] / (chances["1"] + chances[" 2"]) == pytest.approx(p_first("Question 0?"))
    assert sum(chances.values()) <= 1


async def test_bound_replies_keep_to_their_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"reasoning": {"type": "string"}, "verdict": {"enum": ["1", "2"]}, "score": {"type": "integer"}},
    }
    form = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}}
    tool = {"type": "function", "function": {"name": "verdict", "parameters": schema}}
    with strict_server() as server:
        _, as_schema, _ = await post(server.url, response_format=form, max_tokens=100)
        _, as_tool, _ = await post(server.url, tools=[tool], max_tokens=100)
    said = json.loads(json.loads(as_schema)["choices"][0]["message"]["content"])
    called = json.loads(as_tool)["choices"][0]["message"]["tool_calls"][0]["function"]
    assert said == json.loads(called["arguments"])
    assert said["verdict"] in {"1", "2"}
    assert 1 <= said["score"] <= 10


@pytest.mark.parametrize(
    ("kind", "header"),
    [
        ("seconds", "retry-after"),
        ("ms", "retry-after-ms"),
        ("date", "retry-after"),
        ("reset", "x-ratelimit-reset-requests"),
    ],
)
async def test_refusals_say_when_to_come_again(kind: str, header: str) -> None:
    """A minute after the first call came."""
    with strict_server(requests_per_minute=1, policy="sliding-60s", refusal_header=kind) as server:
        await post(server.url)
        status, body, headers = await post(server.url)
        bill = server.bill()
    assert (status, json.loads(body)["error"]["code"]) == (429, "rate_limit_exceeded")
    assert header in headers
    if kind == "seconds":
        first, second = bill
        assert headers[header] == str(math.ceil(60 - (second.arrived - first.arrived)))
    assert [(line.status, line.cause, line.tokens > 0) for line in bill] == [(200, "", True), (429, "requests", False)]


async def test_limits_are_told_in_headers() -> None:
    with strict_server(
        requests_per_minute=60, tokens_per_minute=7_000, policy="fixed-60s", rate_headers=True
    ) as server:
        _, _, headers = await post(server.url)
    assert headers["x-ratelimit-limit-requests"] == "60"
    assert headers["x-ratelimit-remaining-requests"] == "59"
    assert headers["x-ratelimit-remaining-tokens"] == str(7_000 - 7)


async def test_a_spent_account_says_so_for_good() -> None:
    with strict_server(quota_requests=2) as server:
        replies = [await post(server.url, number) for number in range(4)]
    assert [status for status, _, _ in replies] == [200, 200, 429, 429]
    assert json.loads(replies[-1][1])["error"]["code"] == "insufficient_quota"


# By fault: the status in the bill, whether it is billed, and whether the reply went out whole.
_BILLED = {
    "429": (429, False, True),
    "500": (500, False, True),
    "503": (503, False, True),
    "cut": (0, False, False),
    "timeout": (0, True, False),
    "cut_billed": (0, True, False),
    "cut_midway": (200, True, False),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_faults_are_billed_as_they_befall(fault: str) -> None:
    with strict_server(faults={fault: 1.0}) as server:
        try:
            timeout_s = 1.0 if fault == "timeout" else 60.0
            status, text, _ = await post(server.url, timeout_s=timeout_s, logprobs=True)
        except (TimeoutError, aiohttp.ClientError):
            status, text = 0, b""
        (line,) = server.bill()
    assert (line.status, line.tokens > 0, line.sent) == _BILLED.get(fault, (200, True, True))
    assert line.cause == fault
    if line.sent:
        assert status == line.status
    if fault == "huge":
        assert len(text) > 2**20


async def test_the_same_seed_fails_the_same_requests() -> None:
    async def failed(seed: int) -> list[int]:
        with strict_server(faults={"500": 0.3}, seed=seed) as server:
            return [number for number in range(40) if (await post(server.url, number))[0] == 500]

    assert await failed(1) == await failed(1) != await failed(2)
