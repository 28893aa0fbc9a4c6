"""A panel without a network: what a ledger lacks, to be estimated, or bought as a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlaif_ray.config import JudgeConfig, UserError
from rlaif_ray.judge.asking.terms import Mode
from rlaif_ray.judge.ledger import Ledger, NotInLedger, answer_of
from rlaif_ray.judge.panel import Panel
from rlaif_ray.judge.prices import Price, cost_usd, expected_prompt_tokens, load_prices, price_of, worst_cost_usd
from rlaif_ray.judge.request import Answer, Form, Request, call_key, endpoint_identity
from rlaif_ray.records import Pair

# What a judge writes where it reasons, by experience; a bound is `judge.rationale_tokens`.
_RATIONALE_TOKENS = 200


@dataclass(frozen=True, slots=True)
class MissingCall:
    """A call that the ledger has no reply to. `judge` counts in `config.judges`."""

    judge: int
    key: str
    request: Request


@dataclass(frozen=True, slots=True)
class Estimate:
    """What labelling would take, beyond what the ledger holds. Money is None where a price is not known.

    `at_most_usd` is the bound that a budget is held to; failed calls and second tries come on top of both.
    """

    calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: float | None
    at_most_usd: float | None
    minutes: float | None  # at the limits of judge.requests_per_minute and judge.tokens_per_minute


async def missing_calls(
    pairs: Iterable[Pair], config: JudgeConfig, seed: int, ledger: Ledger, *, assume: bool
) -> list[MissingCall]:
    """The next calls that labelling needs and the ledger lacks: the first of each question, or what follows what it
    holds. With `assume`, an endpoint that was not probed is taken to give log-probabilities.

    Raises NotInLedger where an endpoint was not probed and nothing is assumed.
    """
    missing: dict[str, MissingCall] = {}
    judges = config.judges
    identities = [endpoint_identity(judge) for judge in judges]

    async def ask(judge: int, requests: Sequence[Request], purpose: str) -> Sequence[Answer]:
        keys = [call_key(judges[judge].model, identities[judge], request) for request in requests]
        found = ledger.lookup(keys)
        absent = [MissingCall(judge, *call) for call in zip(keys, requests, strict=True) if call[0] not in found]
        if not absent:
            return [answer_of(key, found[key], cached=True) for key in keys]
        if purpose == "probe":
            raise NotInLedger(
                f"judge.mode: {judges[judge].base_url} was not asked yet what it supports; set judge.mode=choice, "
                "reasoned or stated, or label some pairs first"
            )
        missing.update({call.key: call for call in absent})
        raise NotInLedger(f"the ledger holds no reply of {judges[judge].model} to call {absent[0].key[:12]}")

    panel = Panel(config, seed, ask, assume=assume)
    for pair in pairs:
        compared = asyncio.create_task(panel.compare(pair, "judge"))
        await asyncio.wait([compared])
        # One order's miss must not hide the other's: what was begun beside it is seen to its end.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
        error = compared.exception()
        if error is not None and (not isinstance(error, NotInLedger) or not missing):
            raise error
    return list(missing.values())


def estimate(missing: Sequence[MissingCall], config: JudgeConfig, prices: Sequence[Price | None]) -> Estimate:
    """What the missing calls will take. `prices` are those of `config.judges`."""
    judges = config.judges
    calls = prompt_tokens = completion_tokens = 0
    usd: float | None = 0.0
    at_most_usd: float | None = 0.0
    for call in missing:
        request, price = call.request, prices[call.judge]
        expected = (expected_prompt_tokens(request), _expected_answer_tokens(request))
        sent = [(*expected, request)]
        if request.form is Form.TEXT and not request.top_logprobs and Mode(judges[call.judge].mode) is not Mode.STATED:
            # Reasoning, and then the choice on it.
            sent.append((sum(expected), 1, request))
        for prompt, completion, of in sent:
            calls += 1
            prompt_tokens += prompt
            completion_tokens += completion
            if price is not None:
                usd = None if usd is None else usd + cost_usd(price.usd_per_million, prompt, completion)
                at_most_usd = None if at_most_usd is None else at_most_usd + worst_cost_usd(price.usd_per_million, of)
            elif judges[call.judge].base_url is not None:
                usd = at_most_usd = None
    per_minute = [
        amount / limit
        for amount, limit in (
            (calls, config.requests_per_minute),
            (prompt_tokens + completion_tokens, config.tokens_per_minute),
        )
        if limit is not None
    ]
    return Estimate(calls, prompt_tokens, completion_tokens, usd, at_most_usd, max(per_minute, default=None))


def prices_of(config: JudgeConfig) -> list[Price | None]:
    """What each of `config.judges` charges. Raises UserError where a budget needs a price that is not known."""
    table = load_prices(config.prices)
    prices = [price_of(judge, table) for judge in config.judges]
    unknown = [
        judge
        for judge, price in zip(config.judges, prices, strict=True)
        if price is None and judge.base_url is not None
    ]
    if unknown and config.budget_usd is not None and config.unknown_price == "refuse":
        raise UserError(
            f"judge.budget_usd: no price is known for {unknown[0].model} at {unknown[0].base_url}; set "
            "judge.price.input and judge.price.output, in dollars per million tokens, or judge.unknown_price=ignore"
        )
    return prices


def _expected_answer_tokens(request: Request) -> int:
    return min(request.max_tokens, _RATIONALE_TOKENS)
