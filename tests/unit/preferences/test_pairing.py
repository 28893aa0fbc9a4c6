import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.judge.hygiene import NotSent, why_not_sent
from rlaif_ray.preferences.pairing import Answer, AnsweredPrompt, PairDraw, Pairing, draw_pairs, score_gap, uncertainty
from rlaif_ray.records import Pair, Prompt

PAIRINGS: tuple[Pairing, ...] = ("random", "all", "best_worst", "active")


def answered(*texts: str, prompt: str = "p") -> AnsweredPrompt:
    """Answers with the ids p0, p1, ... of a prompt p."""
    return AnsweredPrompt(
        Prompt(prompt, "Say something."), tuple(Answer(f"{prompt}{number}", text) for number, text in enumerate(texts))
    )


def drawn(*prompts: AnsweredPrompt, pairing: Pairing = "random", **changed: Any) -> PairDraw:
    settings = {"pairs_per_prompt": 3, "seed": 0, "similarity_bound": 1.0} | changed
    return draw_pairs(prompts, pairing, **settings)


def samples(draw: PairDraw) -> list[set[str | None]]:
    return [{pair.sample_a, pair.sample_b} for pair in draw.pairs]


def test_as_many_pairs_as_asked_and_none_twice() -> None:
    draw = drawn(answered("a", "b", "c", "d"))
    assert len(draw.pairs) == 3
    assert len({frozenset(pair) for pair in samples(draw)}) == 3
    assert not draw.not_sent


def test_identical_answers_are_counted_and_others_take_their_place() -> None:
    """Of a, a, b: one pair is identical and two are not. Asked for 3, it gives the 2 and counts the 1."""
    draw = drawn(answered("a", " a\n", "b"))
    assert sorted(map(sorted, samples(draw))) == [["p0", "p2"], ["p1", "p2"]]
    assert draw.not_sent == {NotSent.IDENTICAL: 1}


def test_the_same_seed_draws_the_same_and_seeds_and_prompts_differ() -> None:
    first = drawn(answered(*"abcdefgh"), seed=1, pairs_per_prompt=5)
    assert drawn(answered(*"abcdefgh"), seed=1, pairs_per_prompt=5) == first
    assert drawn(answered(*"abcdefgh"), seed=2, pairs_per_prompt=5) != first
    other = drawn(answered(*"abcdefgh", prompt="q"), seed=1, pairs_per_prompt=5)
    assert [pair.response_a + pair.response_b for pair in other.pairs] != [
        pair.response_a + pair.response_b for pair in first.pairs
    ]


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_neither_place_belongs_to_the_earlier_or_the_better_sample(pairing: Pairing) -> None:
    """Of 200 prompts the first of two answers is the better one; it is shown first for 60 to 140 of them, which a fair
    coin misses once in 10^8 times."""
    prompts = [answered("a", "b", prompt=f"prompt-{number}-") for number in range(200)]
    scores = {f"prompt-{number}-{place}": (1.0 - place,) for number in range(200) for place in range(2)}
    firsts = [pair.response_a for pair in drawn(*prompts, pairing=pairing, pairs_per_prompt=1, scores=scores).pairs]
    assert len(firsts) == 200
    assert 60 < firsts.count("a") < 140


def test_what_is_not_sent_is_counted_by_reason() -> None:
    """Of a word, the same word with a space, a sentence of 60 characters and the same but for one, one pair is
    identical, one is .983 similar, and four are worth asking about."""
    sentence = "the parade drew a crowd to the square and the rain held off "[:59]
    draw = drawn(answered("storm", "storm ", sentence + ".", sentence + "!"), pairing="all", similarity_bound=0.95)
    assert draw.not_sent == {NotSent.IDENTICAL: 1, NotSent.NEAR_IDENTICAL: 1}
    assert len(draw.pairs) == 4


def test_a_pair_keeps_its_prompt_and_samples() -> None:
    (pair,) = drawn(answered("x", "y")).pairs
    by_sample = {"p0": "x", "p1": "y"}
    assert pair.prompt == Prompt("p", "Say something.")
    assert (by_sample[pair.sample_a or ""], by_sample[pair.sample_b or ""]) == (pair.response_a, pair.response_b)
    assert pair.id == f"{pair.sample_a}~{pair.sample_b}"


def test_the_best_meets_the_worst_by_the_mean_of_the_members() -> None:
    """Means 2, 1, -1, 0: the first against the third, although one member alone sees the second against the fourth
    farthest apart (9 to -9)."""
    scores = {"p0": (2.0, 2.0), "p1": (9.0, -7.0), "p2": (-1.0, -1.0), "p3": (-9.0, 9.0)}
    assert samples(drawn(answered(*"abcd"), pairing="best_worst", scores=scores)) == [{"p0", "p2"}]


def test_the_next_pair_by_gap_takes_the_place_of_a_best_and_worst_that_are_the_same() -> None:
    """Scores 3, 0, 1 of a, a, b: the gap of 3 is between equal texts; then comes 3 - 1 = 2, before 1 - 0."""
    draw = drawn(answered("a", "a ", "b"), pairing="best_worst", scores={"p0": (3.0,), "p1": (0.0,), "p2": (1.0,)})
    assert samples(draw) == [{"p0", "p2"}]
    assert draw.not_sent == {NotSent.IDENTICAL: 1}


def test_uncertainty_of_an_ensemble_and_of_one_model() -> None:
    """Differences 1 and -3 lie 2 to each side of their mean; members that agree on the difference are sure of it, be
    it 0. One model is least sure of equal scores."""
    assert uncertainty((2.0, 0.0), (1.0, 3.0)) == 2.0
    assert uncertainty((5.0, 1.0), (4.0, 0.0)) == 0.0
    assert uncertainty((2.0,), (0.5,)) == uncertainty((0.5,), (2.0,)) == -1.5
    assert score_gap((2.0, 0.0), (1.0, 3.0)) == 1.0


def test_the_budget_goes_where_the_ensemble_disagrees_whichever_the_prompt() -> None:
    """Two prompts of one pair each: a budget of 2. The differences at p are (1, 1), (1, -1), (0, -2), of which the last
    two have a deviation of 1; at q (4, 4) has none. All the budget goes to p, whose first pair is as sure as q's."""
    scores = {"p0": (1.0, 1.0), "p1": (0.0, 0.0), "p2": (0.0, 2.0), "q0": (4.0, 4.0), "q1": (0.0, 0.0)}
    draw = drawn(answered(*"ab", prompt="q"), answered(*"abc"), pairing="active", pairs_per_prompt=1, scores=scores)
    assert sorted(map(sorted, samples(draw))) == [["p0", "p2"], ["p1", "p2"]]


def test_one_model_is_asked_about_what_it_finds_alike_and_equal_texts_are_not() -> None:
    """|differences| .1 between equal texts, then .5 and .6."""
    draw = drawn(
        answered("a", " a", "b"),
        pairing="active",
        pairs_per_prompt=1,
        scores={"p0": (0.0,), "p1": (0.1,), "p2": (0.6,)},
    )
    assert samples(draw) == [{"p1", "p2"}]
    assert draw.not_sent == {NotSent.IDENTICAL: 1}


@pytest.mark.parametrize("pairing", ["best_worst", "active"])
def test_answers_without_scores_are_left_out_and_no_scores_at_all_are_an_error(pairing: Pairing) -> None:
    draw = drawn(answered(*"abc"), pairing=pairing, scores={"p0": (0.0,), "p2": (1.0,)})
    assert samples(draw) == [{"p0", "p2"}]
    with pytest.raises(ValueError, match=f"{pairing} needs scores"):
        drawn(answered(*"abc"), pairing=pairing)


texts = st.lists(st.sampled_from(["storm", "storm ", "vote", "fair", "rain", "fires"]), max_size=6)


@given(st.lists(texts, max_size=4), st.sampled_from(PAIRINGS), st.integers(1, 6), st.integers(0, 3), st.data())
def test_every_pairing_spends_its_budget_on_distinct_pairs_that_are_worth_it(
    answers: list[list[str]], pairing: Pairing, count: int, seed: int, data: st.DataObject
) -> None:
    """Against a count of all pairs that are worth sending, by brute force."""
    prompts = [answered(*row, prompt=f"{name}-") for name, row in enumerate(answers)]
    members = data.draw(st.integers(1, 3))
    score = st.tuples(*[st.integers(-3, 3).map(float)] * members)
    scores = {answer.sample_id: data.draw(score) for one in prompts for answer in one.answers}
    draw = drawn(*prompts, pairing=pairing, pairs_per_prompt=count, seed=seed, scores=scores)

    worth = [
        sum(
            why_not_sent(Pair("", one.prompt, a.text, b.text), 1.0) is None
            for a, b in itertools.combinations(one.answers, 2)
        )
        for one in prompts
    ]
    expected = {
        "random": sum(min(count, most) for most in worth),
        "all": sum(worth),
        "best_worst": sum(most > 0 for most in worth),
        "active": min(count * len(prompts), sum(worth)),
    }[pairing]
    assert len(draw.pairs) == len({frozenset(pair) for pair in samples(draw)}) == expected
    assert all(why_not_sent(pair, 1.0) is None for pair in draw.pairs)
    assert [int(pair.prompt.id[:-1]) for pair in draw.pairs] == sorted(int(pair.prompt.id[:-1]) for pair in draw.pairs)
    if pairing == "active":
        of = {pair.id: uncertainty(scores[pair.sample_a or ""], scores[pair.sample_b or ""]) for pair in draw.pairs}
        rest = drawn(*prompts, pairing="all", seed=seed).pairs
        left = [
            uncertainty(scores[pair.sample_a or ""], scores[pair.sample_b or ""]) for pair in rest if pair.id not in of
        ]
        assert max(left, default=-99.0) <= min(of.values(), default=99.0)
