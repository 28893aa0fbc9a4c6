"""What calls cost: a table of prices, and exact sums.

A price belongs to a host and a model's exact name, as the same model costs another amount elsewhere. What the table
does not know has no price: nothing is guessed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from pydantic import Field, ValidationError

from rlaif_ray.config import EndpointConfig, PriceConfig, Section, UserError
from rlaif_ray.config.section import Fraction
from rlaif_ray.judge.request import Request

# Money is counted in whole picodollars: a price per million tokens is then whole for one token, and sums are exact.
_PICO = 10**12
_MICRO = 10**6

_SHIPPED = Path(__file__).with_name("prices.yaml")


class _Host(Section):
    batch: Fraction = 1.0
    models: dict[str, PriceConfig]


class _File(Section):
    version: str = Field(min_length=1)
    hosts: dict[str, _Host]


@dataclass(frozen=True, slots=True)
class Price:
    """A price and where it is from: "config", or a table's version. `batch` is the share of it that is charged through
    the host's batch API."""

    usd_per_million: PriceConfig
    source: str
    batch: float = 1.0

    @property
    def in_batches(self) -> PriceConfig:
        """The price through the batch API. Cached tokens cost as the others there: discounts may not add up."""
        price = self.usd_per_million
        return PriceConfig(input=price.input * self.batch, output=price.output * self.batch)


PriceTable = Mapping[tuple[str, str], Price]


def load_prices(path: Path | None = None) -> PriceTable:
    """The shipped table by (host, model), with the rows of the user's file added or in place of the shipped ones.

    Raises UserError naming the file and the key.
    """
    shipped = _read(_SHIPPED)
    table = _rows(shipped, shipped.version)
    if path is not None:
        # A user who edits prices may forget the version, but what a run was charged by must stay known.
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8] if path.is_file() else ""
        own = _read(path)
        table |= _rows(own, f"{path.name} {own.version} ({digest})")
    return table


def price_of(endpoint: EndpointConfig, table: PriceTable) -> Price | None:
    """What an endpoint charges: the config's own price, else the table's. None where it is not known, and for a local
    labeler, which charges nothing."""
    if endpoint.base_url is None:
        return None
    row = table.get((urlsplit(endpoint.base_url).hostname or "", endpoint.model))
    if endpoint.price is not None:
        return Price(endpoint.price, "config", row.batch if row is not None else 1.0)
    return row


def cost_usd(price: PriceConfig, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
    """What so many tokens cost. `cached_tokens` are among the prompt's; reasoning tokens are among the completion's."""
    cached_input = price.input if price.cached_input is None else price.cached_input
    return (
        (prompt_tokens - cached_tokens) * _pico_per_token(price.input)
        + cached_tokens * _pico_per_token(cached_input)
        + completion_tokens * _pico_per_token(price.output)
    ) / _PICO


def worst_cost_usd(price: PriceConfig, request: Request) -> float:
    """The most that one call can cost: its prompt at the dearer price, and every token drawn that it may draw."""
    prompt = worst_prompt_tokens(request)
    return max(cost_usd(price, prompt, request.max_tokens, cached) for cached in (0, prompt))


def worst_prompt_tokens(request: Request) -> int:
    """An upper bound on a request's prompt tokens, without its tokenizer: a token covers at least one byte. A chat
    template adds its own, and shows a schema in a notation that may be longer."""
    turns = sum(len(message.content.encode()) + 16 for message in request.messages)
    return 128 + turns + len(request.prefill.encode()) + 16 + 2 * len(request.schema.encode())


def expected_prompt_tokens(request: Request) -> int:
    """A guess at a request's prompt tokens, without its tokenizer: four characters a token, and what a chat template
    adds to each turn."""
    characters = len(request.prefill) + len(request.schema)
    return characters // 4 + sum(len(message.content) // 4 + 8 for message in request.messages)


def _read(path: Path) -> _File:
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"judge.prices: {path} cannot be read ({error.strerror}); give a file of prices") from None
    except UnicodeDecodeError:
        raise UserError(f"judge.prices: {path} is not UTF-8 text; save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        raise UserError(f"judge.prices: {path}{where} is not YAML; write it like the shipped prices.yaml") from None
    try:
        return _File.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"judge.prices: {path}: {key}: {first['msg']}; write it like the shipped prices.yaml") from None


def _rows(file: _File, source: str) -> dict[tuple[str, str], Price]:
    return {
        (name.lower(), model): Price(price, source, host.batch)
        for name, host in file.hosts.items()
        for model, price in host.models.items()
    }


def _pico_per_token(dollars_per_million: float) -> int:
    return round(dollars_per_million * _PICO / _MICRO)
