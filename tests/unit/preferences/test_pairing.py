from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.judge.hygiene import NotSent
from rlaif_ray.preferences.pairing import Answer, draw_pairs
from rlaif_ray.records import Prompt

PROMPT = Prompt("prompt-1", "Say something.")


def answers(*texts: str) -> list[Answer]:
    return [Answer(f"sample-{number}", text) for number, text in enumerate(texts)]


def test_as_many_pairs_as_asked_and_none_twice() -> None:
    draw = draw_pairs(PROMPT, answers("a", "b", "c", "d"), 3, seed=0, similarity_bound=1.0)
    assert len(draw.pairs) == 3
    assert len({frozenset((pair.sample_a, pair.sample_b)) for pair in draw.pairs}) == 3
    assert not draw.not_sent


def test_identical_answers_are_counted_and_others_take_their_place() -> None:
    """Of a, a, b: one pair is identical and two are not. Asked for 3, it gives the 2 and counts the 1."""
    draw = draw_pairs(PROMPT, answers("a", " a\n", "b"), 3, seed=0, similarity_bound=1.0)
    assert len(draw.pairs) == 2
    assert draw.not_sent == {NotSent.IDENTICAL: 1}
    assert all({pair.response_a.strip(), pair.response_b} & {"b"} or pair.response_a == "b" for pair in draw.pairs)


def test_the_same_seed_draws_the_same_and_seeds_and_prompts_differ() -> None:
    sampled = answers(*"abcdefgh")
    first = draw_pairs(PROMPT, sampled, 5, seed=1, similarity_bound=1.0)
    assert draw_pairs(PROMPT, sampled, 5, seed=1, similarity_bound=1.0) == first
    assert draw_pairs(PROMPT, sampled, 5, seed=2, similarity_bound=1.0) != first
    other = draw_pairs(Prompt("prompt-2", "Say something."), sampled, 5, seed=1, similarity_bound=1.0)
    assert [pair.id for pair in other.pairs] != [pair.id for pair in first.pairs]


def test_neither_place_belongs_to_the_earlier_sample() -> None:
    first_places = [
        draw_pairs(Prompt(f"prompt-{number}", ""), answers("a", "b"), 1, 0, 1.0).pairs[0].sample_a
        for number in range(200)
    ]
    assert 60 < first_places.count("sample-0") < 140


def test_what_is_not_sent_is_counted_by_reason() -> None:
    """Of a word, the same word with a space, a sentence of 60 characters and the same but for one, one pair is
    identical, one is .983 similar, and four are worth asking about."""
    sentence = "the parade drew a crowd to the square and the rain held off "[:59]
    draw = draw_pairs(
        PROMPT, answers("storm", "storm ", sentence + ".", sentence + "!"), 6, seed=0, similarity_bound=0.95
    )
    assert draw.not_sent == {NotSent.IDENTICAL: 1, NotSent.NEAR_IDENTICAL: 1}
    assert len(draw.pairs) == 4


@given(st.lists(st.sampled_from("abcd"), min_size=0, max_size=6), st.integers(1, 20), st.integers(0, 5))
def test_what_is_sent_and_what_is_counted_are_all_pairs_where_all_are_asked_for(
    texts: list[str], count: int, seed: int
) -> None:
    draw = draw_pairs(PROMPT, answers(*texts), count, seed, 1.0)
    possible = len(texts) * (len(texts) - 1) // 2
    assert len(draw.pairs) <= count
    assert len(draw.pairs) + draw.not_sent.total() <= possible
    if len(draw.pairs) < count:
        assert len(draw.pairs) + draw.not_sent.total() == possible


def test_a_pair_keeps_its_prompt_and_samples() -> None:
    (pair,) = draw_pairs(PROMPT, answers("x", "y"), 1, 0, 1.0).pairs
    by_sample = {"sample-0": "x", "sample-1": "y"}
    assert pair.prompt == PROMPT
    assert (by_sample[pair.sample_a or ""], by_sample[pair.sample_b or ""]) == (pair.response_a, pair.response_b)
    assert pair.id == f"{pair.sample_a}~{pair.sample_b}"
