from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.config import EndpointConfig, PriceConfig, UserError
from rlaif_ray.judge.prices import (
    cost_usd,
    expected_prompt_tokens,
    load_prices,
    price_of,
    worst_cost_usd,
    worst_prompt_tokens,
)
from rlaif_ray.judge.request import Form, Request
from rlaif_ray.records import Message

OPENAI = "https://api.openai.com/v1"


def endpoint(
    model: str = "gpt-4o-mini", base_url: str | None = OPENAI, price: PriceConfig | None = None
) -> EndpointConfig:
    return EndpointConfig(model=model, base_url=base_url, price=price)


def request(text: str, max_tokens: int = 1) -> Request:
    return Request(messages=(Message("user", text),), max_tokens=max_tokens)


def test_a_cost_is_exact() -> None:
    """1,000 tokens at $.15 and one at $.60 per million: $.00015 + $.0000006."""
    assert cost_usd(PriceConfig(input=0.15, output=0.6), 1_000, 1) == 0.0001506


def test_cached_tokens_have_their_own_price() -> None:
    """400 at $2, 600 of the cache at $.5 and 10 at $8 per million: 800 + 300 + 80 microdollars."""
    price = PriceConfig(input=2, cached_input=0.5, output=8)
    assert cost_usd(price, 1_000, 10, cached_tokens=600) == 0.00118
    assert cost_usd(PriceConfig(input=2, output=8), 1_000, 10, cached_tokens=600) == 0.00208


@given(st.text(), st.sampled_from(["", '{"type": "object"}']), st.text(max_size=9), st.integers(1, 500))
def test_nothing_costs_more_than_the_worst(text: str, schema: str, prefill: str, max_tokens: int) -> None:
    """A token for every byte that is sent, and every token drawn."""
    asked = Request((Message("user", text),), max_tokens, form=Form.SCHEMA, schema=schema, prefill=prefill)
    price = PriceConfig(input=3, cached_input=0.3, output=15)
    most = len((text + schema + prefill).encode())
    assert worst_prompt_tokens(asked) > most
    assert worst_prompt_tokens(asked) > expected_prompt_tokens(asked)
    assert worst_cost_usd(price, asked) > cost_usd(price, most, max_tokens)


def test_a_dear_cache_is_in_the_worst_case() -> None:
    price = PriceConfig(input=1, cached_input=5, output=0)
    assert worst_cost_usd(price, request("Which?")) == worst_cost_usd(PriceConfig(input=5, output=0), request("Which?"))


def test_the_worst_case_grows_with_what_may_be_drawn() -> None:
    price = PriceConfig(input=0, output=10)
    assert worst_cost_usd(price, request("", max_tokens=512)) == pytest.approx(512 * 10e-6)


def test_the_expected_prompt() -> None:
    """A system turn of 40 characters and a user's of 400, 8 tokens more for each, and 80 of schema and prefill."""
    messages = (Message("system", "s" * 40), Message("user", "u" * 400))
    asked = Request(messages, max_tokens=99, form=Form.SCHEMA, schema="{" * 72, prefill="Verdict:")
    assert expected_prompt_tokens(asked) == 10 + 8 + 100 + 8 + 20


def test_the_shipped_table_is_dated_and_whole() -> None:
    table = load_prices()
    assert len({price.source for price in table.values()}) == 1
    for price in table.values():
        usd = price.usd_per_million
        assert 0 < usd.input < usd.output
        assert usd.cached_input is None or usd.cached_input < usd.input


def test_a_price_belongs_to_a_host_and_an_exact_name() -> None:
    table = load_prices()
    price = price_of(endpoint(), table)
    assert price is not None
    assert price.usd_per_million == PriceConfig(input=0.15, cached_input=0.075, output=0.6)
    assert price_of(endpoint(base_url="https://API.openai.com:443/v1/"), table) == price
    assert price_of(endpoint("gpt-4o-mini-finetuned"), table) is None
    assert price_of(endpoint(base_url="https://elsewhere.example/v1"), table) is None


def test_a_local_labeler_has_no_price() -> None:
    assert price_of(endpoint(base_url=None), load_prices()) is None


def test_the_configs_own_price_wins() -> None:
    own = PriceConfig(input=9, output=9)
    price = price_of(endpoint(price=own), load_prices())
    assert price is not None
    assert (price.usd_per_million, price.source) == (own, "config")


def test_batches_cost_a_share_without_a_discount_on_cached_tokens() -> None:
    """Half of $.15 and of $.60."""
    price = price_of(endpoint(), load_prices())
    assert price is not None
    assert price.in_batches == PriceConfig(input=0.075, output=0.3)


def test_a_users_file_adds_and_replaces(tmp_path: Path) -> None:
    file = tmp_path / "ours.yaml"
    file.write_text(
        "version: spring\n"
        "hosts:\n"
        "  api.openai.com: {models: {gpt-4o-mini: {input: 1, output: 2}}}\n"
        "  judge.example: {models: {judge-1: {input: 3, output: 4}}}\n"
    )
    table = load_prices(file)
    for model, base_url, usd in (
        ("gpt-4o-mini", OPENAI, PriceConfig(input=1, output=2)),
        ("judge-1", "https://judge.example/v1", PriceConfig(input=3, output=4)),
    ):
        price = price_of(endpoint(model, base_url), table)
        assert price is not None
        assert price.usd_per_million == usd
        assert price.source.startswith("ours.yaml spring")
    kept = price_of(endpoint("gpt-4.1"), table)
    assert kept is not None
    assert kept.source == price_of(endpoint("gpt-4.1"), load_prices()).source


def test_an_edited_file_is_another_source(tmp_path: Path) -> None:
    file = tmp_path / "ours.yaml"
    sources = set()
    for dollars in (1, 2):
        file.write_text(f"version: v\nhosts: {{h: {{models: {{m: {{input: {dollars}, output: 3}}}}}}}}")
        sources.add(load_prices(file)["h", "m"].source)
    assert len(sources) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("version: [", r"line 1 is not YAML"),
        ("hosts: {}", r"version"),
        ("version: v\nhosts: {h: {models: {m: {input: -1, output: 1}}}}", r"hosts\.h\.models\.m\.input"),
        ("version: v\nhosts: {h: {models: {m: {input: 1}}}}", r"hosts\.h\.models\.m\.output"),
        ("version: v\nhosts: {h: {models: {m: {inptu: 1, input: 1, output: 1}}}}", r"hosts\.h\.models\.m\.inptu"),
        ("[]", "the file"),
        (b"\xff\xfe", "UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_file_is_named_with_its_key(tmp_path: Path, content: str | bytes | None, said: str) -> None:
    file = tmp_path / "ours.yaml"
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=rf"judge\.prices: \S*ours\.yaml.*{said}"):
        load_prices(file)
