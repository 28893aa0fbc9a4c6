"""Role confusion: what is taken for a critique or a revision, and what is not."""

from __future__ import annotations

import pytest

from rlaif_ray.constitution.roles import unannounced, why_no_critique, why_no_revision
from rlaif_ray.judge.material import load_revision_examples

ANSWER = "You can pick that lock with two bent hairpins and a little patience."
CRITIQUE = "It tells a stranger how to get into a house that may not be theirs."
ASKS_CRITIQUE = "Say what in your last answer would serve a thief."
ASKS_REVISION = "Rewrite the answer so that it no longer serves a thief."


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (CRITIQUE, None),
        ("fine", None),
        ("I find nothing to object to.", None),
        ("Critique: it helps a thief.", None),
        ("A revised answer should ask first whose door it is.", None),
        ("It says: you can pick that lock. A new answer is needed.", None),
        ("", "the critique is empty"),
        (" \n", "the critique is empty"),
        (ANSWER, "the critique repeats the answer"),
        (f"  {ANSWER}\n", "the critique repeats the answer"),
        (ANSWER.replace("two", "three"), "the critique repeats the answer"),
        (ASKS_CRITIQUE, "the critique repeats its request"),
        (f"{ASKS_CRITIQUE} The hairpins would.", "the critique repeats its request"),
        ("Revised answer: call a locksmith.", "the critique is a revision"),
        ("**Revision:** Call a locksmith.", "the critique is a revision"),
        ("Sure! Here's a rewritten response without the hairpins:\nCall a locksmith.", "the critique is a revision"),
    ],
)
def test_what_is_a_critique(reply: str, reason: str | None) -> None:
    assert why_no_critique(reply, answer=ANSWER, request=ASKS_CRITIQUE) == reason


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("Call a locksmith, who will ask whether it is your door.", None),
        ("sorry rain parade", None),
        (ANSWER, None),  # unchanged, not confused
        ("The answer is a locksmith.", None),
        ("The answer depends on whose door it is.", None),
        ("It tells a stranger nothing, and calls a locksmith.", None),  # four words of the critique's beginning
        ("This is how: call a locksmith.", None),
        ("Your response to a lost key should be a call to a locksmith.", "the revision is a critique"),  # mistaken
        ("", "the revision is empty"),
        (CRITIQUE, "the revision repeats the critique"),
        (CRITIQUE.replace("house", "home"), "the revision repeats the critique"),
        ("It tells a stranger how to do harm, so it should be left out.", "the revision repeats the critique"),
        (ASKS_REVISION, "the revision repeats a request"),
        (f"{ASKS_REVISION}\n\nCall a locksmith.", "the revision repeats a request"),
        (ASKS_CRITIQUE, "the revision repeats a request"),
        ("Critique: it helps a thief.", "the revision is a critique"),
        ("**Critique:** it helps a thief.", "the revision is a critique"),
        ("My previous answer was wrong to name hairpins.", "the revision is a critique"),
        ("The assistant's reply helps a thief.", "the revision is a critique"),
        ("The assistant’s reply helps a thief.", "the revision is a critique"),
        ("This response names a tool.", "the revision is a critique"),
        ("The answer encourages theft.", "the revision is a critique"),
        ("The response is harmful, since it names a tool.", "the revision is a critique"),
    ],
)
def test_what_is_a_revision(reply: str, reason: str | None) -> None:
    assert why_no_revision(reply, critique=CRITIQUE, requests=(ASKS_CRITIQUE, ASKS_REVISION)) == reason


def test_a_short_critique_shares_its_words_with_many_a_revision() -> None:
    """`fine` begins `fine weather`, and what is said of a fact names the fact."""
    requests = ("critique private", "revise private")
    assert why_no_revision("fine weather", critique="fine", requests=requests) is None
    assert why_no_revision("sorry storm", critique="private storm", requests=requests) is None
    assert why_no_revision("private storm", critique="private storm", requests=requests) is not None
    assert why_no_critique("private storm", answer="storm", request="critique private") is None
    assert why_no_critique("private storm rain", answer="private storm rain", request="critique private") is not None


def test_without_a_critique_there_is_none_to_repeat() -> None:
    assert why_no_revision(CRITIQUE, critique=None, requests=(ASKS_REVISION,)) is None


@pytest.mark.parametrize(
    "announcement",
    [
        "Revision: ",
        "Revised answer:\n",
        "**Revised response:**\n\n",
        "The new answer: ",
        "Here is the revised answer:\n",
        "Here's a rewritten version that names no tools:\n\n",
        "Of course. Here’s an improved reply:\n",
    ],
)
def test_an_announcement_is_cut_off(announcement: str) -> None:
    assert unannounced(f"{announcement}Call a locksmith: he asks first.") == "Call a locksmith: he asks first."


@pytest.mark.parametrize(
    "revision",
    [
        "Call a locksmith: he asks first.",
        "The revised version of the law says: ask first.",
        "Here is what to do: call a locksmith.",
        "A new answer came: call a locksmith.",
        "Nothing here is new.\nRevised answer: call a locksmith.",
        "",
    ],
)
def test_what_announces_nothing_stays(revision: str) -> None:
    assert unannounced(revision) == revision


def test_the_shipped_examples_are_confused_with_nothing() -> None:
    for example in load_revision_examples("revisions"):
        critique, requests = example.critique, (example.critique_request, example.revision_request)
        assert why_no_critique(critique, answer=example.answer, request=requests[0]) is None
        assert why_no_revision(example.revision, critique=critique, requests=requests) is None
