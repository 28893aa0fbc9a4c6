import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_judge import FAILED, LISTS, OVER_BUDGET, REFUSED, SETTINGS, Pointwise, chat, drive, in_turn

from rlaif_ray.judge.asking.pointwise import normalised, rubric_p, score_steps
from rlaif_ray.judge.asking.terms import Abilities, AskSettings
from rlaif_ray.judge.reading import Rung, ScoreReading
from rlaif_ray.judge.request import Answer, Form, Request
from rlaif_ray.records import Message, Outcome

TEN = Pointwise()
FIVE = Pointwise(scale=(1, 5))
POINTS = ["1", "2", "3", "5", "9", "10", "x"]


def ask(
    *said: str | Answer,
    question: Pointwise = TEN,
    abilities: Abilities = LISTS,
    settings: AskSettings = SETTINGS,
) -> tuple[ScoreReading, list[list[Request]]]:
    return drive(score_steps(question, abilities, settings), in_turn(*said))


def test_the_score_is_the_likeliest_points_mean() -> None:
    """.5 at 8, .3 at 7, .1 at 10 and .1 elsewhere: (4 + 2.1 + 1) / .9 = 7.1 / .9; entropy over 5/9, 3/9, 1/9."""
    reading, ((request,),) = ask(chat("8", {"8": 0.4, " 8": 0.1, "7": 0.3, "10": 0.1, "The": 0.1}))
    assert request == Request(TEN.score(), max_tokens=2, temperature=0.0, top_logprobs=20)
    assert reading.score == pytest.approx(7.1 / 0.9)
    assert reading.probabilities == pytest.approx((0, 0, 0, 0, 0, 0, 3 / 9, 5 / 9, 0, 1 / 9))
    assert reading.mass == pytest.approx(0.9)
    assert reading.entropy == pytest.approx(-sum(p * math.log(p) for p in (5 / 9, 3 / 9, 1 / 9)))
    assert (reading.outcome, reading.rung) == (Outcome.SCORED, Rung.LOGPROBS)


def test_points_of_one_digit_need_one_token() -> None:
    """(.5 * 4 + .5 * 1) = 2.5: no point of 1 to 5 begins with "1" but 1."""
    reading, ((request,),) = ask(chat("4", {"4": 0.5, "1": 0.5}), question=FIVE)
    assert request.max_tokens == 1
    assert reading.score == pytest.approx(2.5)


def test_a_listed_ten_says_that_one_is_one() -> None:
    """.6 * 1 + .4 * 10."""
    reading, batches = ask(chat("1", {"1": 0.6, "10": 0.4}, {".": 1.0}))
    assert reading.score == pytest.approx(4.6)
    assert len(batches) == 1


def test_ten_in_two_tokens_is_read_from_the_second() -> None:
    """ "1" has .8, and goes on with "0" at .75: .2 at 1, .6 at 10, .2 at 9: .2 + 6 + 1.8 = 8."""
    reading, batches = ask(chat("10", {"1": 0.8, "9": 0.2}, {"0": 0.75, "": 0.25}))
    assert reading.score == pytest.approx(8.0)
    assert reading.mass == pytest.approx(1.0)
    assert len(batches) == 1


def test_a_one_that_was_not_drawn_is_put_into_the_judges_mouth() -> None:
    """ "9" was drawn at .6; "1" has .4 and goes on with "0" at .5: 5.4 + .2 + 2 = 7.6."""
    reading, (_, (request,)) = ask(chat("9", {"9": 0.6, "1": 0.4}, {"": 1.0}), chat("0", {"0": 0.5, "": 0.5}))
    assert (request.prefill, request.max_tokens, request.messages) == ("1", 1, TEN.score())
    assert reading.score == pytest.approx(7.6)


def test_a_one_that_ended_the_reply_is_asked_about_as_well() -> None:
    """The end of a reply is no listed position: "1" at 1, of which .3 goes on: .7 + 3."""
    reading, (_, (request,)) = ask(chat("1", {"1": 1.0}), chat("0", {"": 0.7, "0": 0.3}, tokens=["0"]))
    assert request.prefill == "1"
    assert reading.score == pytest.approx(3.7)


def test_an_unlikely_one_is_one() -> None:
    """.005 of the mass is below a hundredth: .995 * 9 + .005 * 1."""
    reading, batches = ask(chat("9", {"9": 0.995, "1": 0.005}, {"": 1.0}))
    assert reading.score == pytest.approx(8.96)
    assert len(batches) == 1


@pytest.mark.parametrize("answer", [REFUSED, "<html>", chat("0"), chat("7", {"7": 0.5, "1": 0.3, "0": 0.2})])
def test_without_the_rest_of_one_there_is_no_score(answer: str | Answer) -> None:
    """Refused, malformed, without log-probabilities, or answered anew, which the points of the scale in it show."""
    reading, _ = ask(chat("9", {"9": 0.6, "1": 0.4}, {"": 1.0}), answer)
    assert (reading.outcome, reading.score) == (Outcome.ABSTAINED, None)
    assert "'1' begins a longer score" in reading.reason


def test_a_hundred_is_read_digit_by_digit() -> None:
    """ "8" .6 drawn, then "5" .5, "0" .5: 85 at .3 and 80 at .3; "1" .4 goes on with "0" for sure, and "10" with "0" at
    .25: 100 at .1 and 10 at .3: 25.5 + 24 + 10 + 3 = 62.5."""
    continuations = {"1": {"0": 1.0}, "10": {"0": 0.25, "": 0.75}}
    drawn = chat("85", {"8": 0.6, "1": 0.4}, {"5": 0.5, "0": 0.5}, {"": 1.0}, tokens=["8", "5", ""])

    def judge(request: Request) -> str:
        return chat("", continuations[request.prefill]) if request.prefill else drawn

    reading, _ = drive(score_steps(Pointwise(scale=(0, 100)), Abilities(), AskSettings()), judge)
    assert reading.score == pytest.approx(62.5)


def test_the_beginning_of_a_point_is_no_point() -> None:
    """On 10 to 20 "1" at .9 begins a point, and nothing that could follow it is listed."""
    reading, _ = ask(chat("1.", {"1": 0.9}, {".": 1.0}), chat("Hm."), question=Pointwise(scale=(10, 20)))
    assert (reading.outcome, reading.score, reading.mass) == (Outcome.ABSTAINED, None, 0.0)


def test_below_the_mass_words_are_read_and_then_the_number_is_asked_for_alone() -> None:
    reading, batches = ask(chat("Score: 7", {"Score": 0.9, "7": 0.1}, {":": 1.0}))
    assert (reading.score, reading.rung, len(batches)) == (7.0, Rung.TEXT, 1)
    reading, (_, (again,)) = ask(chat("It is fine", {"It": 1.0}, finish="length", tokens=["It"]), chat("7", {"7": 0.9}))
    assert again.messages == (*TEN.score(), Message("assistant", "It is fine"), Message("user", TEN.verdict_only))
    assert (reading.score, reading.rung) == (7.0, Rung.REFORMAT)
    reading, _ = ask(chat("Fine.", {"Fine": 1.0}), chat("Good.", {"Good": 1.0}))
    assert (reading.outcome, reading.score) == (Outcome.ABSTAINED, None)


def test_a_cut_number_is_no_score() -> None:
    """Without log-probabilities, "1" of a reply that was cut may be the half of 10."""
    reading, _ = ask(*[chat("1", finish="length")] * 3)
    assert reading.outcome is Outcome.ABSTAINED


def test_stated_scores_are_averaged() -> None:
    """(6 + 9 + 9) / 3 = 8."""
    said = [chat(f'{{"reasoning": "worth {score}", "score": {score}}}') for score in (6, 9, 9)]
    reading, (batch,) = ask(*said, abilities=Abilities(top_logprobs=0), settings=AskSettings(samples=3))
    assert (reading.score, reading.rung, reading.rationale) == (8.0, Rung.TEXT, "worth 9")
    assert (batch[0].messages, batch[0].schema) == (TEN.state(Form.SCHEMA), TEN.verdict_schema)
    assert reading.mass is None


@pytest.mark.parametrize("answer", [FAILED, OVER_BUDGET, REFUSED])
@pytest.mark.parametrize("top_logprobs", [20, 0])
def test_a_call_that_was_not_answered_ends_it(answer: Answer, top_logprobs: int) -> None:
    reading, _ = ask(answer, abilities=Abilities(top_logprobs=top_logprobs))
    assert reading == ScoreReading(answer.no_reply or Outcome.FAILED, answer.reason)


@pytest.mark.parametrize(
    ("score", "scale", "value"), [(1, (1, 10), -1), (10, (1, 10), 1), (5.5, (1, 10), 0), (2, (1, 5), -0.5)]
)
def test_a_score_is_normalised_from_minus_one_to_one(score: float, scale: tuple[int, int], value: float) -> None:
    assert normalised(score, scale) == pytest.approx(value)


def test_a_rubric_weighs_the_criteria() -> None:
    """Weights 3 and 1: s_a = (3 * 5 + 1) / 4 = 4, s_b = (3 * 3 + 5) / 4 = 3.5; at T = .5 the log-odds are 1."""
    assert rubric_p([5, 1], [3, 5], [3, 1], 0.5) == pytest.approx(1 / (1 + math.exp(-1)))
    assert rubric_p([5, None], [3, 5], [3, 1], 0.5) is None


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(POINTS), st.floats(0.001, 0.14), min_size=1, max_size=7))
def test_a_score_lies_on_the_scale_and_so_do_its_probabilities(position: dict[str, float]) -> None:
    def judge(request: Request) -> str:
        return chat("0", {"0": 0.4}) if request.prefill else chat("Hm.", position)

    reading, _ = drive(score_steps(TEN, Abilities(), AskSettings(min_label_mass=0.1)), judge)
    assert (reading.outcome is Outcome.SCORED) == (reading.score is not None)
    if reading.score is not None:
        assert 1 <= reading.score <= 10
        assert sum(reading.probabilities) == pytest.approx(1)
        assert reading.mass is not None
        assert reading.mass <= 1 + 1e-9
