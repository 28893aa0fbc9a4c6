"""Rates of conduct, by a gold that was made up for the test, and by phrases where there is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.evaluation.conduct import chain_rates, conduct_rates
from rlaif_ray.records import Chain, Conduct, Estimate, Prompt, Revision, RevisionOutcome

REVISED, UNCHANGED, CONFUSED, TRUNCATED = RevisionOutcome


def gold(prompt: Prompt, answer: str) -> Conduct:
    """Harm is the word `poison`; each `fact` is a third of the help; `sorry` declines; no fact is evasive."""
    words = answer.split()
    return Conduct(
        harmless="poison" not in words,
        helpfulness=min(1.0, words.count("fact") / 3),
        declines="sorry" in words,
        evasive="fact" not in words,
    )


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{number}", f"Say {number}.") for number in range(count)]


def value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def test_rates_by_hand() -> None:
    """Red-team answers 0 to 3: harmful; harmless and helpful in part; declined; harmful and declined. Ordinary answers
    4 and 5: whole, and declined without need. Helpfulness in thirds: 1, 2, 0, 0, 3, 0, which is 6 / 18 over all and
    3 / 6 over the last two."""
    answers = ["poison fact", "fact fact", "sorry", "sorry poison", "fact fact fact", "sorry"]
    rates = conduct_rates(prompts(6), answers, {"p0", "p1", "p2", "p3"}, gold, seed=0)
    assert (rates.judged_by, rates.red_team, rates.ordinary) == ("gold", 4, 2)
    assert value(rates.harmless) == 2 / 4
    assert value(rates.helpfulness) == pytest.approx(6 / 18)
    assert value(rates.ordinary_helpfulness) == pytest.approx(3 / 6)
    assert value(rates.evasive) == 3 / 6
    assert value(rates.refusals) == 2 / 4
    assert value(rates.needless_refusals) == 1 / 2


def test_the_harmless_rate_has_a_wilson_interval() -> None:
    """8 of 10, as derived in the tests of `proportion`."""
    answers = ["fact"] * 8 + ["poison"] * 2
    harmless = conduct_rates(prompts(10), answers, {prompt.id for prompt in prompts(10)}, gold, seed=0).harmless
    assert harmless is not None
    assert (harmless.low, harmless.high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)


def test_without_gold_phrases_tell_refusals_and_nothing_tells_harm() -> None:
    answers = ["I can't help with that.", "I won't do that, but you could ask her.", "", "The key is under the mat."]
    rates = conduct_rates(prompts(4), answers, {"p0", "p1"}, None, seed=0)
    assert rates.judged_by == "phrases"
    assert (rates.harmless, rates.helpfulness, rates.ordinary_helpfulness) == (None, None, None)
    assert (value(rates.refusals), value(rates.needless_refusals)) == (2 / 2, 0 / 2)
    assert value(rates.evasive) == 2 / 4


def test_a_kind_of_prompt_that_is_not_there_has_no_rate() -> None:
    rates = conduct_rates(prompts(2), ["fact", "fact"], set(), gold, seed=0)
    assert (rates.red_team, rates.ordinary) == (0, 2)
    assert (rates.harmless, rates.refusals) == (None, None)
    assert value(rates.needless_refusals) == 0.0


@given(st.lists(st.tuples(st.sampled_from(["poison", "fact", "sorry", ""]), st.booleans()), max_size=12))
def test_rates_are_shares_and_do_not_mind_the_order(answers: list[tuple[str, bool]]) -> None:
    asked = prompts(len(answers))
    red_team = {prompt.id for prompt, (_, is_red_team) in zip(asked, answers, strict=True) if is_red_team}
    texts = [text for text, _ in answers]
    rates = conduct_rates(asked, texts, red_team, gold, seed=0)
    turned = conduct_rates(asked[::-1], texts[::-1], red_team, gold, seed=0)
    for name in ("harmless", "helpfulness", "evasive", "refusals", "needless_refusals"):
        assert value(getattr(rates, name)) == pytest.approx(value(getattr(turned, name)))
        assert (value(getattr(rates, name)) or 0.0) <= 1.0
    assert (rates.harmless is None) == (not red_team)


def chain(number: int, answer: str, *revisions: tuple[str, RevisionOutcome]) -> Chain:
    return Chain(
        f"c{number}",
        Prompt(f"p{number}", "Say."),
        answer,
        tuple(
            Revision(round, "kind", "a critique", text, outcome, "", 1)
            for round, (text, outcome) in enumerate(revisions, start=1)
        ),
    )


CHAINS = (
    chain(0, "poison fact", ("sorry fact", REVISED), ("sorry fact", UNCHANGED)),
    chain(1, "poison fact fact", ("poison fact fact", CONFUSED), ("sorry", REVISED)),
    chain(2, "fact", ("fact", UNCHANGED), ("fact", TRUNCATED)),
)


def test_rates_by_round_by_hand() -> None:
    """Harmless: the third alone, then the first too, then all. Helpfulness in thirds: 1, 2, 1; 1, 2, 1; 1, 0, 1.
    Words: 2, 3, 1; 2, 3, 1; 2, 1, 1."""
    rates = chain_rates(CHAINS, gold, seed=0)
    assert [one.round for one in rates] == [0, 1, 2]
    assert [value(one.harmless) for one in rates] == pytest.approx([1 / 3, 2 / 3, 3 / 3])
    assert [value(one.helpfulness) for one in rates] == pytest.approx([4 / 9, 4 / 9, 2 / 9])
    assert [value(one.evasive) for one in rates] == pytest.approx([0, 0, 1 / 3])
    assert [value(one.refusals) for one in rates] == pytest.approx([0, 1 / 3, 2 / 3])
    assert [one.mean_words for one in rates] == pytest.approx([6 / 3, 6 / 3, 4 / 3])
    assert [dict(one.outcomes) for one in rates] == [
        {REVISED: 0, UNCHANGED: 0, CONFUSED: 0, TRUNCATED: 0},
        {REVISED: 1, UNCHANGED: 1, CONFUSED: 1, TRUNCATED: 0},
        {REVISED: 1, UNCHANGED: 1, CONFUSED: 0, TRUNCATED: 1},
    ]


def test_a_round_counts_the_chains_that_came_to_it() -> None:
    rates = chain_rates([*CHAINS, chain(3, "poison", ("sorry", REVISED))], gold, seed=0)
    assert [value(one.harmless) for one in rates] == pytest.approx([1 / 4, 3 / 4, 3 / 3])


def test_rounds_without_gold_are_judged_by_phrases() -> None:
    rates = chain_rates(CHAINS, None, seed=0)
    assert [one.harmless for one in rates] == [None] * 3
    assert [value(one.refusals) for one in rates] == pytest.approx([0, 1 / 3, 2 / 3])
    assert [value(one.evasive) for one in rates] == pytest.approx([0, 0, 1 / 3])


def test_no_chain_has_no_rates() -> None:
    assert chain_rates([], gold, seed=0) == ()
