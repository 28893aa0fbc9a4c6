import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.judge.request import Request
from rlaif_ray.judge.token_estimate import CallSize, TokenEstimate, Usage
from rlaif_ray.records import Message


def test_the_size_counts_bytes_of_all_that_is_sent() -> None:
    """ "é" is two bytes, and each message adds 16: 3 + 16 + 4 + 16, and 2 and 5 for prefill and schema."""
    request = Request((Message("system", "éa"), Message("user", "abcd")), max_tokens=7, prefill="ok", schema="{...}")
    assert CallSize.of(request) == CallSize(3 + 16 + 4 + 16 + 2 + 5, 7)


def test_nothing_known_is_guessed_high() -> None:
    """Half a token a byte and the longest answer."""
    assert TokenEstimate().tokens(CallSize(1_000, 512)) == 500 + 512


def test_one_reply_is_doubled_and_many_are_not() -> None:
    """At 0.25 tokens a byte and answers of 10 tokens: the guess is (1 + 1/n) times as much."""
    of = TokenEstimate()
    of.learn(CallSize(1_000, 512), Usage(250, 10))
    assert of.tokens(CallSize(1_000, 512)) == 500 + 20
    for _ in range(99):
        of.learn(CallSize(1_000, 512), Usage(250, 10))
    assert of.tokens(CallSize(1_000, 512)) == 263  # 260 * 1.01 = 262.6


def test_answers_are_known_by_what_bounds_them() -> None:
    """Chosen labels of one token say nothing about reasoning, whose bound is another."""
    of = TokenEstimate()
    for _ in range(100):
        of.learn(CallSize(0, 1), Usage(0, 1))
    assert of.tokens(CallSize(0, 1)) == 1  # never above the bound
    assert of.tokens(CallSize(0, 512)) == 512


def test_an_upper_quantile_of_answers() -> None:
    """Of 1, 2, ..., 100 the ninth tenth ends at 90: 90 * 1.01 = 90.9."""
    of = TokenEstimate()
    for length in range(1, 101):
        of.learn(CallSize(0, 512), Usage(0, length))
    assert of.tokens(CallSize(0, 512)) == 91


def test_a_few_long_answers_raise_the_guess_to_the_mean() -> None:
    """Five of 100 have 500 tokens, the others 1: the quantile is 1, and the mean 25.95, times 1.01."""
    of = TokenEstimate()
    for number in range(100):
        of.learn(CallSize(0, 512), Usage(0, 500 if number % 20 == 0 else 1))
    assert of.tokens(CallSize(0, 512)) == 27


def test_nonsense_counts_as_the_most_that_a_call_can_use() -> None:
    """A byte a token and the whole answer, doubled where it may be."""
    of = TokenEstimate()
    of.learn(CallSize(100, 16), Usage(10**9, 10**9))
    assert of.tokens(CallSize(100, 16)) == 200 + 16


def test_what_is_long_past_is_forgotten() -> None:
    of = TokenEstimate()
    for length in [500] * 300 + [10] * 256:
        of.learn(CallSize(0, 512), Usage(0, length))
    assert of.tokens(CallSize(0, 512)) == 11  # 10 * (1 + 1/256)


@given(st.lists(st.tuples(st.integers(1, 20_000), st.floats(0.1, 1.0), st.integers(0, 512)), min_size=1, max_size=300))
def test_guesses_are_not_exceeded_on_average(calls: list[tuple[int, float, int]]) -> None:
    """For the calls that were learned from, together: the sum of the guesses bears the sum of what was used."""
    of = TokenEstimate()
    learned = [(CallSize(size, 512), Usage(math.ceil(size * ratio), answer)) for size, ratio, answer in calls][-256:]
    for size, usage in learned:
        of.learn(size, usage)
    assert sum(of.tokens(size) for size, _ in learned) >= sum(usage.tokens for _, usage in learned)
    assert all(of.least(size) <= usage.prompt_tokens + 2 for size, usage in learned)


@pytest.mark.parametrize("learned", [0, 5])
def test_a_lower_guess_is_below_the_upper(learned: int) -> None:
    of = TokenEstimate()
    for _ in range(learned):
        of.learn(CallSize(1_000, 16), Usage(250, 16))
    assert of.least(CallSize(1_000, 16)) == (126 if learned == 0 else 251)
