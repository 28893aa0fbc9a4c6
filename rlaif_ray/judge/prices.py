"""What calls cost: a table of prices, and exact sums.

Prices belong to a host and a model, as the same model costs another amount elsewhere. A model that the table does not
know has no price: nothing is guessed.
"""

from __future__ import annotations

from rlaif_ray.config import PriceConfig
from rlaif_ray.judge.request import Request

# Money is counted in whole picodollars: a price per million tokens is then whole for one token, and sums are exact.
_PICO = 10**12
_MICRO = 10**6


def cost_usd(price: PriceConfig, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
    """What so many tokens cost. `cached_tokens` are among the prompt's; reasoning tokens are among the completion's."""
    cached_input = price.input if price.cached_input is None else price.cached_input
    return (
        (prompt_tokens - cached_tokens) * _pico_per_token(price.input)
        + cached_tokens * _pico_per_token(cached_input)
        + completion_tokens * _pico_per_token(price.output)
    ) / _PICO


def worst_cost_usd(price: PriceConfig, request: Request) -> float:
    """The most that one call can cost: nothing cached, and every token that it may draw."""
    dearest = max(price.input, price.cached_input or 0.0)
    return cost_usd(PriceConfig(input=dearest, output=price.output), worst_prompt_tokens(request), request.max_tokens)


def worst_prompt_tokens(request: Request) -> int:
    """An upper bound on a request's prompt tokens, without its tokenizer: a token covers at least one byte. A chat
    template adds its own, and shows a schema in a notation that may be longer."""
    turns = sum(len(message.content.encode()) + 16 for message in request.messages)
    return 128 + turns + len(request.prefill.encode()) + 16 + 2 * len(request.schema.encode())


def expected_tokens(request: Request) -> int:
    """A guess at what a call uses, prompt and answer, to be settled with what it did use."""
    characters = len(request.prefill) + len(request.schema)
    return request.max_tokens + characters // 4 + sum(len(message.content) // 4 + 8 for message in request.messages)


def _pico_per_token(dollars_per_million: float) -> int:
    return round(dollars_per_million * _PICO / _MICRO)
