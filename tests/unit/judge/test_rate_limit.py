import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quota_simulation import QuotaSimulation

from rlaif_ray.judge.rate_headers import SILENT, RateHeaders, Told
from rlaif_ray.judge.rate_limit import (
    LOOKAHEAD_S,
    REUSE_S,
    Ending,
    Grant,
    Lease,
    Limits,
    Priority,
    RateLimiter,
    Settlement,
    TooLarge,
)
from rlaif_ray.judge.token_estimate import CallSize, Usage

ME = "an actor"
SMALL = CallSize(0, 1)


def limiter(
    requests: float | None = None,
    tokens: float | None = None,
    concurrency: int = 10**6,
    ttl_s: float = 60.0,
    caution_s: float = 0.0,
    first_id: int = 0,
) -> RateLimiter:
    return RateLimiter(Limits(requests, tokens, concurrency), ttl_s, 0.0, caution_s=caution_s, first_id=first_id)


def taught(of: RateLimiter, tokens_per_byte: float = 0.25) -> RateLimiter:
    """With the sizes of calls known so well that guesses are right to 1/256."""
    for number in range(256):
        lease = Lease(-number - 1, CallSize(10_000, 1), 10**9)
        of.settle(Settlement(lease, Ending.REPLIED, Usage(round(10_000 * tokens_per_byte), 1)), 0.0)
    return of


def asked(of: RateLimiter, now: float, *sizes: CallSize, holder: str = ME, priority: Priority = Priority.BULK) -> int:
    return of.ask(holder, priority, sizes or [SMALL])


def take(of: RateLimiter, now: float, *sizes: CallSize, holder: str = ME) -> list[Lease]:
    """The leases that a first ask gets at once."""
    ticket = asked(of, now, *sizes, holder=holder)
    return leases(dict(of.serve(now))[ticket])


def leases(grants: list[Grant]) -> list[Lease]:
    assert all(isinstance(grant, Lease) for grant in grants)
    return [grant for grant in grants if isinstance(grant, Lease)]


def moments(of: RateLimiter, until: float, size: CallSize = SMALL, start: float = 0.0) -> list[float]:
    """When a caller that always asks for more may send. Its calls use what they are charged, and end at once."""
    now, times = start, list[float]()
    ticket = asked(of, now, *[size] * 16)
    while now <= until:
        served = dict(of.serve(now))
        for lease in leases(served.get(ticket, [])):
            times.append(now + lease.delay_s)
            of.settle(Settlement(lease, Ending.REPLIED), now)
        if served:
            ticket = asked(of, now, *[size] * 16)
        now += max(of.wait_s(now), 1e-6)
    return times


def test_requests_are_spaced_evenly_from_the_first() -> None:
    """60 a minute at 99 % is one in 1.0101 s: at 0, 1.0101, 2.0202, 3.0303."""
    assert moments(limiter(requests=60), 3.0) == pytest.approx([0, 1.0101, 2.0202, 3.0303], abs=1e-4)


def test_a_fast_quota_is_served_in_batches_that_are_still_spaced() -> None:
    """6,000 a minute is one in .0101 s, and leases are given up to .2 s ahead: 20, for 0, .0101, ..., .1919."""
    given = take(limiter(requests=6_000), 0.0, *[SMALL] * 50)
    assert [lease.delay_s for lease in given] == pytest.approx([0.0101 * number for number in range(20)], abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 600))
def test_never_more_than_the_quota_in_any_minute(per_minute: int) -> None:
    times = moments(limiter(requests=per_minute), 90.0)
    for first, start in enumerate(times):
        assert sum(1 for time in itertools.islice(times, first, None) if time < start + 60) <= per_minute


def test_nearly_all_of_the_quota_is_used() -> None:
    """600 a minute over two minutes: at least 98.5 % of 1,200."""
    assert len(moments(limiter(requests=600), 120.0)) >= 0.985 * 1_200


def test_tokens_are_charged_by_the_guess_and_corrected_by_the_reply() -> None:
    """6,000 tokens a minute at 99 %: 99 a second. Nothing is known, so 1,980 bytes are charged 990 and the one token of
    the answer: 991, which holds the next for 10.01 s. It used 99 only, so the next is due after 1 s."""
    of = limiter(tokens=6_000)
    (lease,) = take(of, 0.0, CallSize(1_980, 1))
    assert lease.tokens == 991
    asked(of, 0.0)
    assert of.wait_s(0.0) == pytest.approx(991 / 99 - LOOKAHEAD_S / 2)
    of.settle(Settlement(lease, Ending.REPLIED, Usage(98, 1)), 0.5)
    assert of.wait_s(0.5) == pytest.approx(0.5 - LOOKAHEAD_S / 2)


def test_an_unsent_request_returns_its_whole_permit() -> None:
    of = limiter(requests=60, tokens=6_000)
    (lease,) = take(of, 0.0, CallSize(1_980, 1))
    of.settle(Settlement(lease, Ending.UNSENT), 0.0)
    assert of.in_flight == 0
    assert len(take(of, 0.0)) == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(2_000, 60_000))
def test_the_tokens_of_no_minute_exceed_the_quota_however_large_the_calls(seed: int, per_minute: int) -> None:
    """Calls from nothing up to a whole minute's worth, that use what they were charged or less, half a second later."""
    draw = random.Random(seed)
    of, now = taught(limiter(tokens=per_minute)), 0.0
    used: list[tuple[float, int]] = []
    out: list[tuple[float, Settlement]] = []
    ticket = None
    while now < 150:
        for _, settlement in [entry for entry in out if entry[0] <= now]:
            of.settle(settlement, now)
        out = [entry for entry in out if entry[0] > now]
        if ticket is None:
            ticket = asked(of, now, CallSize(draw.choice((0, 100, 2 * per_minute, 3 * per_minute)), 1))
        for lease in leases(dict(of.serve(now)).get(ticket, [])):
            prompt = draw.randint(0, lease.tokens - 1)
            used.append((now + lease.delay_s, prompt + 1))
            out.append((now + 0.5, Settlement(lease, Ending.REPLIED, Usage(prompt, 1))))
            ticket = None
        now += 0.05
    assert len(used) > 2
    for start, _ in used:
        assert sum(tokens for time, tokens in used if start <= time < start + 60) <= per_minute


def test_a_call_larger_than_a_minutes_tokens_is_told_so_and_bars_nobody() -> None:
    """10,000 bytes are 2,500 tokens as learned, where 2,000 are allowed."""
    of = taught(limiter(tokens=2_000))
    ticket = asked(of, 0.0, CallSize(10_000, 1), SMALL)
    ((served, grants),) = of.serve(0.0)
    assert served == ticket
    assert grants[0] == TooLarge(CallSize(10_000, 1), 2_000)
    assert isinstance(grants[1], Lease)


def test_a_call_whose_guess_alone_is_too_large_is_sent() -> None:
    """10,000 bytes may be 5,001 tokens, but may also be 1,251: it is charged the whole minute, and may go."""
    (lease,) = take(limiter(tokens=2_000), 0.0, CallSize(10_000, 1))
    assert lease.tokens == 2_000


def test_a_reply_that_claims_nonsense_bars_the_way_for_a_minute_at_most() -> None:
    of = limiter(tokens=6_000)
    (lease,) = take(of, 0.0)
    of.settle(Settlement(lease, Ending.REPLIED, Usage(10**9, 10**9)), 0.0)
    asked(of, 0.0)
    assert of.wait_s(0.0) <= 60 / 0.99


def test_concurrency_is_bounded_and_a_dead_holders_lease_expires() -> None:
    of = limiter(concurrency=2, ttl_s=10.0)
    assert len(take(of, 0.0)) == 1
    assert len(take(of, 4.0)) == 1
    ticket = asked(of, 5.0)
    assert of.serve(5.0) == []
    # The first lease's ten seconds, and what it may have waited and been used again before.
    expiry = 10.0 + LOOKAHEAD_S + REUSE_S
    assert of.wait_s(5.0) == pytest.approx(expiry - 5.0)
    assert [served for served, _ in of.serve(expiry)] == [ticket]
    assert of.in_flight == 2


def test_a_holder_known_to_be_dead_gives_all_back_and_asks_no_more() -> None:
    of = limiter(concurrency=3)
    for holder in ("dead", "alive", "dead"):
        take(of, 0.0, holder=holder)
    ticket = asked(of, 0.0, holder="dead")
    assert of.release("dead") == [ticket]
    assert of.in_flight == 1
    assert len(take(of, 0.0, holder="alive")) == 1


def test_settling_after_expiry_frees_nothing_twice_and_returns_no_tokens() -> None:
    """99 tokens a second. The late call was charged 991 for 10.01 s; nobody knows any more, so its 1 token used gives
    nothing back."""
    of = limiter(tokens=6_000, concurrency=1, ttl_s=1.0)
    (late,) = take(of, 0.0, CallSize(1_980, 1))
    ticket = asked(of, 5.0)
    assert of.serve(5.0) == []
    of.settle(Settlement(late, Ending.REPLIED, Usage(1, 0)), 5.0)
    assert of.serve(10.0 - LOOKAHEAD_S) == []
    assert [served for served, _ in of.serve(10.0)] == [ticket]
    assert of.in_flight == 1


def test_holders_take_turns() -> None:
    """Ten slots; one holder wants a hundred, two want two: all of theirs, and the rest for the first."""
    of = limiter(concurrency=10)
    tickets = [asked(of, 0.0, *[SMALL] * wanted, holder=str(wanted)) for wanted in (100, 2, 2)]
    served = dict(of.serve(0.0))
    assert [len(served[ticket]) for ticket in tickets] == [6, 2, 2]


def test_asking_often_gains_no_turns() -> None:
    """Ten slots for two holders: five each, though one asked three times as often."""
    of = limiter(concurrency=10)
    often = [asked(of, 0.0, *[SMALL] * 4, holder="often") for _ in range(3)]
    once = asked(of, 0.0, *[SMALL] * 12, holder="once")
    served = dict(of.serve(0.0))
    assert len(served[once]) == 5
    assert [len(served.get(ticket, [])) for ticket in often] == [4, 1, 0]


def test_who_was_served_goes_to_the_end_of_the_queue() -> None:
    """One lease a second, and three who want it: each gets every third."""
    of, now = limiter(requests=60), 0.0
    holders = {asked(of, now, holder=name): name for name in "abc"}
    order = ""
    while len(order) < 9:
        now += of.wait_s(now)
        for ticket, grants in of.serve(now):
            order += holders.pop(ticket) * len(grants)
            holders[asked(of, now, holder=order[-1])] = order[-1]
    assert order == "abcabcabc"


def test_the_more_urgent_is_served_first() -> None:
    of = limiter(concurrency=1)
    bulk, evaluation, live = (asked(of, 0.0, priority=priority) for priority in reversed(Priority))
    order = []
    for _ in range(3):
        ((ticket, (lease,)),) = of.serve(0.0)
        assert isinstance(lease, Lease)
        of.settle(Settlement(lease, Ending.REPLIED), 0.0)
        order.append(ticket)
    assert order == [live, evaluation, bulk]


def test_slots_are_used_again_only_where_no_rate_is_known() -> None:
    assert take(limiter(), 0.0)[0].reusable_s == REUSE_S
    assert take(limiter(requests=60), 0.0)[0].reusable_s == 0
    of = limiter()
    (lease,) = take(of, 0.0)
    of.settle(Settlement(lease, Ending.REPLIED, headers=RateHeaders(requests=Told(limit=60))), 0.0)
    assert take(of, 0.0)[0].reusable_s == 0


def due_in(of: RateLimiter, now: float) -> float:
    """Seconds until the next call may be sent."""
    ticket = asked(of, now, holder="the next")
    wait = of.wait_s(now) + 1e-9
    (lease,) = leases(dict(of.serve(now + wait))[ticket])
    of.release("the next")
    return wait + lease.delay_s


def refuse(of: RateLimiter, now: float, headers: RateHeaders = SILENT) -> None:
    """Send the next call as soon as may be, and have it refused."""
    ticket = asked(of, now)
    while not (served := dict(of.serve(now))):
        now += max(of.wait_s(now), 1e-3)
    (lease,) = leases(served[ticket])
    of.settle(Settlement(lease, Ending.REFUSED, headers=headers), now + lease.delay_s)


def test_everyone_waits_for_as_long_as_a_refusal_asks() -> None:
    of = limiter()
    first, second = take(of, 0.0, SMALL, SMALL)
    of.settle(Settlement(first, Ending.REFUSED, headers=RateHeaders(retry_after_s=5.0)), 0.0)
    of.settle(Settlement(second, Ending.REFUSED, headers=RateHeaders(retry_after_s=1.0)), 0.0)
    assert of.throttled(0.0)
    assert due_in(of, 0.0) == pytest.approx(5.0)


def test_refusals_in_a_row_wait_longer_and_a_reply_ends_the_row() -> None:
    """Without a header: .05 s, .1 s, .2 s, .4 s; after a reply .05 s again."""
    of, now, waits = limiter(), 0.0, []
    for answered in (False, False, False, False, True, False):
        (lease,) = take(of, now)
        if answered:
            of.settle(Settlement(lease, Ending.REPLIED), now)
            continue
        of.settle(Settlement(lease, Ending.REFUSED), now)
        waits.append(due_in(of, now))
        now += 60.0
    assert waits == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.05])


def test_requests_that_were_under_way_together_are_one_refusal() -> None:
    of = limiter(requests=60_000)
    for lease in take(of, 0.0, *[SMALL] * 50):
        of.settle(Settlement(lease, Ending.REFUSED), 0.1)
    assert of.margin(0.1) == pytest.approx(0.03)


def test_an_unexplained_refusal_widens_the_margin_which_narrows_slowly() -> None:
    """From .01 to .03, and back in the 600 s that .02 take; never beyond .1."""
    of = limiter(requests=60)
    refuse(of, 0.0)
    assert of.margin(0.0) == pytest.approx(0.03)
    assert of.margin(300.0) == pytest.approx(0.02)
    assert of.margin(700.0) == pytest.approx(0.01)
    for number in range(20):
        refuse(of, 100.0 * number)
    assert of.margin(2_000.0) <= 0.1
    times = moments(of, 2_060.0, start=2_000.0)
    assert times[-1] - times[-2] == pytest.approx(1 / (1 - of.margin(2_060.0)), rel=0.01)


def test_a_smaller_limit_that_the_endpoint_tells_is_adopted_and_a_larger_one_is_not() -> None:
    """Configured 60 a minute, told 30: one in 2.02 s. Told 600: one in 1.01 s again."""
    of = limiter(requests=60)
    for now, told, spacing in ((0.0, 30.0, 2.0202), (100.0, 600.0, 1.0101)):
        (lease,) = take(of, now)
        of.settle(Settlement(lease, Ending.REPLIED, headers=RateHeaders(requests=Told(limit=told))), now)
        times = moments(of, now + 10, start=now)
        of.release(ME)
        assert times[-1] - times[-2] == pytest.approx(spacing, abs=1e-3)


def test_a_smaller_limit_explains_a_refusal() -> None:
    of = limiter(requests=60)
    refuse(of, 0.0, RateHeaders(requests=Told(limit=30, remaining=0, reset_s=2.0)))
    assert of.margin(0.0) == 0.01


def test_a_spent_rate_is_waited_for_from_when_the_request_was_sent() -> None:
    """Sent at 0 and answered at 3, it says that nothing is left for 5 s: until 5, and not until 8."""
    of = limiter(requests=600)
    (lease,) = take(of, 0.0)
    spent = RateHeaders(requests=Told(limit=600, remaining=0, reset_s=5.0))
    of.settle(Settlement(lease, Ending.REPLIED, headers=spent), 3.0)
    assert due_in(of, 3.0) == pytest.approx(2.0)


def test_where_no_rate_is_known_refusals_in_a_row_shrink_what_is_in_flight_for_a_while() -> None:
    """Of 64: after three refusals in a row, one call at a time; the number doubles in 30 s, so after 200 s more all are
    allowed again."""
    of, now = limiter(concurrency=64), 0.0
    for _ in range(3):
        refuse(of, now)
        now += 1.0
    (lease,) = take(of, now, SMALL, SMALL)
    of.settle(Settlement(lease, Ending.UNSENT), now)
    assert len(take(of, now + 200.0, *[SMALL] * 99)) == 64


def test_refusals_among_many_replies_shrink_nothing_and_pause_no_longer() -> None:
    """One refusal in twenty, nineteen replies in between that used leases again: each pause is the first, 50 ms."""
    of, now = limiter(concurrency=64), 0.0
    for _ in range(40):
        (lease,) = take(of, now, SMALL)
        of.settle(Settlement(lease, Ending.REFUSED, untold_replies=19), now + 0.05)
        assert due_in(of, now + 0.05) == pytest.approx(0.05)
        now += 1.0
    assert len(take(of, now, *[SMALL] * 99)) == 64


def test_an_endpoint_that_refuses_most_of_what_is_in_flight_gets_less() -> None:
    """It takes 8 at a time: of 64, 56 are refused, then fewer, until less than a quarter is or nearly so."""
    of, now, refused = limiter(concurrency=64), 0.0, 64
    for _ in range(12):
        leases = take(of, now, *[SMALL] * 64)
        refused = max(0, len(leases) - 8)
        for number, lease in enumerate(leases):
            of.settle(Settlement(lease, Ending.REFUSED if number < refused else Ending.REPLIED), now + 0.05)
        now += 1.0
        now += due_in(of, now)
    assert refused <= 5


def test_the_heir_of_a_limiter_waits_and_counts_what_is_out() -> None:
    before = limiter(concurrency=3)
    held = take(before, 0.0, SMALL, SMALL)
    of = limiter(concurrency=3, caution_s=1.0, first_id=1_000)
    of.adopt(ME, held, 0.1)
    ticket = asked(of, 0.2, SMALL, SMALL)
    assert of.serve(1.0 - LOOKAHEAD_S) == []
    ((served, grants),) = of.serve(1.0)
    assert (served, len(grants)) == (ticket, 1)
    of.settle(Settlement(held[0], Ending.REPLIED), 1.1)
    assert len(take(of, 1.2)) == 1


def test_an_heir_gives_nothing_back_for_leases_that_it_did_not_charge() -> None:
    of = limiter(tokens=6_000, first_id=1_000)
    old = Lease(1, CallSize(1_980, 1), 991)
    of.adopt(ME, [old], 0.0)
    of.settle(Settlement(old, Ending.REPLIED, Usage(1, 0)), 0.0)
    times = moments(of, 60.0, CallSize(0, 99))
    assert sum(1 for time in times if time < 60) <= 60


@pytest.mark.parametrize("callers", [1, 4, 16])
@pytest.mark.parametrize("policy", ["bucket-1s", "bucket-60s", "fixed-60s", "sliding-60s"])
@pytest.mark.parametrize("limits", [Limits(600, None, 400), Limits(None, 300_000, 400)], ids=["requests", "tokens"])
def test_two_minutes_against_a_strict_server(limits: Limits, policy: str, callers: int) -> None:
    """98 % of what is permitted, and no refusal. A long call is 0.7 % of a minute's tokens."""
    admitted = QuotaSimulation(policy, limits, callers, seed=callers).run(120.0)
    assert admitted.refusals == ()
    used = admitted.requests if limits.tokens_per_minute is None else admitted.tokens
    permitted = (limits.requests_per_minute or limits.tokens_per_minute or math.nan) / 60 * admitted.seconds
    assert used >= 0.98 * permitted


def test_seconds_counted_one_by_one_are_learned_from_refusals() -> None:
    """Messages of up to 30 ms jitter put eleven requests into some second that allows ten; within few refusals the
    margin is so wide that it does not happen any more, and 94 % are used."""
    admitted = QuotaSimulation("window-1s", Limits(6_000, None, 400), 4, seed=0).run(300.0)
    assert admitted.requests >= 0.94 * 100 * admitted.seconds
    assert len(admitted.refusals) < 10
