"""The assistant's corpus is what chat templates and judge prompts render, and teaches what the world calls right."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from rlaif_ray.judge.material import load_constitution
from rlaif_ray.judge.templates import load_template
from rlaif_ray.records import Order, Pair, Prompt
from rlaif_ray.toyworld.assistant_corpus import (
    ANSWER_LAYER,
    ASSISTANT,
    CHAT_TEMPLATE,
    MARKS,
    REQUEST_LAYER,
    USER,
    VOCABULARY,
    Span,
    draw_answer,
    draw_batch,
    draw_comparison,
    draw_conversation,
    encode,
    spans_of_comparison,
    word_marks,
)
from rlaif_ray.toyworld.discretion import conduct, critique, revision
from rlaif_ray.toyworld.discretion_drawing import red_team_prompts
from rlaif_ray.toyworld.small_llama import EOS, UNLEARNT, build_tokenizer

TOKENIZER = build_tokenizer(VOCABULARY, CHAT_TEMPLATE, (USER, ASSISTANT))
RED_TEAM = Prompt("r", "tell storm vote rain cruel match unsafe rain private vote")
ROWS = 300


def turns_of(spans: list[Span]) -> list[dict[str, str]]:
    """A conversation's turns, as they stand between its role tokens."""
    words = [word for span in spans for word in span.words if word != EOS]
    starts = [place for place, word in enumerate(words) if word in (USER, ASSISTANT)] + [len(words)]
    return [
        {"role": words[start].strip("<>"), "content": " ".join(words[start + 1 : end])}
        for start, end in itertools.pairwise(starts)
    ]


def test_conversations_are_what_the_chat_template_renders() -> None:
    rng = np.random.default_rng(0)
    for _ in range(ROWS):
        spans = draw_conversation(rng)
        tokens = encode([spans]).tokens[0].tolist()
        assert tokens == TOKENIZER.apply_chat_template(turns_of(spans))["input_ids"]


def test_a_prompt_ends_where_the_answer_begins() -> None:
    turns = turns_of(draw_conversation(np.random.default_rng(0)))
    whole = TOKENIZER.apply_chat_template(turns)["input_ids"]
    prompt = TOKENIZER.apply_chat_template(turns[:-1], add_generation_prompt=True)["input_ids"]
    answer = TOKENIZER(turns[-1]["content"], add_special_tokens=False)["input_ids"]
    assert whole == [*prompt, *answer, TOKENIZER.eos_token_id]


def test_judge_prompts_are_what_the_template_renders() -> None:
    template, constitution = load_template("discretion"), load_constitution("discretion")
    rng = np.random.default_rng(0)
    for prompt in red_team_prompts(ROWS, 0):
        first, second = draw_answer(prompt, rng), draw_answer(prompt, rng)
        for principle in constitution:
            question = template.question(Pair("p", prompt, first, second), Order.AB, principle=principle)
            messages = [{"role": message.role, "content": message.content} for message in question.choose()]
            rendered = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
            assert encode([spans_of_comparison(prompt, first, second, principle.text)]).tokens[0].tolist() == rendered


def test_what_is_learnt_is_right() -> None:
    """Of helpful answers the words; always the right critique, where there is one, and the right revision."""
    rng = np.random.default_rng(1)
    sorts: Counter[tuple[int, bool]] = Counter()
    for _ in range(ROWS):
        spans = draw_conversation(rng)
        prompt, answer, *exchanges = [turn["content"] for turn in turns_of(spans)]
        *_, kind = exchanges[-2].split()
        right = critique(Prompt("p", prompt), answer, kind)
        asked = [f"critique {kind}", right] if len(exchanges) == 4 else []
        assert exchanges == [*asked, f"revise {kind}", revision(answer, right)]
        batch = encode([spans])
        said = batch.targets[0][batch.targets[0] != UNLEARNT].tolist()
        learns_answer = spans[3].learnt
        replies = [*([answer] if learns_answer else []), *exchanges[1::2]]
        assert said == TOKENIZER("".join(reply + EOS for reply in replies), add_special_tokens=False)["input_ids"]
        if learns_answer:
            assert not conduct(Prompt("p", prompt), answer).declines
        sorts[len(exchanges), learns_answer] += 1
    assert set(sorts) == {(2, False), (2, True), (4, False), (4, True)}


def test_a_target_is_the_next_token() -> None:
    batch = draw_batch(ROWS, np.random.default_rng(2))
    rows, places = np.nonzero(batch.targets[:, :-1] != UNLEARNT)
    inside = batch.tokens[rows, places + 1] != TOKENIZER.pad_token_id
    assert (batch.targets[rows, places] == batch.tokens[rows, places + 1])[inside].all()
    assert {batch.tokens.shape} == {array.shape for array in (batch.targets, *batch.marks.values())}


def test_raters_name_the_less_harmful_answer_and_lean_to_the_first() -> None:
    """One of two answers does the harm: a rater names the other with sigmoid(2 / .45 + .6) or sigmoid(2 / .45 - .6),
    at least .97. Where neither does, helpfulness moves the odds by at most .3 / .45 around the lean of .6."""
    rng = np.random.default_rng(3)
    right, ties = [], []
    for _ in range(3_000):
        _, request, _, first, _, second, asked, label = draw_comparison(rng)
        prompt = Prompt("p", " ".join(request.words))
        kind = asked.words[2]
        harms = [critique(prompt, " ".join(span.words), kind) != "fine" for span in (first, second)]
        if harms[0] == harms[1]:
            ties.append(label.words == ("1",))
        else:
            right.append(label.words == ("1" if harms[1] else "2",))
    assert np.mean(right) > 0.95
    assert np.mean(ties) == pytest.approx(1 / (1 + np.exp(-0.6)), abs=0.04)


def test_marks_by_hand() -> None:
    """Kinds are counted private, unsafe, false, cruel, tellable, not asked for, repeat, declining; those of the second
    answer from 8 on."""
    assert word_marks(RED_TEAM, "sorry vote storm match fire storm rain", place=0) == (7, 0, 4, 3, 5, 6, 1)
    assert word_marks(RED_TEAM, "sorry vote", place=1) == (15, 8)
    assert {REQUEST_LAYER: 4, ANSWER_LAYER: 16} == MARKS


def test_marks_stand_on_warned_facts_and_on_the_answers_words() -> None:
    batch = encode([spans_of_comparison(RED_TEAM, "storm vote", "rain", "cruel")])

    def marked(layer: int) -> list[tuple[str, int]]:
        places = np.flatnonzero(batch.marks[layer][0] != UNLEARNT)
        return [(VOCABULARY[batch.tokens[0, place]], int(batch.marks[layer][0, place])) for place in places]

    assert marked(REQUEST_LAYER) == [("match", 3), ("rain", 1), ("vote", 0)]
    assert marked(ANSWER_LAYER) == [("storm", 4), ("vote", 0), ("rain", 9)]
    drawn = draw_batch(ROWS, np.random.default_rng(4))
    for layer, count in MARKS.items():
        assert set(drawn.marks[layer].ravel().tolist()) == {UNLEARNT, *range(count)}


def test_answers_are_helpful_revised_and_of_any_quality() -> None:
    rng = np.random.default_rng(5)
    answers = [draw_answer(RED_TEAM, rng) for _ in range(2_000)]
    conducts = Counter((how.harmless, how.declines) for how in (conduct(RED_TEAM, answer) for answer in answers))
    assert min(conducts[harmless, declines] for harmless in (True, False) for declines in (True, False)) > 50
    assert max(len(answer.split()) for answer in answers) == 8
    assert "" in answers
