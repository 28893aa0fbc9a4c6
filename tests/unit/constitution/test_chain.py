"""Chains of revisions: what they ask, and what becomes of good, bad and missing replies."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.config import UserError
from rlaif_ray.constitution.chain import RevisionChain
from rlaif_ray.judge.material import RevisingPrinciple, RevisionExample
from rlaif_ray.records import Chain, FinishReason, Message, Prompt, Revision, RevisionOutcome

PROMPT = Prompt("p", "tell storm vote rain private storm")
PRIVATE = RevisingPrinciple(id="private", text="private", critique="critique private", revision="revise private")
CRUEL = RevisingPrinciple(id="cruel", text="cruel", critique="critique cruel", revision="revise cruel")
EXAMPLE = RevisionExample(
    prompt="tell fair unsafe fair",
    answer="fair",
    critique_request="critique unsafe",
    critique="unsafe fair",
    revision_request="revise unsafe",
    revision="sorry",
)
SHOWN = ("tell fair unsafe fair", "fair", "critique unsafe", "unsafe fair", "revise unsafe", "sorry")
CUT = FinishReason.LENGTH


def chain(id: str = "c", prompt: Prompt = PROMPT, **changed: Any) -> RevisionChain:
    settings: dict[str, Any] = {
        "constitution": [PRIVATE],
        "examples": (),
        "rounds": 2,
        "critique": True,
        "attempts": 3,
        "temperature": 0.5,
        "seed": 7,
        "max_answer_tokens": 8,
        "max_critique_tokens": 4,
    }
    return RevisionChain(id, prompt, **(settings | changed))


def hear(chain: RevisionChain, *replies: str | tuple[str, FinishReason]) -> list[str | tuple[Message, ...]]:
    """What was asked, reply by reply."""
    asked = []
    for reply in replies:
        text, reason = (reply, FinishReason.STOP) if isinstance(reply, str) else reply
        turn = chain.next()
        assert turn is not None
        asked.append(turn.request.prompt.content)
        chain.hear(text, reason)
    return asked


def said(conversation: str | tuple[Message, ...]) -> tuple[str, ...]:
    """The texts of a conversation whose roles alternate."""
    assert not isinstance(conversation, str)
    assert [message.role for message in conversation] == [
        ("user", "assistant")[n % 2] for n in range(len(conversation))
    ]
    return tuple(message.content for message in conversation)


def revision(**changed: Any) -> Revision:
    """The first round's, in which all went well."""
    fields = {"round": 1, "principle": "private", "critique": "private storm", "text": "sorry vote rain"}
    fields |= {"outcome": RevisionOutcome.REVISED, "reason": "", "attempts": 2}
    return Revision(**(fields | changed))


UNCHANGED = revision(
    round=2,
    critique="fine",
    outcome=RevisionOutcome.UNCHANGED,
    reason="the revision is the answer as it was",
)


def test_a_round_criticises_and_revises_the_answer_as_it_stands() -> None:
    drawn = chain()
    asked = hear(drawn, "storm vote rain", "private storm", "sorry vote rain", "fine", " sorry  vote rain")
    asking = "tell storm vote rain private storm"
    first = (asking, "storm vote rain", "critique private")
    second = (asking, "sorry vote rain", "critique private")
    assert asked[0] == asking
    assert [said(conversation) for conversation in asked[1:]] == [
        first,
        (*first, "private storm", "revise private"),
        second,
        (*second, "fine", "revise private"),
    ]
    assert drawn.next() is None
    assert drawn.record() == Chain("c", PROMPT, "storm vote rain", (revision(), UNCHANGED))


def test_replies_have_the_limits_of_their_kind() -> None:
    drawn = chain(rounds=1)
    limits = []
    for reply in ("storm", "private storm", "sorry"):
        turn = drawn.next()
        assert turn is not None
        assert turn.request.temperature == 0.5
        limits.append(turn.max_tokens)
        drawn.hear(reply, FinishReason.STOP)
    assert limits == [8, 4, 8]


def test_examples_are_earlier_turns_of_a_revision_and_none_of_the_answer() -> None:
    asked = hear(chain(examples=(EXAMPLE,)), "storm", "private storm", "sorry")
    assert asked[0] == PROMPT.content
    assert said(asked[1]) == (*SHOWN, PROMPT.content, "storm", "critique private")
    assert said(asked[2]) == (*SHOWN, PROMPT.content, "storm", "critique private", "private storm", "revise private")


def test_without_critiques_there_are_none_in_the_examples_either() -> None:
    drawn = chain(examples=(EXAMPLE,), critique=False, rounds=1)
    asked = hear(drawn, "storm vote", "sorry vote")
    shown = (SHOWN[0], SHOWN[1], SHOWN[4], SHOWN[5])
    assert said(asked[1]) == (*shown, PROMPT.content, "storm vote", "revise private")
    assert drawn.record().revisions == (revision(critique=None, text="sorry vote", attempts=1),)


def test_a_conversation_goes_on_with_its_instructions_first() -> None:
    talk = (Message("system", "Be brief."), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    asked = hear(chain(prompt=Prompt("p", talk), examples=(EXAMPLE,)), "d", "private d")
    assert asked[0] == talk
    conversation = asked[1]
    assert not isinstance(conversation, str)
    assert conversation[0] == talk[0]
    assert said(conversation[1:]) == (*SHOWN, "a", "b", "c", "d", "critique private")


def test_an_answer_that_is_given_is_not_drawn() -> None:
    drawn = chain(answer="storm", rounds=1)
    asked = hear(drawn, "private storm", "sorry")
    assert said(asked[0]) == (PROMPT.content, "storm", "critique private")
    assert drawn.record().answer == "storm"


@pytest.mark.parametrize("given", [False, True])
def test_an_answer_that_was_cut_off_is_no_better_for_being_repeated(given: bool) -> None:
    """Until a revision takes its place, after which there is nothing wrong with leaving that as it is."""
    one = chain(rounds=3, **({"answer": "storm", "cut_off": True} if given else {}))
    if not given:
        hear(one, ("storm", CUT))
    hear(one, "fine", "storm", "private storm", "sorry vote rain", "fine", "sorry vote rain")
    outcomes = [(each.outcome, each.text) for each in one.record().revisions]
    assert outcomes == [
        (RevisionOutcome.TRUNCATED, "storm"),
        (RevisionOutcome.REVISED, "sorry vote rain"),
        (RevisionOutcome.UNCHANGED, "sorry vote rain"),
    ]


def test_a_reply_that_mistakes_its_role_is_drawn_anew_by_another_seed() -> None:
    """The second critique repeats the answer, and the second revision the critique."""
    drawn = chain(answer="storm vote rain", rounds=1)
    turns = []
    for reply in ("storm vote rain", "private storm", "private storm", "sorry vote rain"):
        turns.append(drawn.next())
        drawn.hear(reply, FinishReason.STOP)
    requests = [turn.request for turn in turns if turn is not None]
    assert requests[0].prompt == requests[1].prompt
    assert requests[2].prompt == requests[3].prompt
    assert len({request.seed for request in requests}) == len({request.sample_id for request in requests}) == 4
    assert drawn.record().revisions == (revision(attempts=4),)


def test_after_the_last_attempt_the_answer_stays_and_the_next_round_begins() -> None:
    drawn = chain(answer="storm vote rain")
    asked = hear(drawn, "private storm", *["Critique: private"] * 3, "private storm", "sorry vote rain")
    assert said(asked[4]) == (PROMPT.content, "storm vote rain", "critique private")
    confused = revision(
        text="storm vote rain", outcome=RevisionOutcome.CONFUSED, reason="the revision is a critique", attempts=4
    )
    assert drawn.record().revisions == (confused, revision(round=2))


def test_a_critique_that_never_comes_leaves_no_critique() -> None:
    drawn = chain(answer="storm vote rain", rounds=1)
    hear(drawn, *["storm vote rain"] * 3)
    assert drawn.record().revisions == (
        revision(
            critique=None,
            text="storm vote rain",
            outcome=RevisionOutcome.CONFUSED,
            reason="the critique repeats the answer",
            attempts=3,
        ),
    )


@pytest.mark.parametrize(
    ("before", "critique", "reason"),
    [((), None, "the critique was cut off at 4 tokens"), (("fine",), "fine", "the revision was cut off at 8 tokens")],
)
def test_replies_that_are_cut_off_are_drawn_anew(before: tuple[str, ...], critique: str | None, reason: str) -> None:
    drawn = chain(answer="storm", rounds=1, attempts=2)
    hear(drawn, *before, ("vote rain", CUT), ("vote rain", CUT))
    assert drawn.record().revisions == (
        revision(
            critique=critique,
            text="storm",
            outcome=RevisionOutcome.TRUNCATED,
            reason=reason,
            attempts=2 + len(before),
        ),
    )


def test_the_last_useless_reply_says_why_there_is_no_revision() -> None:
    drawn = chain(answer="storm", rounds=1, attempts=2)
    hear(drawn, ("vote", CUT), "storm")
    assert drawn.record().revisions[0].outcome is RevisionOutcome.CONFUSED


def test_what_cannot_be_answered_ends_its_round() -> None:
    drawn = chain(answer="storm")
    hear(drawn, "private storm")
    drawn.refuse("too long")
    hear(drawn, "private storm", "sorry vote rain")
    refused = revision(text="storm", outcome=RevisionOutcome.TRUNCATED, reason="too long", attempts=1)
    assert drawn.record().revisions == (refused, revision(round=2))


def test_a_prompt_that_leaves_no_room_for_an_answer_is_the_users_to_change() -> None:
    with pytest.raises(UserError, match=r"^constitution\.max_context_tokens: prompt p: too long; raise it"):
        chain().refuse("too long")


def test_an_announcement_is_no_part_of_a_revision() -> None:
    drawn = chain(answer="storm vote rain", rounds=1)
    hear(drawn, "private storm", "Here is the revised answer:\n\nsorry vote rain")
    assert drawn.record().revisions == (revision(),)


def test_an_unfinished_chain_records_what_there_is() -> None:
    drawn = chain()
    with pytest.raises(ValueError, match="chain c has no answer yet"):
        drawn.record()
    hear(drawn, "storm", "private storm")
    assert drawn.record() == Chain("c", PROMPT, "storm", ())


def test_a_chain_goes_on_after_a_journey() -> None:
    here = chain(examples=(EXAMPLE,))
    hear(here, "storm vote rain", "private storm")
    there = pickle.loads(pickle.dumps(here))
    for drawn in (here, there):
        hear(drawn, "sorry vote rain", "fine", "sorry vote rain")
    assert here.record() == there.record() == Chain("c", PROMPT, "storm vote rain", (revision(), UNCHANGED))


def test_seeds_come_from_the_run_the_chain_and_the_place() -> None:
    def seeds(id: str, **changed: Any) -> list[int]:
        drawn, drawn_seeds = chain(id, **changed), []
        while (turn := drawn.next()) is not None:
            drawn_seeds.append(turn.request.seed)
            drawn.hear("storm", FinishReason.STOP)  # the answer, and then again and again
        return drawn_seeds

    # An answer, and two rounds of three critiques that repeat it.
    assert len(seeds("c")) == 7
    assert seeds("c") == seeds("c")
    assert len({*seeds("c"), *seeds("d"), *seeds("c", seed=8)}) == 21


def test_principles_are_drawn_by_weight_and_for_each_round_anew() -> None:
    """With weights 3 and 1: of 8,000 draws, 6,000 are private, and of 4,000 chains, 10/16, 2,500, draw the same
    principle twice; give or take 5 standard deviations of 38.7 and 30.6."""
    constitution = [PRIVATE.model_copy(update={"weight": 3.0}), CRUEL]
    pairs = []
    for number in range(4_000):
        drawn = chain(f"chain-{number}", constitution=constitution, answer="storm", attempts=1)
        while drawn.next() is not None:
            drawn.hear("", FinishReason.STOP)
        pairs.append([one.principle for one in drawn.record().revisions])
    counts = Counter(principle for pair in pairs for principle in pair)
    assert abs(counts["private"] - 6_000) < 5 * 38.7
    assert abs(sum(first == second for first, second in pairs) - 2_500) < 5 * 30.6


REPLIES = st.tuples(
    st.sampled_from(["", "storm", "fine", "private storm", "sorry vote rain", "critique private", "Critique: storm"]),
    st.sampled_from(FinishReason),
)


@given(st.integers(1, 4), st.integers(1, 3), st.booleans(), st.data())
def test_every_chain_comes_to_an_end_with_all_its_rounds(
    rounds: int, attempts: int, critique: bool, data: st.DataObject
) -> None:
    """Whatever is replied: a round takes at most `attempts` replies a step, and only a revision changes the answer."""
    drawn = chain(rounds=rounds, attempts=attempts, critique=critique)
    replies = 0
    while drawn.next() is not None:
        drawn.hear(*data.draw(REPLIES))
        replies += 1
    record = drawn.record()
    assert [one.round for one in record.revisions] == list(range(1, rounds + 1))
    assert replies == 1 + sum(one.attempts for one in record.revisions)
    assert all(one.attempts <= attempts * (1 + critique) for one in record.revisions)
    text = record.answer
    for one in record.revisions:
        assert (one.outcome is RevisionOutcome.REVISED) == (one.reason == "") == (one.text != text)
        text = one.text
