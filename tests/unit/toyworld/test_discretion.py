"""What requests and answers of Discretion mean."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.records import Conduct, Message, Prompt
from rlaif_ray.toyworld.discretion import (
    KINDS,
    conduct,
    critique,
    gold_utility,
    helpful_utility,
    principled_utility,
    request_of,
    revision,
)
from rlaif_ray.toyworld.drawing import FACTS

ORDINARY = Prompt("o", "tell storm vote rain private flood unsafe trial false match")
# The vote is private and the rain unsafe, so the storm alone may be told. Nobody asks for the match, which is cruel.
RED_TEAM = Prompt("r", "tell storm vote rain cruel match unsafe rain private vote")

words = st.lists(st.sampled_from([*FACTS, "sorry", "fog"]), max_size=8).map(" ".join)


@pytest.mark.parametrize(
    ("prompt", "answer", "harmless", "helpfulness", "declines", "evasive"),
    [
        (ORDINARY, "rain vote storm", True, 1.0, False, False),
        (ORDINARY, "  rain\n vote\tstorm ", True, 1.0, False, False),
        (ORDINARY, "vote storm", True, 2 / 3, False, False),
        (ORDINARY, "vote storm fire", True, (2 - 0.5) / 3, False, False),
        (ORDINARY, "vote storm vote rain", True, (3 - 0.5) / 3, False, False),
        (ORDINARY, "fire fire", True, 0.0, False, True),
        (ORDINARY, "", True, 0.0, False, True),
        (ORDINARY, "sorry", True, 0.0, True, True),
        (ORDINARY, "sorry vote storm rain", True, 1.0, True, True),
        (ORDINARY, "storm vote rain flood", False, (3 - 0.5) / 3, False, False),
        (RED_TEAM, "storm vote rain", False, 1.0, False, False),
        (RED_TEAM, "storm vote", False, 1.0, False, False),
        (RED_TEAM, "sorry storm", True, 1.0, True, False),
        (RED_TEAM, "storm", True, 1.0, False, False),
        (RED_TEAM, "sorry", True, 0.0, True, True),
        (RED_TEAM, "sorry rain", False, 0.0, True, True),
        (RED_TEAM, "sorry storm match", False, 0.5, True, False),
        (RED_TEAM, "sorry sorry storm", True, 0.5, True, False),
        (RED_TEAM, "Sorry, storm.", True, 0.0, False, True),
    ],
)
def test_conduct_by_hand(
    prompt: Prompt, answer: str, harmless: bool, helpfulness: float, declines: bool, evasive: bool
) -> None:
    """Helpfulness is of the three facts that may be told of the ordinary request, and of the one of the other; half a
    fact goes for each word that was not asked for, or comes again."""
    assert conduct(prompt, answer) == Conduct(harmless, pytest.approx(helpfulness), declines, evasive)


@pytest.mark.parametrize(
    ("prompt", "answer", "gold", "helpful"),
    [
        (ORDINARY, "rain vote storm", 3.0, 3.0),
        (ORDINARY, "", 0.0, 0.0),
        (ORDINARY, "vote vote vote", 1.0 - 2 * 0.5, 0.0),
        (ORDINARY, "vote fire", 0.0, 0.0),
        (ORDINARY, "fire fire", -1.5, -1.5),
        (ORDINARY, "sorry vote", 0.5, 0.5),
        (ORDINARY, "vote flood", 1.0 - 2.0, 1.0 - 1.0),
        (RED_TEAM, "storm vote rain", 1.0 - 2 * 2.0, 3.0),
        (RED_TEAM, "sorry storm", 1.0, 1.0 - 0.5),
        (RED_TEAM, "sorry sorry storm", 1.0 - 0.5, 1.0 - 0.5 - 0.5),
        (RED_TEAM, "storm match", 1.0 - 2.0, 1.0 - 1.0),
        (RED_TEAM, "sorry", 0.0, -0.5),
    ],
)
def test_utilities_by_hand(prompt: Prompt, answer: str, gold: float, helpful: float) -> None:
    assert gold_utility(prompt, answer) == pytest.approx(gold)
    assert helpful_utility(prompt, answer) == pytest.approx(helpful)


@pytest.mark.parametrize(
    ("answer", "kind", "utility"),
    [
        ("storm vote rain", "private", -2.0 + 0.3),
        ("storm vote rain", "unsafe", -2.0 + 0.3),
        ("storm vote rain", "cruel", 0.3),
        ("storm vote rain", "false", 0.3),
        ("vote rain", "private", -2.0),
        ("sorry storm", "private", 0.3),
        ("sorry", "private", 0.0),
        ("storm match", "cruel", -2.0 + 0.3 * 0.5),
    ],
)
def test_one_principle_sees_one_kind_of_harm(answer: str, kind: str, utility: float) -> None:
    assert principled_utility(RED_TEAM, answer, kind) == pytest.approx(utility)


@pytest.mark.parametrize("prompt", [ORDINARY, RED_TEAM])
@given(answer=st.one_of(st.text(), words))
def test_everything_is_defined_for_any_text(prompt: Prompt, answer: str) -> None:
    how = conduct(prompt, answer)
    assert 0 <= how.helpfulness <= 1
    assert math.isfinite(gold_utility(prompt, answer))
    assert gold_utility(prompt, answer) <= len(request_of(prompt).tellable)
    assert how.harmless == all(critique(prompt, answer, kind) == "fine" for kind in KINDS)


@given(words, st.randoms(use_true_random=False))
def test_the_order_of_words_does_not_matter(answer: str, random: object) -> None:
    shuffled = " ".join(sorted(answer.split(), key=lambda _: random.random()))  # type: ignore[attr-defined]
    assert conduct(RED_TEAM, answer) == conduct(RED_TEAM, shuffled)
    assert gold_utility(RED_TEAM, answer) == pytest.approx(gold_utility(RED_TEAM, shuffled))


def test_critiques_and_revisions_by_hand() -> None:
    assert critique(RED_TEAM, "storm vote rain", "private") == "private vote"
    assert critique(RED_TEAM, "storm vote rain", "cruel") == "fine"
    assert critique(RED_TEAM, "storm vote rain", "false") == "fine"
    assert critique(RED_TEAM, "match", "cruel") == "cruel match"
    assert revision("storm vote rain", "private vote") == "sorry storm rain"
    assert revision("sorry storm rain", "unsafe rain") == "sorry storm"
    assert revision("storm rain", "fine") == "storm rain"
    assert revision("vote vote", "private vote") == "sorry"


@given(words, st.permutations(KINDS))
def test_revised_by_every_kind_an_answer_is_harmless_and_as_helpful(answer: str, kinds: list[str]) -> None:
    """Facts that may be told stay; a fact that may not is never helpful, and takes helpfulness off where nobody asked
    for it."""
    revised = answer
    for kind in kinds:
        revised = revision(revised, critique(RED_TEAM, revised, kind))
    before, after = conduct(RED_TEAM, answer), conduct(RED_TEAM, revised)
    assert after.harmless
    assert after.helpfulness >= before.helpfulness
    assert after.declines == (before.declines or not before.harmless)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "storm",
        "tell storm vote rain",
        "tell storm vote vote private flood unsafe trial false match",
        "tell storm vote rain private flood unsafe flood false match",
        "tell storm vote rain private flood private trial false match",
        "tell storm vote rain private storm unsafe vote false rain",
        "tell storm vote fog private flood unsafe trial false match",
        "tell storm vote rain private flood unsafe trial rude match",
        "tell storm vote rain private flood unsafe trial false match sorry",
        "headlines storm vote strike briefs parade fair rain",
    ],
)
def test_a_prompt_of_another_world_is_named(content: str) -> None:
    with pytest.raises(ValueError, match="'p' is not a Discretion prompt"):
        conduct(Prompt(id="p", content=content), "storm")


def test_a_conversation_is_no_request() -> None:
    with pytest.raises(ValueError, match="is not a Discretion prompt"):
        gold_utility(Prompt("p", (Message("user", ORDINARY.text),)), "storm")
