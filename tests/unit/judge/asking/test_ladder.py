from dataclasses import replace

import pytest
from scripted_judge import FAILED, LISTS, OVER_BUDGET, REFUSED, Pairwise, chat, drive, in_turn

from rlaif_ray.judge.asking.ladder import ask_choice
from rlaif_ray.judge.asking.terms import Abilities, AskSettings
from rlaif_ray.judge.reading import Reading, Rung
from rlaif_ray.judge.request import Answer, Form, Request
from rlaif_ray.records import Message, Outcome

QUESTION = Pairwise()
UNSURE = chat("I", {"I": 0.9, "1": 0.06, "2": 0.04}, finish="length")
NO_WORDS = chat("Both are fine.", {"Both": 0.9, "A": 0.1})


def ask(*said: str | Answer, abilities: Abilities = LISTS) -> tuple[Reading, list[Request]]:
    reading, batches = drive(ask_choice(QUESTION.choose(), QUESTION, abilities, AskSettings()), in_turn(*said))
    return reading, [request for batch in batches for request in batch]


def test_one_call_where_the_labels_are_likely() -> None:
    """.6 against .2: P(first) = .75."""
    reading, (request,) = ask(chat("1", {"1": 0.6, "2": 0.2, "I": 0.1}, finish="length"))
    assert request == Request(QUESTION.choose(), max_tokens=1, temperature=0.0, top_logprobs=20)
    assert reading.p_first == pytest.approx(0.75)
    assert reading.label_mass == pytest.approx(0.8)
    assert (reading.outcome, reading.rung) == (Outcome.SCORED, Rung.LOGPROBS)


def test_the_call_is_what_the_endpoint_bears() -> None:
    _, (request,) = ask(
        chat("**2**", {"**": 1.0}, {"2": 0.9, "1": 0.1}, {"**": 1.0}),
        abilities=Abilities(top_logprobs=5, shortest_reply=16, temperature=False),
    )
    assert (request.max_tokens, request.top_logprobs, request.temperature) == (16, 5, None)


def test_a_longer_reply_is_read_where_the_label_is_said() -> None:
    """After the markup: .1 against .9."""
    reading, _ = ask(
        chat("**2**", {"**": 1.0}, {"2": 0.9, "1": 0.1}, {"**": 1.0}), abilities=Abilities(shortest_reply=16)
    )
    assert reading.p_first == pytest.approx(0.1)
    assert reading.rung is Rung.LOGPROBS


def test_words_are_read_where_no_label_is_likely_where_it_should_be() -> None:
    """One vote of one: (1 + 1/2) / 2."""
    reading, requests = ask(
        chat("Answer 1", {"Answer": 0.9, "1": 0.1}, {" 1": 1.0}), abilities=Abilities(shortest_reply=16)
    )
    assert len(requests) == 1
    assert (reading.p_first, reading.rung) == (0.75, Rung.TEXT)
    assert (reading.votes_first, reading.votes_second) == (1, 0)
    assert reading.label_mass == pytest.approx(0.1)


def test_a_drawn_label_does_not_outweigh_its_own_low_probability() -> None:
    """ "1" was drawn at .3: its probability has been read, and the word adds nothing to it."""
    reading, requests = ask(chat("1", {"1": 0.3, "I": 0.25, "The": 0.2}, finish="length"), NO_WORDS, NO_WORDS)
    assert reading.outcome is Outcome.ABSTAINED
    assert len(requests) == 3


def test_words_that_were_cut_are_no_verdict() -> None:
    cut = chat("Answer 2 is better", {"Answer": 1.0}, finish="length", tokens=["Answer"])
    reading, _ = ask(cut, NO_WORDS, NO_WORDS, abilities=Abilities(shortest_reply=16))
    assert reading.outcome is Outcome.ABSTAINED


def test_one_call_asks_for_the_verdict_alone() -> None:
    reading, (_, request) = ask(UNSURE, chat("2", {"2": 0.8, "1": 0.1}))
    assert request.messages == (*QUESTION.choose(), Message("assistant", "I"), Message("user", QUESTION.verdict_only))
    assert reading.p_first == pytest.approx(1 / 9)
    assert (reading.rung, reading.label_mass) == (Rung.REFORMAT, pytest.approx(0.9))


def test_what_the_judge_said_goes_back_to_it_as_data() -> None:
    _, (_, request) = ask(chat("<|im_end|>Hm."), chat("Verdict: 2"), abilities=Abilities(top_logprobs=0))
    assert "<|im_end|>" not in request.messages[-2].content


def test_a_constrained_choice_hides_the_labels_mass() -> None:
    reading, requests = ask(UNSURE, NO_WORDS, chat("1", {"1": 0.6, "2": 0.4}))
    assert (requests[2].form, requests[2].choices) == (Form.CHOICE, ("1", "2"))
    assert reading.p_first == pytest.approx(0.6)
    assert (reading.rung, reading.label_mass) == (Rung.CONSTRAINED, None)


def test_an_endpoint_that_ignores_the_constraint_gives_no_choice() -> None:
    reading, _ = ask(UNSURE, NO_WORDS, chat("1", {"1": 0.6, "2": 0.3, "I": 0.1}))
    assert (reading.outcome, reading.p_first) == (Outcome.ABSTAINED, None)
    assert "probability 0.1, less than 0.5" in reading.reason


def test_a_constrained_reply_without_log_probabilities_counts_if_it_is_a_label() -> None:
    abilities = Abilities(top_logprobs=0)
    reading, _ = ask(chat("Hm."), chat("Both."), chat("2"), abilities=abilities)
    assert (reading.p_first, reading.rung) == (0.25, Rung.CONSTRAINED)
    reading, _ = ask(chat("Hm."), chat("Both."), chat("Both, so 2"), abilities=abilities)
    assert reading.outcome is Outcome.ABSTAINED


def test_a_refused_call_leaves_the_next_rung() -> None:
    reading, requests = ask(UNSURE, REFUSED, chat("1", {"1": 0.6, "2": 0.4}))
    assert reading.rung is Rung.CONSTRAINED
    assert requests[2].messages == requests[1].messages
    reading, _ = ask(UNSURE, REFUSED, REFUSED)
    assert reading.outcome is Outcome.ABSTAINED


@pytest.mark.parametrize(("answer", "outcome"), [(FAILED, Outcome.FAILED), (OVER_BUDGET, Outcome.OVER_BUDGET)])
@pytest.mark.parametrize("before", [[], [UNSURE], [UNSURE, NO_WORDS]])
def test_a_call_that_was_not_answered_ends_it(before: list[str], answer: Answer, outcome: Outcome) -> None:
    reading, _ = ask(*before, answer)
    assert reading == Reading(outcome, answer.reason)


def test_a_refused_question_fails_with_the_endpoints_words() -> None:
    reading, requests = ask(REFUSED)
    assert reading == Reading(Outcome.FAILED, "HTTP 400: no")
    assert len(requests) == 1


def test_a_malformed_reply_is_asked_for_twice_more() -> None:
    reading, requests = ask("<html>", chat("1", {"1": 0.6, "2": 0.2}))
    assert requests[1] == replace(requests[0], sample=1)
    assert reading.rung is Rung.LOGPROBS
    reading, requests = ask("<html>", "<html>", chat("1", {"1": 0.6, "2": 0.2}))
    assert requests[2] == replace(requests[0], sample=2)
    assert reading.rung is Rung.LOGPROBS
    reading, requests = ask("<html>", "<html>", "<html>")
    assert (reading.outcome, len(requests)) == (Outcome.FAILED, 3)


def test_log_probabilities_that_are_missing_are_asked_for_once_more_before_words_count() -> None:
    reading, requests = ask(chat("1"), chat("1", {"1": 0.6, "2": 0.2}))
    assert requests[1] == replace(requests[0], sample=1)
    assert reading.rung is Rung.LOGPROBS
    for second in (chat("1"), "<html>"):
        reading, requests = ask(chat("1"), second)
        assert (reading.p_first, reading.rung, len(requests)) == (0.75, Rung.TEXT, 2)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ([chat("", finish="length")] * 2, "finish_reason: length"),
        ([chat(None, finish="stop")] * 2, "finish_reason: stop"),
        ([chat("", finish="content_filter")], "content filter"),
        ([chat(None, refusal="I cannot judge this.")], "refused: I cannot judge this."),
    ],
)
def test_why_a_reply_holds_nothing_is_told(said: list[str], reason: str) -> None:
    reading, requests = ask(*said, abilities=Abilities(top_logprobs=0))
    assert reading.outcome is Outcome.ABSTAINED
    assert reason in reading.reason
    assert len(requests) == len(said)
