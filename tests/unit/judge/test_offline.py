import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_records import pair
from scripted_judge import chat

from rlaif_ray.config import JudgeConfig, PriceConfig, UserError
from rlaif_ray.judge.ledger import Ledger, NotInLedger, Receipt, Refusal
from rlaif_ray.judge.offline import MissingCall, estimate, missing_calls, prices_of
from rlaif_ray.judge.prices import Price
from rlaif_ray.judge.request import Form, Reply, Request, call_key, endpoint_identity
from rlaif_ray.records import Message

ADDRESS = "http://127.0.0.1:1/v1"
PAIRS = [pair(number) for number in range(3)]
CHOICE = chat("1", {"1": 0.9, "2": 0.1})
PRICE = Price(PriceConfig(input=1.0, output=2.0), "config")


def config(**changes: Any) -> JudgeConfig:
    return JudgeConfig.model_validate({"model": "judge", "base_url": ADDRESS, "mode": "choice", **changes})


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


def keep(ledger: Ledger, calls: list[MissingCall], text: str) -> None:
    ledger.record([Receipt(call.key, "judge", None, Reply(text, 10, 1, None, 0.1, 0.0)) for call in calls])


async def missing(judge: JudgeConfig, ledger: Ledger, *, assume: bool = False) -> list[MissingCall]:
    return await missing_calls(PAIRS, judge, 0, ledger, assume=assume)


async def test_an_empty_ledger_lacks_both_orders_of_every_pair(ledger: Ledger) -> None:
    calls = await missing(config(), ledger)
    assert len({call.key for call in calls}) == len(calls) == 6
    for call in calls:
        assert call.key == call_key("judge", endpoint_identity(config()), call.request)
        assert call.judge == 0
    contents = ["\n".join(message.content for message in call.request.messages) for call in calls]
    for number in range(3):
        assert sum(f"answer a {number}" in content for content in contents) == 2


async def test_what_the_ledger_holds_is_not_missing(ledger: Ledger) -> None:
    calls = await missing(config(), ledger)
    keep(ledger, calls[:4], CHOICE)
    assert await missing(config(), ledger) == calls[4:]
    keep(ledger, calls[4:], CHOICE)
    assert await missing(config(), ledger) == []


async def test_what_the_endpoint_refused_is_known_too(ledger: Ledger) -> None:
    calls = await missing(config(), ledger)
    ledger.record([Receipt(call.key, "judge", None, Refusal("HTTP 400: no")) for call in calls])
    assert await missing(config(), ledger) == []


async def test_a_question_asked_twice_is_missing_once(ledger: Ledger) -> None:
    twins = [dataclasses.replace(PAIRS[0], id=f"twin-{number}") for number in range(5)]
    assert len(await missing_calls(twins, config(), 0, ledger, assume=False)) == 2


async def test_what_follows_a_known_reply_is_missing_next(ledger: Ledger) -> None:
    """Reasoning first, and the choice on it."""
    judge = config(mode="reasoned")
    reasons = await missing(judge, ledger)
    assert {call.request.top_logprobs for call in reasons} == {0}
    keep(ledger, reasons, chat("It is longer."))
    choices = await missing(judge, ledger)
    assert len(choices) == 6
    assert all(call.request.top_logprobs and call.request.max_tokens == 1 for call in choices)
    keep(ledger, choices, CHOICE)
    assert await missing(judge, ledger) == []


async def test_every_member_of_an_ensemble_has_its_own_calls(ledger: Ledger) -> None:
    second = {"model": "other", "base_url": ADDRESS, "mode": "choice"}
    judge = config(ensemble=[second], template=["quality", "helpfulness"], templates_per_pair=2)
    calls = await missing(judge, ledger)
    # Three pairs, two orders, two templates, of each judge.
    assert [sum(call.judge == number for call in calls) for number in (0, 1)] == [12, 12]


async def test_every_criterion_of_a_rubric_is_missing_for_every_answer(ledger: Ledger) -> None:
    criteria = 3
    assert len(await missing(config(rubric="rubric-quality"), ledger)) == 3 * 2 * criteria


async def test_a_cascade_is_known_as_far_as_the_ledger_tells(ledger: Ledger) -> None:
    dear = {"model": "dear", "base_url": ADDRESS, "mode": "choice"}
    judge = config(cascade={"judge": dear, "margin": 0.1})
    first = await missing(judge, ledger)
    assert {call.judge for call in first} == {0}
    # Says "1" of both orders: .5, which the second judge is to see.
    keep(ledger, first, CHOICE)
    assert [call.judge for call in await missing(judge, ledger)] == [1] * 6


async def test_an_endpoint_that_was_not_probed_is_told_of_or_assumed_to_support_all(ledger: Ledger) -> None:
    judge = config(mode="auto")
    with pytest.raises(NotInLedger, match=r"judge\.mode"):
        await missing(judge, ledger)
    calls = await missing(judge, ledger, assume=True)
    assert len(calls) == 6
    assert {call.request.top_logprobs for call in calls} == {20}


async def test_a_known_probe_decides(ledger: Ledger) -> None:
    judge = config(mode="auto")
    asked = Request(
        (Message("user", "Reply with the digit 1 alone, and nothing else."),), temperature=0.0, top_logprobs=20
    )
    key = call_key("judge", endpoint_identity(judge), asked)
    ledger.record([Receipt(key, "judge", None, Reply(CHOICE, 10, 1, None, 0.1, 0.0))])
    calls = await missing(judge, ledger)
    assert len(calls) == 6
    assert calls == await missing(config(), ledger)


def call(judge: int = 0, **changes: Any) -> MissingCall:
    """400 characters of one message."""
    return MissingCall(judge, "key", Request((Message("user", "x" * 400),), **changes))


def test_an_estimate_by_hand() -> None:
    """400 / 4 + 8 = 108 prompt tokens and one answer token each: $1 and $2 per million. At most, a byte a token with
    128 for the chat template and 16 for the turn, booked as a message and as a prefill: 560 and one."""
    expected = estimate([call(top_logprobs=20)] * 3, config(requests_per_minute=2, tokens_per_minute=3 * 109), [PRICE])
    assert (expected.calls, expected.prompt_tokens, expected.completion_tokens) == (3, 324, 3)
    assert expected.usd == pytest.approx(3 * (108 + 2) * 1e-6)
    assert expected.at_most_usd == pytest.approx(3 * (560 + 2) * 1e-6)
    # 3 requests at 2 a minute; the tokens would take one minute.
    assert expected.minutes == pytest.approx(1.5)


def test_reasoning_is_estimated_with_the_choice_after_it() -> None:
    """200 tokens of reasoning are expected, and 512 allowed; the choice reads the prompt and the reasoning."""
    expected = estimate([call(max_tokens=512)], config(mode="reasoned"), [PRICE])
    assert (expected.calls, expected.prompt_tokens, expected.completion_tokens) == (2, 108 + 308, 200 + 1)
    assert expected.usd == pytest.approx((108 + 308 + 2 * 201) * 1e-6)
    assert expected.at_most_usd is not None
    assert expected.at_most_usd >= (560 + 2 * 512 + 560 + 512 + 2) * 1e-6
    assert expected.minutes is None


def test_a_stated_verdict_is_one_call() -> None:
    expected = estimate([call(max_tokens=1024, form=Form.SCHEMA)], config(mode="stated"), [PRICE])
    assert (expected.calls, expected.completion_tokens) == (1, 200)


def test_an_unknown_price_is_no_sum_and_a_local_labeler_is_free() -> None:
    unknown = estimate([call(top_logprobs=20)], config(), [None])
    assert (unknown.usd, unknown.at_most_usd) == (None, None)
    local = estimate([call(top_logprobs=20)], config(base_url=None), [None])
    assert (local.usd, local.at_most_usd) == (0.0, 0.0)


def test_nothing_missing_costs_nothing() -> None:
    nothing = estimate([], config(requests_per_minute=10), [PRICE])
    assert (nothing.calls, nothing.usd, nothing.at_most_usd, nothing.minutes) == (0, 0.0, 0.0, 0.0)


def test_a_price_that_a_budget_needs_must_be_known() -> None:
    second = {"model": "dear", "base_url": "http://example.org/v1"}
    judge = config(budget_usd=1.0, price={"input": 1.0, "output": 2.0}, ensemble=[second])
    with pytest.raises(UserError, match=r"judge\.budget_usd: no price is known for dear at http://example\.org/v1"):
        prices_of(judge)


@pytest.mark.parametrize(
    "changes", [{}, {"budget_usd": 1.0, "unknown_price": "ignore"}, {"budget_usd": 1.0, "base_url": None}]
)
def test_a_price_that_no_budget_needs_may_be_unknown(changes: dict[str, Any]) -> None:
    assert prices_of(config(**changes)) == [None]


def test_prices_are_in_the_order_of_the_judges() -> None:
    second = {"model": "dear", "base_url": ADDRESS, "price": {"input": 5.0, "output": 6.0}}
    judge = config(price={"input": 1.0, "output": 2.0}, ensemble=[{"model": "local"}], cascade={"judge": second})
    prices = prices_of(judge)
    assert [price and price.usd_per_million.input for price in prices] == [1.0, None, 5.0]
    assert len(prices) == len(judge.judges)
