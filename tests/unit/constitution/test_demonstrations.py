"""What SFT imitates after a constitution was applied."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.config import ConstitutionConfig, PromptsConfig
from rlaif_ray.constitution.demonstrations import mixed, revised_demonstrations
from rlaif_ray.records import Chain, Demonstration, Prompt, Revision, RevisionOutcome

REVISED, UNCHANGED = RevisionOutcome.REVISED, RevisionOutcome.UNCHANGED
CONFUSED, TRUNCATED = RevisionOutcome.CONFUSED, RevisionOutcome.TRUNCATED


def config(train_on: Literal["last", "all"] = "last", train_rounds: int | None = None) -> ConstitutionConfig:
    return ConstitutionConfig(
        prompts=PromptsConfig(path="red.jsonl"), rounds=3, train_on=train_on, train_rounds=train_rounds
    )


def chain(*rounds: tuple[str, RevisionOutcome]) -> Chain:
    revisions = tuple(
        Revision(number, "p", "c", text, outcome, "", 1) for number, (text, outcome) in enumerate(rounds, start=1)
    )
    return Chain("c", Prompt("q", "question"), "plain", revisions)


def texts(chains: list[Chain], config: ConstitutionConfig) -> list[str]:
    return [one.answer for one in revised_demonstrations(chains, config)]


THREE = chain(("one", REVISED), ("one", UNCHANGED), ("three", REVISED))


@pytest.mark.parametrize(
    ("train_on", "rounds", "wanted"),
    [
        ("last", None, ["three"]),
        ("last", 2, ["one"]),
        ("last", 1, ["one"]),
        ("all", None, ["one", "one", "three"]),
        ("all", 2, ["one", "one"]),
    ],
)
def test_the_last_revision_or_all_of_the_rounds_that_are_trained_on(
    train_on: Literal["last", "all"], rounds: int | None, wanted: list[str]
) -> None:
    assert texts([THREE], config(train_on, rounds)) == wanted


def test_a_round_that_went_wrong_is_no_demonstration() -> None:
    """The answer stands as it was after such a round: to train on it would teach what nobody revised."""
    late = chain(("one", REVISED), ("one", CONFUSED), ("one", TRUNCATED))
    never = chain(("plain", CONFUSED), ("plain", TRUNCATED), ("plain", CONFUSED))
    assert texts([late, never], config()) == ["one"]
    assert texts([late, never], config("all")) == ["one"]


def test_an_answer_with_nothing_to_change_is_kept_and_an_empty_one_is_not() -> None:
    kept = chain(("plain", UNCHANGED), ("plain", UNCHANGED), ("", REVISED))
    assert texts([kept], config()) == ["plain"]


@given(
    revised=st.integers(0, 30), helpful=st.integers(0, 30), ratio=st.floats(0, 3, allow_nan=False), seed=st.integers(0)
)
def test_the_mixture_has_every_revision_and_the_stated_share_of_others(
    revised: int, helpful: int, ratio: float, seed: int
) -> None:
    ours = [Demonstration(Prompt(f"r{number}", "q"), "revised") for number in range(revised)]
    others = [Demonstration(Prompt(f"h{number}", "q"), "helpful") for number in range(helpful)]
    mixture = mixed(ours, others, ratio, seed)
    assert mixture[:revised] == ours
    drawn = mixture[revised:]
    assert len(drawn) == min(round(ratio * revised), helpful)
    assert len({one.prompt.id for one in drawn}) == len(drawn)
    assert set(drawn) <= set(others)
    assert mixed(ours, others, ratio, seed) == mixture
