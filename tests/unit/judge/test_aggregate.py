import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_records import judgement, pair, preference

from rlaif_ray.judge.aggregate import combine, disagreement, opinion_of_orders, opinion_of_rubric
from rlaif_ray.records import Opinion, Order, Outcome

probabilities = st.floats(0, 1)


def opinion(p: float | None, weight: float = 1.0, ab: float | None = None, ba: float | None = None) -> Opinion:
    """Of a member that gives `p` in each order alike, or `ab` and `ba`."""
    of = pair()
    ab, ba = (p if ab is None else ab), (None if p is None else 1 - p) if ba is None else ba
    return opinion_of_orders([judgement(of, Order.AB, ab), judgement(of, Order.BA, ba)], weight)


def test_a_lean_to_the_first_place_cancels() -> None:
    """Shown first, a wins with .9; shown second, it wins with 1 - .4 = .6: p = .75, and both orders name a."""
    made = preference(pair(), 0.9, 0.4)
    assert made.outcome is Outcome.SCORED
    assert made.p == pytest.approx(0.75)
    assert made.consistent is True


def test_whoever_is_first_wins() -> None:
    """.8 for the first place in both orders: p = (.8 + 1 - .8) / 2 = .5, and the orders disagree."""
    made = preference(pair(), 0.8, 0.8)
    assert made.p == pytest.approx(0.5)
    assert made.consistent is False


@given(probabilities, probabilities)
def test_swapping_the_answers_mirrors_the_preference(ab: float, ba: float) -> None:
    forward, backward = preference(pair(), ab, ba), preference(pair(), ba, ab)
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
    judgements = [
        judgement(of, Order.AB, 0.9) if ab is None else judgement(of, Order.AB, None, ab),
        judgement(of, Order.BA, 0.1) if ba is None else judgement(of, Order.BA, None, ba),
    ]
    made = combine(of, [opinion_of_orders(judgements, 1.0)], "log_odds")
    assert made.outcome is outcome
    assert (made.p, made.consistent) == (None, None)
    assert "because" in made.reason
    assert len(made.judgements) == 2


def test_one_order_alone_has_a_number_and_no_consistency() -> None:
    """Only BA was asked: the answer shown first, b, wins with .8, so a does with .2."""
    of = pair()
    made = combine(of, [opinion_of_orders([judgement(of, Order.BA, 0.8)], 1.0)], "log_odds")
    assert made.p == pytest.approx(0.2)
    assert made.consistent is None


def test_two_judgements_of_one_order_are_no_opinion() -> None:
    of = pair()
    with pytest.raises(ValueError, match="order ab"):
        opinion_of_orders([judgement(of, Order.AB, 0.5), judgement(of, Order.AB, 0.5)], 1.0)


def test_log_odds_are_averaged_with_weights() -> None:
    """Odds of 9 with weight 3 and of 1/9 with weight 1: the mean of the log-odds is (3 - 1) / 4 ln 9 = ln 3."""
    made = combine(pair(), [opinion(0.9, 3.0), opinion(0.1, 1.0)], "log_odds")
    assert made.p == pytest.approx(0.75)


def test_votes_are_counted_with_weights() -> None:
    """Weight 3 for a, 1 for b, and 1 that is undecided and gives each a half: 3.5 of 5."""
    made = combine(pair(), [opinion(0.6, 3.0), opinion(0.1), opinion(0.5)], "vote")
    assert made.p == pytest.approx(0.7)


def test_a_certain_member_does_not_silence_the_others() -> None:
    """Probability 1 counts as 1 - 1e-4; three others of .2: (ln 9999 - 3 ln 4) / 4 = 1.263, p = .78."""
    made = combine(pair(), [opinion(1.0), opinion(0.2), opinion(0.2), opinion(0.2)], "log_odds")
    assert made.p == pytest.approx(1 / (1 + math.exp(-(math.log(9999) - 3 * math.log(4)) / 4)))


def test_a_member_without_a_number_is_left_out_and_stays_on_record() -> None:
    made = combine(pair(), [opinion(None), opinion(0.8)], "log_odds")
    assert made.p == pytest.approx(0.8)
    assert len(made.opinions) == 2


def test_an_ensemble_is_consistent_where_its_mean_is() -> None:
    """In order AB the members give .9 and .4, mean .65 for a; in BA .6 and .2, mean .4, so a again."""
    made = combine(pair(), [opinion(0.5, 1.0, 0.9, 0.6), opinion(0.5, 1.0, 0.4, 0.2)], "log_odds")
    assert made.consistent is True


def test_disagreement_is_the_spread_of_the_members() -> None:
    """.9 and .3 lie .3 from their mean."""
    assert disagreement(combine(pair(), [opinion(0.9), opinion(0.3)], "log_odds")) == pytest.approx(0.3)
    assert disagreement(combine(pair(), [opinion(0.9)], "log_odds")) is None


@pytest.mark.parametrize(("verdict", "contradiction"), [(0.2, True), (0.9, False), (None, None)])
def test_a_rubric_is_checked_by_a_verdict(verdict: float | None, contradiction: bool | None) -> None:
    scores = [judgement(pair(), order, None, Outcome.SCORED, score=4.0) for order in (Order.A, Order.B)]
    made = opinion_of_rubric(scores, 0.7, opinion(verdict), 1.0)
    assert (made.p, made.contradiction) == (0.7, contradiction)
    assert len(made.judgements) == 4
