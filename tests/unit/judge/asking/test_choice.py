import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_judge import chat

from rlaif_ray.judge.asking.choice import choose, label_position, spell_out
from rlaif_ray.judge.asking.replies import TokenLogprob, read_completion
from rlaif_ray.records import Outcome

LABELS = ("1", "2")


def listed(*entries: tuple[str, float]) -> tuple[TokenLogprob, ...]:
    """Tokens with their probabilities."""
    return tuple(TokenLogprob(token, math.log(probability)) for token, probability in entries)


def test_tokenisations_of_a_label_add_up() -> None:
    """ "1" .4 and " 1" .2 make .6; "2" .2; so P(first) = .6 / .8 = .75 and the mass is .8."""
    reading = choose(listed(("1", 0.4), (" 1", 0.2), ("2", 0.2), ("The", 0.1)), LABELS, 0.5)
    assert reading.outcome is Outcome.SCORED
    assert reading.p_first == pytest.approx(0.75)
    assert reading.label_mass == pytest.approx(0.8)
    assert reading.logprob_first == pytest.approx(math.log(0.6))
    assert reading.logprob_second == pytest.approx(math.log(0.2))
    assert not reading.censored


def test_a_longer_token_is_not_the_label() -> None:
    """ "10" starts with the label and is not it: .6 against .3, P(first) = 2/3."""
    reading = choose(listed(("1", 0.6), ("2", 0.3), ("10", 0.1)), LABELS, 0.5)
    assert reading.p_first == pytest.approx(2 / 3)


def test_a_missing_label_gets_the_smallest_listed_probability() -> None:
    """ "2" is not listed; the smallest listed is .01, so P(first) = .9 / .91; the mass counts .9 alone."""
    reading = choose(listed(("1", 0.9), ("Both", 0.05), ("A", 0.01)), LABELS, 0.5)
    assert reading.p_first == pytest.approx(0.9 / 0.91)
    assert reading.logprob_second == pytest.approx(math.log(0.01))
    assert reading.label_mass == pytest.approx(0.9)
    assert reading.censored


def test_a_lone_label_is_not_compared_with_itself() -> None:
    """Only "1" at .9 is listed: the smallest listed is its own, so the bound is what is left, .1."""
    reading = choose(listed(("1", 0.9)), LABELS, 0.5)
    assert reading.p_first == pytest.approx(0.9)
    assert reading.censored


def test_abstains_below_the_mass() -> None:
    """.2 + .1 = .3 < .5: no number, but the parts are kept."""
    reading = choose(listed(("I", 0.6), ("1", 0.2), ("2", 0.1)), LABELS, 0.5)
    assert reading.outcome is Outcome.ABSTAINED
    assert reading.p_first is None
    assert reading.label_mass == pytest.approx(0.3)
    assert "0.3" in reading.reason


def test_abstains_where_neither_label_is_listed_whatever_the_bound() -> None:
    reading = choose(listed(("I", 0.6), ("As", 0.3)), LABELS, 0.0)
    assert reading.outcome is Outcome.ABSTAINED
    assert reading.p_first is None


@pytest.mark.parametrize(
    ("tokens", "position"),
    [
        (["1"], 0),
        (["**", "1", "**"], 1),
        (["\n", " ", "1"], 2),
        (["<think>", "1", "?", "</think>", "\n\n", "2"], 5),
        (["Answer", " 1"], 0),
        (["**"], 0),
        ([], 0),
    ],
)
def test_the_label_is_looked_for_after_white_space_markup_and_thoughts(tokens: list[str], position: int) -> None:
    reply = chat("".join(tokens), *({token: 1.0} for token in tokens))
    assert label_position(read_completion(reply)) == position


def test_a_masked_lists_beginnings_are_spelled_out() -> None:
    begun = listed(("fi", 0.6), ("s", 0.3), ("second", 0.1))
    assert spell_out(begun, ("first", "second")) == listed(("first", 0.6), ("second", 0.3), ("second", 0.1))
    assert spell_out(listed(("1", 0.6), ("The", 0.3)), LABELS) == ()
    assert spell_out(listed(("Answer ", 1.0)), ("Answer 1", "Answer 2")) == ()


tokens = st.sampled_from(["1", " 1", "2", "▁2", "x", "y", "12"])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(tokens, st.floats(-50, 0), min_size=1, max_size=7), st.floats(0, 1))
def test_scored_exactly_where_there_is_a_number_and_always_a_probability(
    entries: dict[str, float], bound: float
) -> None:
    top = tuple(TokenLogprob(token, logprob) for token, logprob in entries.items())
    reading = choose(top, LABELS, bound)
    assert (reading.outcome is Outcome.SCORED) == (reading.p_first is not None)
    if reading.p_first is not None:
        assert 0 <= reading.p_first <= 1
        assert math.isfinite(reading.logprob_first or 0)
        assert math.isfinite(reading.logprob_second or 0)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.floats(-20, 0), st.floats(-20, 0))
def test_swapping_the_labels_mirrors_the_probability(one: float, two: float) -> None:
    top = (TokenLogprob("1", one), TokenLogprob("2", two))
    forward = choose(top, ("1", "2"), 0.0).p_first
    backward = choose(top, ("2", "1"), 0.0).p_first
    assert forward is not None
    assert backward is not None
    assert forward + backward == pytest.approx(1)
