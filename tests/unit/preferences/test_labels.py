import dataclasses

import pytest
from judge_records import judgement

from rlaif_ray.judge.aggregate import combine, opinion_of_orders
from rlaif_ray.preferences.dataset import PreferenceRow, answer_in
from rlaif_ray.preferences.labels import Label, OnInconsistent, label_of, preference_rows
from rlaif_ray.records import Message, Order, Outcome, Pair, Preference, Prompt


def preference(p: float | None, prompt: Prompt | None = None, outcome: Outcome = Outcome.SCORED) -> Preference:
    """Orders with distinct log-probabilities: AB has -1 first and -2 second, BA has -3 first and -4 second."""
    of = Pair("pair", prompt or Prompt("prompt", "Say."), "answer a", "answer b", "sample a", "sample b")
    ab, ba = (
        judgement(of, order, of_first, outcome, logprob_first=first, logprob_second=second, raw_reply='{"é": 1}')
        for order, of_first, first, second in (
            (Order.AB, p, -1.0, -2.0),
            (Order.BA, None if p is None else 1 - p, -3.0, -4.0),
        )
    )
    return combine(of, [opinion_of_orders([ab, ba], 1.0)], "log_odds")


def rows(*preferences: Preference) -> list[PreferenceRow]:
    return preference_rows(preferences, seed=0, held_out=0.5)


def test_the_first_answer_chosen() -> None:
    """p = .8 for a. Chosen first is order AB: chosen -1, rejected -2. Chosen second is BA: a was shown second, -4."""
    (made,) = rows(preference(0.8))
    assert (made.chosen, made.rejected, made.p) == ("answer a", "answer b", 0.8)
    assert (made.chosen_sample, made.rejected_sample) == ("sample a", "sample b")
    assert (made.chosen_first_logprob_chosen, made.chosen_first_logprob_rejected) == (-1, -2)
    assert (made.chosen_second_logprob_chosen, made.chosen_second_logprob_rejected) == (-4, -3)


def test_the_second_answer_chosen() -> None:
    """p = .2 for a, so .8 for b. Chosen first is order BA: chosen -3, rejected -4. Chosen second is AB: b has -2."""
    (made,) = rows(preference(0.2))
    assert (made.chosen, made.rejected) == ("answer b", "answer a")
    assert made.p == pytest.approx(0.8)
    assert (made.chosen_sample, made.rejected_sample) == ("sample b", "sample a")
    assert (made.chosen_first_logprob_chosen, made.chosen_first_logprob_rejected) == (-3, -4)
    assert (made.chosen_second_logprob_chosen, made.chosen_second_logprob_rejected) == (-2, -1)


@pytest.mark.parametrize(
    ("policy", "label"),
    [("keep_soft", Label(0.7, 1.0)), ("drop", None), ("tie", Label(0.5, 1.0)), ("downweight", Label(0.7, 0.4))],
)
def test_what_becomes_of_an_inconsistent_pair(policy: OnInconsistent, label: Label | None) -> None:
    """The first place wins with .9 in order AB and with .5 + .1 in BA: p = (.9 + 1 - .5) / 2 = .7, 2p - 1 = .4."""
    swayed = dataclasses.replace(preference(0.7), consistent=False)
    made = label_of(swayed, policy, 0.0)
    assert (made is None) == (label is None)
    if made is not None and label is not None:
        assert (made.p, made.weight) == (pytest.approx(label.p), pytest.approx(label.weight))
    assert label_of(preference(0.7), policy, 0.0) == Label(0.7, 1.0)


def test_pairs_within_the_margin_are_ties() -> None:
    assert label_of(preference(0.55), "keep_soft", 0.06) == Label(0.5, 1.0)
    assert label_of(preference(0.6), "keep_soft", 0.06) == Label(0.6, 1.0)


def test_members_are_kept_from_the_chosen_answers_side() -> None:
    """p = .2 for a: b is chosen, and the member holds .8 for it."""
    (made,) = rows(preference(0.2))
    (member,) = made.members
    assert (member.judge, member.set_aside) == ("judge", False)
    assert member.p == pytest.approx(0.8)


def test_ties_stay_and_what_was_not_scored_leaves() -> None:
    kept = rows(preference(0.5), preference(None, outcome=Outcome.FAILED), preference(None, outcome=Outcome.ABSTAINED))
    assert [row.p for row in kept] == [0.5]


def test_rows_of_a_round_and_of_a_conversation() -> None:
    talk = (Message("user", "Hello."), Message("assistant", "Hello!"), Message("user", "Say more."))
    (made,) = preference_rows([preference(0.8, Prompt("one", talk))], seed=0, held_out=0.5, round=3)
    assert (made.round, made.label_source, made.prompt_id, made.prompt) == (3, "ai", "one", talk)
    assert (made.chosen, made.rejected) == (answer_in(talk, "answer a"), (Message("assistant", "answer b"),))
