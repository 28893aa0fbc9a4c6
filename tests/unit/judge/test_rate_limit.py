import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif_ray.judge.rate_limit import Lease, Limits, RateLimiter, Settlement

ME = "an actor"


def limiter(
    requests: float | None = None, tokens: float | None = None, concurrency: int = 10**6, ttl_s: float = 60.0
) -> RateLimiter:
    return RateLimiter(Limits(requests, tokens, concurrency), ttl_s, now=0.0)


def grants(of: RateLimiter, until: float, tokens: int = 1) -> list[float]:
    """When a caller that always asks as early as it may is given leases."""
    now, times = 0.0, []
    while now <= until:
        lease = of.acquire(tokens, ME, now)
        if lease is None:
            now += max(of.wait_s(now), 1e-9)
        else:
            times.append(now)
            of.settle(Settlement(lease, tokens))
    return times


def test_requests_are_spaced_evenly_from_the_first() -> None:
    """60 a minute at 99 % is one in 1.0101 s, given .05 s early: at 0, .9601, 1.9702, 2.9803."""
    assert grants(limiter(requests=60), 3.0) == pytest.approx([0, 0.96010, 1.97020, 2.98030], abs=1e-4)


def test_no_burst_at_the_start() -> None:
    """6,000 a minute is one in .0101 s; the .05 s of lead let 5 go at once, not 6,000."""
    of = limiter(requests=6_000)
    assert sum(of.acquire(1, ME, 0.0) is not None for _ in range(100)) == 5


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 600), st.integers(1, 50))
def test_never_more_than_the_quota_in_any_minute(per_minute: int, tokens: int) -> None:
    times = grants(limiter(requests=per_minute), 90.0)
    for first, start in enumerate(times):
        assert sum(1 for time in itertools.islice(times, first, None) if time < start + 60) <= per_minute


def test_nearly_all_of_the_quota_is_used() -> None:
    """600 a minute over two minutes: at least 98 % of 1,200."""
    assert len(grants(limiter(requests=600), 120.0)) >= 0.98 * 1_200


def test_tokens_are_paced_and_corrected() -> None:
    """6,000 tokens a minute at 99 %: 99 a second. A call charged 990 holds the next for 10 s less .05; it used 99
    only, so the wait is 1 s less .05."""
    of = limiter(tokens=6_000)
    lease = of.acquire(990, ME, 0.0)
    assert lease is not None
    assert of.wait_s(0.0) == pytest.approx(9.95)
    of.settle(Settlement(lease, 99))
    assert of.wait_s(0.0) == pytest.approx(0.95)


def test_an_unsent_request_returns_its_whole_permit() -> None:
    of = limiter(requests=60, tokens=6_000)
    lease = of.acquire(990, ME, 0.0)
    assert lease is not None
    of.settle(Settlement(lease, 0, sent=False))
    assert of.wait_s(0.0) == 0
    assert of.in_flight == 0


def test_concurrency_is_bounded_and_a_dead_holders_lease_expires() -> None:
    of = limiter(concurrency=2, ttl_s=10.0)
    assert of.acquire(1, ME, 0.0) is not None
    assert of.acquire(1, ME, 4.0) is not None
    assert of.acquire(1, ME, 5.0) is None
    assert of.wait_s(5.0) == pytest.approx(5.0)
    assert of.acquire(1, ME, 10.0) is not None
    assert of.in_flight == 2


def test_a_holder_known_to_be_dead_gives_all_back_at_once() -> None:
    of = limiter(concurrency=3)
    for holder in ("dead", "alive", "dead"):
        assert of.acquire(1, holder, 0.0) is not None
    of.release("dead")
    assert of.in_flight == 1
    assert of.acquire(1, "alive", 0.0) is not None


def test_settling_after_expiry_frees_nothing_twice() -> None:
    of = limiter(concurrency=1, ttl_s=10.0)
    late = of.acquire(1, ME, 0.0)
    assert late is not None
    assert of.acquire(1, ME, 11.0) is not None
    of.settle(Settlement(late, 1))
    assert of.in_flight == 1


def test_a_refusal_pauses_everyone_and_a_shorter_one_does_not_cut_it() -> None:
    of = limiter()
    of.pause(5.0, now=0.0)
    of.pause(1.0, now=0.0)
    assert of.throttled(0.0)
    assert of.acquire(1, ME, 4.9) is None
    assert isinstance(of.acquire(1, ME, 5.0), Lease)
