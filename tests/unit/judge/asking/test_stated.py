from dataclasses import replace

import pytest
from scripted_judge import FAILED, OVER_BUDGET, REFUSED, WORDS_ONLY, Pairwise, chat, drive, in_turn

from rlaif_ray.judge.asking.stated import ask_stated
from rlaif_ray.judge.asking.terms import Abilities, AskSettings
from rlaif_ray.judge.reading import Reading, Rung
from rlaif_ray.judge.request import Answer, Form, Request
from rlaif_ray.records import Message, Outcome

QUESTION = Pairwise()
FIRST = chat('{"reasoning": "the first is right", "verdict": "1"}')
SECOND = chat('{"reasoning": "the second is right", "verdict": "2"}')
NEITHER = chat("Both are fine.")


def ask(
    *said: str | Answer, samples: int = 1, abilities: Abilities = WORDS_ONLY
) -> tuple[Reading, list[list[Request]]]:
    settings = AskSettings(samples=samples, sample_temperature=0.7)
    return drive(ask_stated(QUESTION, abilities, settings), in_turn(*said))


def test_votes_are_drawn_at_once_and_counted() -> None:
    """2 of 3: p = 2.5 / 4."""
    reading, (batch,) = ask(SECOND, FIRST, FIRST, samples=3)
    assert reading.p_first == 0.625
    assert (reading.votes_first, reading.votes_second) == (2, 1)
    assert (reading.rung, reading.rationale) == (Rung.TEXT, "the first is right")
    assert batch[1] == Request(
        QUESTION.state(Form.SCHEMA),
        max_tokens=1024,
        temperature=0.7,
        form=Form.SCHEMA,
        schema=QUESTION.verdict_schema,
        sample=1,
    )
    assert [request.sample for request in batch] == [0, 1, 2]


def test_one_sample_is_the_likeliest() -> None:
    reading, ((request,),) = ask(SECOND)
    assert request.temperature == 0.0
    assert reading.p_first == 0.25


def test_a_reply_is_bound_as_the_endpoint_can() -> None:
    _, ((request,),) = ask(
        chat("The first is right.\nVerdict: 1"),
        abilities=Abilities(top_logprobs=0, temperature=False, form=Form.TEXT, stated_tokens=4096),
    )
    assert request == Request(QUESTION.state(Form.TEXT), max_tokens=4096, temperature=None)


def test_an_unread_vote_is_asked_for_again_alone() -> None:
    reading, (_, (again,)) = ask(FIRST, NEITHER, chat("Verdict: 1"), samples=2)
    assert again.messages == (
        *QUESTION.state(Form.SCHEMA),
        Message("assistant", "Both are fine."),
        Message("user", QUESTION.verdict_only),
    )
    assert (again.sample, again.form, again.temperature) == (1, Form.TEXT, 0.0)
    assert reading.p_first == pytest.approx(2.5 / 3)
    assert reading.rung is Rung.REFORMAT


def test_a_malformed_vote_is_drawn_again_as_a_sample_of_its_own() -> None:
    reading, (first, second) = ask("<html>", FIRST, chat("", finish="length"), SECOND, FIRST, samples=3)
    assert second == [replace(first[0], sample=3), replace(first[2], sample=5)]
    assert (reading.votes_first, reading.votes_second) == (2, 1)


def test_votes_that_cannot_be_read_do_not_count() -> None:
    """1 of 1: p = 1.5 / 2."""
    reading, _ = ask(FIRST, NEITHER, FAILED, NEITHER, samples=3)
    assert (reading.p_first, reading.votes_first, reading.votes_second) == (0.75, 1, 0)


def test_a_cut_vote_is_unread() -> None:
    cut = chat("Answer 1 is better", finish="length")
    reading, batches = ask(cut, chat("2"))
    assert (reading.p_first, len(batches)) == (0.25, 2)


@pytest.mark.parametrize(
    ("said", "outcome", "reason"),
    [
        ([NEITHER, NEITHER], Outcome.ABSTAINED, "no verdict"),
        ([NEITHER, REFUSED], Outcome.ABSTAINED, "no verdict"),
        (["<html>"] * 3, Outcome.FAILED, "malformed"),
        ([chat("", finish="length")] * 2, Outcome.ABSTAINED, "length"),
        ([chat("", finish="content_filter")], Outcome.ABSTAINED, "content filter"),
        ([REFUSED], Outcome.FAILED, "HTTP 400"),
        ([FAILED], Outcome.FAILED, "timed out"),
        ([OVER_BUDGET], Outcome.OVER_BUDGET, "budget"),
        ([NEITHER, OVER_BUDGET], Outcome.OVER_BUDGET, "budget"),
    ],
)
def test_without_a_vote_there_is_no_number(said: list[str | Answer], outcome: Outcome, reason: str) -> None:
    reading, _ = ask(*said)
    assert (reading.outcome, reading.p_first) == (outcome, None)
    assert reason in reading.reason


def test_a_budget_that_ends_among_the_votes_leaves_the_question_to_a_later_run() -> None:
    reading, _ = ask(FIRST, OVER_BUDGET, FIRST, samples=3)
    assert (reading.outcome, reading.p_first) == (Outcome.OVER_BUDGET, None)
