import dataclasses
import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif_ray.config import PriceConfig, UserError
from rlaif_ray.judge.ledger import (
    Intent,
    Ledger,
    Receipt,
    Reply,
    Sampling,
    call_key,
    cost_usd,
    local_endpoint,
    worst_prompt_tokens,
)
from rlaif_ray.records import Message

REPLY = Reply('{"choices": []}', prompt_tokens=10, completion_tokens=1, cost_usd=0.002, latency_s=0.5, created_at=7.0)
MESSAGES = (Message("user", "Which?"),)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    opened = Ledger(path, budget_usd=None)
    yield opened
    opened.close()


def intent(key: str = "key", worst_usd: float = 0.01) -> Intent:
    return Intent(key, "collect", worst_usd)


def test_the_key_is_the_hash_of_canonical_json() -> None:
    """Written out by hand, sorted by name and without spaces."""
    text = '{"endpoint":"http://x/v1","messages":[["user","Which?"]],"model":"m","sampling":[0.0,1,20]}'
    assert call_key("m", "http://x/v1", MESSAGES, Sampling()) == hashlib.sha256(text.encode()).hexdigest()


def test_the_key_changes_with_every_part() -> None:
    keys = {
        call_key("m", "e", MESSAGES, Sampling()),
        call_key("n", "e", MESSAGES, Sampling()),
        call_key("m", "f", MESSAGES, Sampling()),
        call_key("m", "e", (Message("system", "Which?"),), Sampling()),
        call_key("m", "e", (*MESSAGES, *MESSAGES), Sampling()),
        call_key("m", "e", MESSAGES, Sampling(temperature=1.0)),
    }
    assert len(keys) == 6


def test_a_reply_is_there_after_reopening(path: Path) -> None:
    first = Ledger(path, None)
    (attempt,) = first.intend([intent()], now=1.0)
    first.record([Receipt("key", "model", attempt, REPLY)])
    first.close()
    second = Ledger(path, None)
    assert second.lookup(["key", "other"]) == {"key": REPLY}
    assert second.totals().ambiguous == 0
    second.close()


def test_an_intent_without_a_reply_is_ambiguous_at_its_worst_after_reopening(path: Path) -> None:
    first = Ledger(path, None)
    first.intend([intent("a", 0.01), intent("b", 0.02)], now=1.0)
    assert first.totals().reserved_usd == pytest.approx(0.03)
    first.close()
    second = Ledger(path, None)
    totals = second.totals()
    assert (totals.ambiguous, totals.reserved_usd) == (2, 0)
    assert totals.spent_usd == pytest.approx(0.03)
    second.close()


def test_a_late_reply_settles_what_was_ambiguous(path: Path) -> None:
    first = Ledger(path, None)
    (attempt,) = first.intend([intent()], now=1.0)
    first.close()
    second = Ledger(path, None)
    second.record([Receipt("key", "model", attempt, REPLY)])
    totals = second.totals()
    assert (totals.replies, totals.ambiguous, totals.spent_usd) == (1, 0, pytest.approx(0.002))
    second.close()


def test_an_attempt_anew_makes_the_lost_one_ambiguous(ledger: Ledger) -> None:
    ledger.intend([intent()], now=1.0)
    (attempt,) = ledger.intend([intent()], now=2.0)
    ledger.record([Receipt("key", "model", attempt, REPLY)])
    totals = ledger.totals()
    assert (totals.replies, totals.ambiguous, totals.reserved_usd) == (1, 1, 0)
    assert totals.spent_usd == pytest.approx(0.012)  # .002 known, .01 at its worst


def test_a_refusal_is_free_and_a_cut_connection_is_not(ledger: Ledger) -> None:
    attempts = ledger.intend([intent("a"), intent("b")], now=1.0)
    assert None not in attempts
    ledger.fail([attempts[0] or 0], maybe_billed=False)
    ledger.fail([attempts[1] or 0], maybe_billed=True)
    totals = ledger.totals()
    assert (totals.ambiguous, totals.reserved_usd) == (1, 0)
    assert totals.spent_usd == pytest.approx(0.01)


def test_the_first_reply_stays_and_both_are_paid_for(ledger: Ledger) -> None:
    for text in ("first", "second"):
        (attempt,) = ledger.intend([intent()], now=1.0)
        ledger.record([Receipt("key", "model", attempt, dataclasses.replace(REPLY, text=text))])
    assert ledger.lookup(["key"])["key"].text == "first"
    assert ledger.totals().spent_usd == pytest.approx(0.004)


def test_a_local_labelers_reply_costs_nothing(ledger: Ledger) -> None:
    ledger.record([Receipt("key", "model", None, dataclasses.replace(REPLY, cost_usd=None))])
    assert ledger.lookup(["key"])["key"].cost_usd is None
    assert ledger.totals().spent_usd == 0


def test_the_budget_admits_to_the_last_cent_and_no_further(path: Path) -> None:
    """.1 three times is .3 exactly, as money is counted in whole picodollars."""
    ledger = Ledger(path, budget_usd=0.3)
    attempts = ledger.intend([intent(str(number), 0.1) for number in range(4)], now=1.0)
    assert [attempt is not None for attempt in attempts] == [True, True, True, False]
    assert ledger.affordable([0.0, 0.01]) == [True, False]
    ledger.close()


def test_the_budget_holds_over_resumptions(path: Path) -> None:
    first = Ledger(path, budget_usd=0.3)
    (attempt,) = first.intend([intent("a", 0.2)], now=1.0)
    first.record([Receipt("a", "model", attempt, dataclasses.replace(REPLY, cost_usd=0.15))])
    first.close()
    second = Ledger(path, budget_usd=0.3)
    assert second.affordable([0.15, 0.16]) == [True, False]
    second.close()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["answer", "refuse", "cut", "leave", "reopen"]), st.integers(1, 30)), max_size=25
    )
)
def test_no_sequence_of_events_breaks_the_budget(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, int]]
) -> None:
    """Costs in cents, against one dollar; an answer costs at most its worst."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    ledger = Ledger(path, budget_usd=1.0)
    for number, (event, cents) in enumerate(events):
        if event == "reopen":
            ledger.close()
            ledger = Ledger(path, budget_usd=1.0)
            continue
        (attempt,) = ledger.intend([intent(str(number), cents / 100)], now=1.0)
        if attempt is not None and event == "answer":
            paid = dataclasses.replace(REPLY, cost_usd=cents / 200)
            ledger.record([Receipt(str(number), "model", attempt, paid)])
        elif attempt is not None and event in ("refuse", "cut"):
            ledger.fail([attempt], maybe_billed=event == "cut")
        totals = ledger.totals()
        assert totals.spent_usd + totals.reserved_usd <= 1.0
    ledger.close()


def test_a_failed_write_leaves_nothing_behind(ledger: Ledger) -> None:
    (attempt,) = ledger.intend([intent()], now=1.0)
    with pytest.raises(KeyError):
        ledger.record([Receipt("key", "model", attempt, REPLY), Receipt("other", "model", 999, REPLY)])
    totals = ledger.totals()
    assert (totals.replies, totals.spent_usd, totals.reserved_usd) == (0, 0, pytest.approx(0.01))


def test_a_ledger_in_use_is_refused_in_one_sentence(ledger: Ledger, path: Path) -> None:
    with pytest.raises(UserError, match="another run has this ledger open"):
        Ledger(path, None)


def test_a_ledger_that_is_let_go_of_in_time_is_opened(path: Path) -> None:
    first = Ledger(path, None)
    threading.Timer(0.2, first.close).start()
    Ledger(path, None, lock_patience_s=10.0).close()


def test_anyone_may_read_it_meanwhile(ledger: Ledger, path: Path) -> None:
    ledger.record([Receipt("key", "model", None, REPLY)])
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    assert reader.execute("SELECT text FROM replies").fetchall() == [(REPLY.text,)]
    reader.close()


def test_costs() -> None:
    """1,000 tokens in at $0.15 and 1 out at $0.60 per million: .00015 + .0000006."""
    assert cost_usd(PriceConfig(input=0.15, output=0.6), 1_000, 1) == pytest.approx(0.0001506, abs=1e-15)


@given(st.text(max_size=200))
def test_the_worst_case_covers_a_token_a_byte(text: str) -> None:
    assert worst_prompt_tokens([Message("user", text)]) > len(text.encode())


def test_a_retrained_model_under_the_same_path_is_another_judge(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 3_000_000)
    before = local_endpoint(str(tmp_path))
    assert local_endpoint(str(tmp_path)) == before
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 2_999_999 + b"\1")
    assert local_endpoint(str(tmp_path)) != before
    assert local_endpoint("some/name") == "local"
