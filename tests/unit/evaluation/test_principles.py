"""What each principle did, counted by hand, and verdicts that survive their file."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_records import judgement, pair, preference
from preference_records import row

from rlaif_ray.config import UserError
from rlaif_ray.evaluation.principles import (
    PrincipleFigures,
    PrincipleLabel,
    PrincipleVerdict,
    principle_figures,
    principle_labels,
    read_principle_verdicts,
    write_principle_verdicts,
)
from rlaif_ray.judge.aggregate import combine, opinion_of_orders
from rlaif_ray.preferences.dataset import Member
from rlaif_ray.records import (
    Chain,
    Conduct,
    Message,
    Order,
    Outcome,
    Preference,
    Prompt,
    Revision,
    RevisionOutcome,
)


def gold(prompt: Prompt, answer: str) -> Conduct:
    """Harm is the word `poison`."""
    return Conduct("poison" not in answer.split(), 1.0, False, False)


def revision(principle: str, outcome: RevisionOutcome) -> Revision:
    return Revision(1, principle, None, "an answer", outcome, "", 1)


def of(figures: tuple[PrincipleFigures, ...]) -> dict[str, PrincipleFigures]:
    return {one.principle: one for one in figures}


def test_revisions_are_counted_by_the_principle_that_was_drawn() -> None:
    drawn = [
        [("cruel", RevisionOutcome.REVISED), ("private", RevisionOutcome.UNCHANGED)],
        [("private", RevisionOutcome.REVISED), ("private", RevisionOutcome.CONFUSED)],
        [("private", RevisionOutcome.REVISED), ("cruel", RevisionOutcome.TRUNCATED)],
    ]
    chains = [
        Chain(f"c{number}", Prompt("p", "Say."), "an answer", tuple(revision(*one) for one in rounds))
        for number, rounds in enumerate(drawn)
    ]
    figures = of(principle_figures(chains, [], [], seed=0))
    assert list(figures) == ["cruel", "private"]
    private, cruel = figures["private"], figures["cruel"]
    assert (private.revisions, private.confused) == (4, 1)
    assert (cruel.revisions, cruel.confused) == (2, 0)
    assert private.revised is not None
    assert private.revised.value == 2 / 4
    assert (private.labels, private.agreement, private.decisiveness, private.win_rate) == (0, None, None, None)


def test_labels_by_hand() -> None:
    """Of five labels one has no number. Gold knows which answer is harmless in three of the four: the principle names
    it twice, surely once and hardly once, and is against it once. |2p - 1| is 0.8, 0.1, 0.4 and 0: 1.3 / 4. Of three
    that were asked in both orders one was inconsistent."""
    labels = [
        PrincipleLabel("private", 0.9, True, 1.0),
        PrincipleLabel("private", 0.55, False, 1.0),
        PrincipleLabel("private", 0.7, True, -1.0),
        PrincipleLabel("private", 0.5, None, 0.0),
        PrincipleLabel("private", None, None, 1.0),
    ]
    (figures,) = principle_figures([], labels, [], seed=0)
    assert figures.labels == 4
    assert figures.agreement is not None
    assert figures.agreement.value == pytest.approx(2 / 3)
    assert figures.decisiveness == pytest.approx(1.3 / 4)
    assert figures.consistency is not None
    assert figures.consistency.value == pytest.approx(2 / 3)
    assert (figures.revisions, figures.revised) == (0, None)


def test_without_gold_there_is_no_agreement() -> None:
    (figures,) = principle_figures([], [PrincipleLabel("private", 0.9, True, None)], [], seed=0)
    assert figures.agreement is None
    assert figures.labels == 1


def test_the_win_rate_of_a_principle_leaves_out_what_it_could_not_say() -> None:
    """Won, lost, tied, and won in words that the other order took back, which is a tie: (1 + 0 + 1/2 + 1/2) / 4."""
    said = [(0.8, True), (0.3, True), (0.5, None), (0.6, False), (None, None)]
    verdicts = [PrincipleVerdict(f"v{n}", f"p{n}", "private", p, consistent) for n, (p, consistent) in enumerate(said)]
    (figures,) = principle_figures([], [], verdicts, seed=0)
    assert figures.compared == 4
    assert figures.win_rate is not None
    assert figures.win_rate.value == 0.5


def member(principle: str | None, p: float | None, **changes: object) -> Member:
    fields = {"weight": 1.0, "consistent": True, "contradiction": None, "set_aside": False}
    return Member("judge", "discretion", principle, p=p, **{**fields, **changes})  # type: ignore[arg-type]


def test_labels_come_from_every_member_with_a_principle_on_the_side_of_the_chosen_answer() -> None:
    rows = [
        row(chosen="fact", rejected="poison fact", members=(member("private", 0.9), member("cruel", 0.4))),
        row(chosen="poison", rejected="fact", members=(member("private", None),)),
        row(chosen="fact", rejected="more", members=(member(None, 0.8),)),
        row(chosen="fact", rejected="more"),  # a person's
    ]
    assert principle_labels(rows, gold) == [
        PrincipleLabel("private", 0.9, True, 1.0),
        PrincipleLabel("cruel", 0.4, True, 1.0),
        PrincipleLabel("private", None, True, -1.0),
    ]
    assert [label.harmless_margin for label in principle_labels(rows, None)] == [None] * 3


def test_answers_to_conversations_are_judged_by_their_text() -> None:
    asked = (Message("user", "Say."),)
    talk = row(
        prompt=asked,
        chosen=(Message("assistant", "fact"),),
        rejected=(Message("assistant", "poison"),),
        members=(member("private", 0.9),),
    )
    assert principle_labels([talk], gold) == [PrincipleLabel("private", 0.9, True, 1.0)]


def by_principles(number: int, *principles: str | None) -> Preference:
    """One opinion a principle, each 0.8 for response_a in both orders."""
    opinions = [
        opinion_of_orders(
            [
                judgement(pair(number), order, p_first, principle=principle)
                for order, p_first in ((Order.AB, 0.8), (Order.BA, 0.2))
            ],
            1.0,
        )
        for principle in principles
    ]
    return combine(pair(number), opinions, "log_odds")


def test_verdicts_are_written_for_every_principle_that_was_asked(tmp_path: Path) -> None:
    path = tmp_path / "principles.parquet"
    failed = preference(pair(3), None, None, Outcome.FAILED)
    pairs = [pair(number) for number in range(4)]
    write_principle_verdicts(path, pairs, [by_principles(0, "private", "cruel"), None, by_principles(2, None), failed])
    written = read_principle_verdicts(path)
    assert written is not None
    assert [(one.pair_id, one.prompt_id, one.principle, one.consistent) for one in written] == [
        ("pair-0", "prompt-0", "private", True),
        ("pair-0", "prompt-0", "cruel", True),
    ]
    assert [one.p for one in written] == pytest.approx([0.8, 0.8])


def test_what_could_not_be_said_is_kept_without_a_number(tmp_path: Path) -> None:
    path = tmp_path / "principles.parquet"
    silent = [judgement(pair(), order, None, Outcome.ABSTAINED, principle="private") for order in (Order.AB, Order.BA)]
    write_principle_verdicts(path, [pair()], [combine(pair(), [opinion_of_orders(silent, 1.0)], "log_odds")])
    assert read_principle_verdicts(path) == (PrincipleVerdict("pair-0", "prompt-0", "private", None, None),)


def test_no_file_is_none_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "principles.parquet"
    assert read_principle_verdicts(path) is None
    path.write_text("{ broken")
    with pytest.raises(UserError, match=r"principles\.parquet: is not a parquet file"):
        read_principle_verdicts(path)


LABEL = st.builds(
    PrincipleLabel,
    st.sampled_from(["private", "cruel", "false"]),
    st.none() | st.floats(0, 1),
    st.none() | st.booleans(),
    st.none() | st.sampled_from([-1.0, 0.0, 1.0]),
)


@given(st.lists(LABEL, max_size=30))
def test_every_label_with_a_number_is_counted_once(labels: list[PrincipleLabel]) -> None:
    figures = principle_figures([], labels, [], seed=0)
    assert sum(one.labels for one in figures) == sum(label.p is not None for label in labels)
    assert [one.principle for one in figures] == sorted({label.principle for label in labels})
