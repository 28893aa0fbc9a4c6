import dataclasses
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif_ray.config import UserError
from rlaif_ray.judge.ledger import (
    Account,
    Admission,
    Intent,
    Ledger,
    Loss,
    Receipt,
    Refusal,
    Verdict,
)
from rlaif_ray.judge.request import Reply

REPLY = Reply('{"choices": []}', prompt_tokens=10, completion_tokens=1, cost_usd=0.002, latency_s=0.5, created_at=7.0)
ACCOUNT = Account("run", None, ambiguous_bound=3, patience_s=60.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    opened = Ledger(path)
    yield opened
    opened.close()


def intent(key: str = "key", worst_usd: float = 0.01, holder: str = "worker") -> Intent:
    return Intent(key, "collect", holder, worst_usd, "table")


def bounded(usd: float, run: str = "run") -> Account:
    return dataclasses.replace(ACCOUNT, run=run, budget_usd=usd)


def send(ledger: Ledger, *intents: Intent, account: Account = ACCOUNT, now: float = 1.0) -> list[int]:
    """The attempts of intents that must all be admitted."""
    admissions = ledger.intend(intents, account, now)
    assert [admission.verdict for admission in admissions] == [Verdict.SEND] * len(intents)
    return [admission.attempt or 0 for admission in admissions]


def verdicts(ledger: Ledger, *intents: Intent, account: Account = ACCOUNT, now: float = 1.0) -> list[Verdict]:
    return [admission.verdict for admission in ledger.intend(intents, account, now)]


def test_a_reply_is_there_after_reopening(path: Path) -> None:
    first = Ledger(path)
    (attempt,) = send(first, intent())
    first.record([Receipt("key", "model", attempt, REPLY)])
    first.close()
    second = Ledger(path)
    assert second.lookup(["key", "other"]) == {"key": REPLY}
    assert second.totals("run").ambiguous == 0
    second.close()


def test_an_intent_without_a_reply_is_ambiguous_at_its_worst_after_reopening(path: Path) -> None:
    first = Ledger(path)
    send(first, intent("a", 0.01), intent("b", 0.02))
    assert first.totals("run").reserved_usd == pytest.approx(0.03)
    first.close()
    second = Ledger(path)
    totals = second.totals("run")
    assert (totals.ambiguous, totals.reserved_usd) == (2, 0)
    assert totals.spent_usd == pytest.approx(0.03)
    second.close()


def test_a_late_reply_settles_what_was_ambiguous(path: Path) -> None:
    first = Ledger(path)
    (attempt,) = send(first, intent())
    first.close()
    second = Ledger(path)
    second.record([Receipt("key", "model", attempt, REPLY)])
    totals = second.totals("run")
    assert (totals.replies, totals.ambiguous, totals.spent_usd) == (1, 0, pytest.approx(0.002))
    second.close()


def test_an_attempt_anew_makes_the_lost_one_ambiguous(ledger: Ledger) -> None:
    send(ledger, intent())
    (attempt,) = send(ledger, intent(), now=2.0)
    ledger.record([Receipt("key", "model", attempt, REPLY)])
    totals = ledger.totals("run")
    assert (totals.replies, totals.ambiguous, totals.reserved_usd) == (1, 1, 0)
    assert totals.spent_usd == pytest.approx(0.012)  # .002 known, .01 at its worst


def test_a_refusal_is_free_and_a_cut_connection_is_not(ledger: Ledger) -> None:
    free, cut = send(ledger, intent("a"), intent("b"))
    ledger.lose([Loss(free, "HTTP 503", maybe_billed=False), Loss(cut, "cut", maybe_billed=True)])
    (call,) = ledger.ambiguous()
    assert (call.key, call.reason, call.worst_usd) == ("b", "cut", 0.01)
    totals = ledger.totals("run")
    assert (totals.ambiguous, totals.reserved_usd) == (1, 0)
    assert totals.spent_usd == pytest.approx(0.01)


def test_the_first_reply_stays_and_both_are_paid_for(ledger: Ledger) -> None:
    """Both were sent before either was here: by the ledger's owner before and after it was restarted."""
    attempts = send(ledger, intent(), intent())
    for attempt, text in zip(attempts, ("first", "second"), strict=True):
        ledger.record([Receipt("key", "model", attempt, dataclasses.replace(REPLY, text=text))])
    assert ledger.lookup(["key"]) == {"key": dataclasses.replace(REPLY, text="first")}
    assert ledger.totals("run").spent_usd == pytest.approx(0.004)


def test_what_is_here_is_not_sent_again(ledger: Ledger) -> None:
    ledger.record([Receipt("key", "model", None, REPLY)])
    assert ledger.intend([intent()], ACCOUNT, 1.0) == [Admission(Verdict.ANSWERED)]


def test_a_call_under_way_elsewhere_is_waited_for(ledger: Ledger) -> None:
    """Until its caller has been silent for the patience of 60 s: then it counts as ambiguous."""
    send(ledger, intent(holder="other"), now=1.0)
    assert verdicts(ledger, intent(), now=60.9) == [Verdict.WAIT]
    assert verdicts(ledger, intent(), now=61.1) == [Verdict.SEND]
    assert ledger.totals("run").ambiguous == 1


def test_a_dead_callers_calls_are_ambiguous_at_once(ledger: Ledger) -> None:
    send(ledger, intent("a", holder="dead"), intent("b", holder="alive"))
    ledger.release("dead")
    assert [call.key for call in ledger.ambiguous()] == ["a"]
    assert verdicts(ledger, intent("a"), intent("b")) == [Verdict.SEND, Verdict.WAIT]


def test_a_dead_pools_calls_are_ambiguous_and_its_callers_named(ledger: Ledger) -> None:
    other = dataclasses.replace(ACCOUNT, run="other")
    send(ledger, intent("a", holder="one"), intent("b", holder="two"), intent("c", holder="one"))
    send(ledger, intent("d", holder="three"), account=other)
    assert ledger.abandon("run") == ["one", "two"]
    assert [call.key for call in ledger.ambiguous()] == ["a", "b", "c"]


def test_a_call_that_keeps_getting_lost_is_given_up(ledger: Ledger) -> None:
    for _ in range(ACCOUNT.ambiguous_bound):
        ledger.lose([Loss(send(ledger, intent())[0], "timed out", maybe_billed=True)])
    assert verdicts(ledger, intent()) == [Verdict.GIVEN_UP]


def test_what_a_batch_brought_is_paid_for_once(ledger: Ledger) -> None:
    for _ in range(2):
        ledger.buy(Receipt("key", "model", None, REPLY), "run", "table")
    totals = ledger.totals("run")
    assert (totals.calls, totals.spent_usd) == (1, pytest.approx(0.002))
    assert ledger.lookup(["key"]) == {"key": REPLY}


def test_a_refusal_is_kept_and_a_reply_takes_its_place(ledger: Ledger) -> None:
    (attempt,) = send(ledger, intent())
    ledger.record([Receipt("key", "model", attempt, Refusal("HTTP 400: too long"))])
    assert ledger.lookup(["key"]) == {"key": Refusal("HTTP 400: too long")}
    assert ledger.lookup(["key"], refusals=False) == {}
    assert ledger.totals("run").spent_usd == 0
    (attempt,) = send(ledger, intent())
    ledger.record([Receipt("key", "model", attempt, REPLY)])
    assert ledger.lookup(["key"]) == {"key": REPLY}


def test_a_local_labelers_reply_costs_nothing(ledger: Ledger) -> None:
    ledger.record([Receipt("key", "model", None, dataclasses.replace(REPLY, cost_usd=None))])
    assert ledger.lookup(["key"]) == {"key": dataclasses.replace(REPLY, cost_usd=None)}
    assert ledger.totals("run").spent_usd == 0


def test_the_budget_admits_to_the_last_cent_and_no_further(ledger: Ledger) -> None:
    """.1 three times is .3 exactly, as money is counted in whole picodollars. The fourth may yet find room, if one of
    the three costs less than it might; a call of .31 never can."""
    intents = [intent(str(number), 0.1) for number in range(4)]
    assert verdicts(ledger, *intents, intent("dear", 0.31), account=bounded(0.3)) == [
        *[Verdict.SEND] * 3,
        Verdict.WAIT,
        Verdict.OVER_BUDGET,
    ]


def test_money_that_comes_back_is_spent_on_those_who_wait(ledger: Ledger) -> None:
    """.2 of .3 is reserved, and .15 of it is spent in the end: .15 are left."""
    (attempt,) = send(ledger, intent("a", 0.2), account=bounded(0.3))
    assert verdicts(ledger, intent("b", 0.15), account=bounded(0.3)) == [Verdict.WAIT]
    ledger.record([Receipt("a", "model", attempt, dataclasses.replace(REPLY, cost_usd=0.15))])
    assert ledger.over_budget([0.15, 0.16], bounded(0.3)) == [False, True]
    assert verdicts(ledger, intent("b", 0.15), account=bounded(0.3)) == [Verdict.SEND]


def test_the_budget_holds_over_resumptions_and_for_its_run_alone(path: Path) -> None:
    first = Ledger(path)
    (attempt,) = send(first, intent("a", 0.2), account=bounded(0.3))
    first.record([Receipt("a", "model", attempt, dataclasses.replace(REPLY, cost_usd=0.15))])
    first.close()
    second = Ledger(path)
    assert second.over_budget([0.15, 0.16], bounded(0.3)) == [False, True]
    assert second.over_budget([0.3, 0.31], bounded(0.3, "another run")) == [False, True]
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
    ledger = Ledger(path)
    for number, (event, cents) in enumerate(events):
        if event == "reopen":
            ledger.close()
            ledger = Ledger(path)
            continue
        (admission,) = ledger.intend([intent(str(number), cents / 100)], bounded(1.0), 1.0)
        attempt = admission.attempt
        if attempt is not None and event == "answer":
            paid = dataclasses.replace(REPLY, cost_usd=cents / 200)
            ledger.record([Receipt(str(number), "model", attempt, paid)])
        elif attempt is not None and event in ("refuse", "cut"):
            ledger.lose([Loss(attempt, event, maybe_billed=event == "cut")])
        totals = ledger.totals("run")
        assert totals.spent_usd + totals.reserved_usd <= 1.0
    ledger.close()


def test_a_failed_write_leaves_nothing_behind(ledger: Ledger) -> None:
    (attempt,) = send(ledger, intent())
    with pytest.raises(KeyError):
        ledger.record([Receipt("key", "model", attempt, REPLY), Receipt("other", "model", 999, REPLY)])
    totals = ledger.totals("run")
    assert (totals.replies, totals.spent_usd, totals.reserved_usd) == (0, 0, pytest.approx(0.01))


def test_a_ledger_in_use_is_refused_in_one_sentence(ledger: Ledger, path: Path) -> None:
    with pytest.raises(UserError, match="another run has this ledger open"):
        Ledger(path)


def test_a_ledger_that_is_let_go_of_in_time_is_opened(path: Path) -> None:
    first = Ledger(path)
    threading.Timer(0.2, first.close).start()
    Ledger(path, lock_patience_s=10.0).close()


def test_anyone_may_read_it_meanwhile(ledger: Ledger, path: Path) -> None:
    ledger.record([Receipt("key", "model", None, REPLY)])
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    assert reader.execute("SELECT text FROM replies").fetchall() == [(REPLY.text,)]
    reader.close()


def test_a_file_that_is_no_ledger_is_refused_in_one_sentence(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("not a database, and long enough to be taken for one" * 100)
    with pytest.raises(UserError, match="is not a ledger"):
        Ledger(path)


def test_a_ledger_of_another_version_is_refused_in_one_sentence(path: Path) -> None:
    path.parent.mkdir()
    old = sqlite3.connect(path)
    old.execute("CREATE TABLE attempts (id INTEGER)")
    old.commit()
    old.close()
    with pytest.raises(UserError, match="version 0"):
        Ledger(path)
