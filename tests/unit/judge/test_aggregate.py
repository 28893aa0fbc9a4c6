import pytest
from hypothesis import given
from hypothesis import strategies as st
from records_of_judges import judgement, pair

from rlaif_ray.judge.aggregate import both_orders
from rlaif_ray.records import Order, Outcome

probabilities = st.floats(0, 1)


def test_a_lean_to_the_first_place_cancels() -> None:
    """Shown first, a wins with .9; shown second, it wins with 1 - .4 = .6: p = .75, and both orders name a."""
    of = pair()
    preference = both_orders(of, judgement(of, Order.AB, 0.9), judgement(of, Order.BA, 0.4))
    assert preference.outcome is Outcome.SCORED
    assert preference.p == pytest.approx(0.75)
    assert preference.consistent is True


def test_whoever_is_first_wins() -> None:
    """.8 for the first place in both orders: p = (.8 + 1 - .8) / 2 = .5, and the orders disagree."""
    of = pair()
    preference = both_orders(of, judgement(of, Order.AB, 0.8), judgement(of, Order.BA, 0.8))
    assert preference.p == pytest.approx(0.5)
    assert preference.consistent is False


@given(probabilities, probabilities)
def test_swapping_the_answers_mirrors_the_preference(ab: float, ba: float) -> None:
    of = pair()
    forward = both_orders(of, judgement(of, Order.AB, ab), judgement(of, Order.BA, ba))
    backward = both_orders(of, judgement(of, Order.AB, ba), judgement(of, Order.BA, ab))
    assert forward.p is not None
    assert backward.p is not None
    assert 0 <= forward.p <= 1
    assert forward.p + backward.p == pytest.approx(1)
    assert forward.consistent == backward.consistent


@pytest.mark.parametrize(
    ("ab", "ba", "outcome"),
    [
        (None, Outcome.ABSTAINED, Outcome.ABSTAINED),
        (Outcome.FAILED, None, Outcome.FAILED),
        (Outcome.ABSTAINED, Outcome.FAILED, Outcome.FAILED),
        (Outcome.OVER_BUDGET, Outcome.FAILED, Outcome.OVER_BUDGET),
    ],
)
def test_a_pair_with_a_missing_order_is_not_scored(ab: Outcome | None, ba: Outcome | None, outcome: Outcome) -> None:
    of = pair()
    preference = both_orders(
        of,
        judgement(of, Order.AB, 0.9) if ab is None else judgement(of, Order.AB, None, ab),
        judgement(of, Order.BA, 0.1) if ba is None else judgement(of, Order.BA, None, ba),
    )
    assert preference.outcome is outcome
    assert (preference.p, preference.consistent) == (None, None)
    assert "because" in preference.reason
    assert len(preference.judgements) == 2


def test_judgements_of_another_pair_are_refused() -> None:
    of = pair(0)
    with pytest.raises(ValueError, match="pair-0"):
        both_orders(of, judgement(of, Order.AB, 0.5), judgement(pair(1), Order.BA, 0.5))
    with pytest.raises(ValueError, match="pair-0"):
        both_orders(of, judgement(of, Order.BA, 0.5), judgement(of, Order.AB, 0.5))
