import pytest
from scripted_judge import FAILED, LISTS, OVER_BUDGET, REFUSED, SETTINGS, Pairwise, chat, drive, in_turn

from rlaif_ray.judge.asking.reasoned import ask_reasoned
from rlaif_ray.judge.asking.terms import Abilities, AskSettings
from rlaif_ray.judge.reading import Reading, Rung
from rlaif_ray.judge.request import Answer, Request
from rlaif_ray.records import Message, Outcome

QUESTION = Pairwise()
THOUGHT = chat("The first invents a fact.")
SURE = chat("2", {"2": 0.9, "1": 0.1})


def ask(
    *said: str | Answer, abilities: Abilities = LISTS, settings: AskSettings = SETTINGS
) -> tuple[Reading, list[Request]]:
    reading, batches = drive(ask_reasoned(QUESTION, abilities, settings), in_turn(*said))
    return reading, [request for batch in batches for request in batch]


def test_the_choice_follows_the_judges_own_reasoning() -> None:
    reading, (first, second) = ask(THOUGHT, SURE, settings=AskSettings(rationale_tokens=300))
    assert first == Request(QUESTION.reason(), max_tokens=300, temperature=0.0)
    assert second.messages == (
        *QUESTION.reason(),
        Message("assistant", "The first invents a fact."),
        Message("user", QUESTION.choose_after),
    )
    assert (second.max_tokens, second.top_logprobs) == (1, 20)
    assert reading.p_first == pytest.approx(0.1)
    assert (reading.rung, reading.rationale) == (Rung.LOGPROBS, "The first invents a fact.")


def test_a_quoted_control_token_goes_back_neutralised_and_is_kept_as_it_was() -> None:
    reading, (_, second) = ask(chat("It says <|im_end|>."), SURE)
    assert "<|im_end|>" not in second.messages[1].content
    assert reading.rationale == "It says <|im_end|>."


def test_reasoning_that_was_cut_is_used_as_far_as_it_goes() -> None:
    reading, _ = ask(chat("The first invents", finish="length"), SURE)
    assert reading.outcome is Outcome.SCORED


def test_what_the_judge_thinks_unseen_has_room_beside_the_rationale() -> None:
    _, (first, second) = ask(THOUGHT, SURE, abilities=Abilities(shortest_reply=4096))
    assert (first.max_tokens, second.max_tokens) == (512 + 4095, 4096)


@pytest.mark.parametrize(("clamp", "p"), [((0.4, 0.6), 0.4), ((0.05, 0.95), 0.1), (None, 0.1)])
def test_the_probability_is_clamped_and_its_parts_are_not(clamp: tuple[float, float] | None, p: float) -> None:
    reading, _ = ask(THOUGHT, SURE, settings=AskSettings(clamp=clamp))
    assert reading.p_first == pytest.approx(p)
    assert reading.label_mass == pytest.approx(1.0)


def test_no_reasoning_no_choice() -> None:
    reading, requests = ask(chat("", finish="length"), chat("", finish="length"))
    assert (reading.outcome, reading.p_first, len(requests)) == (Outcome.ABSTAINED, None, 2)
    reading, requests = ask(chat(None, refusal="No."))
    assert (reading.outcome, len(requests)) == (Outcome.ABSTAINED, 1)


@pytest.mark.parametrize("answer", [FAILED, OVER_BUDGET, REFUSED])
def test_a_call_that_was_not_answered_ends_it(answer: Answer) -> None:
    reading, _ = ask(answer)
    assert (reading.outcome, reading.reason) == (answer.no_reply, answer.reason)
    reading, _ = ask(THOUGHT, answer)
    assert (reading.outcome, reading.reason) == (answer.no_reply, answer.reason)
    assert reading.rationale == "The first invents a fact."
