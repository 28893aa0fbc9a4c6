"""What the toy world's assistant learns from: conversations and judge prompts of Discretion, straight as token ids.

In a conversation a helpful answer is criticised by one kind of harm and revised; in one of four it is revised at once.
A judge prompt is labelled by a rater who holds one principle: noisy, and with a lean to the answer shown first. Every
word of an answer is marked with what it is. A test holds the ids against the real templates and tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlaif_ray.records import Prompt
from rlaif_ray.toyworld.discretion import FINE, KINDS, SORRY, critique, principled_utility, request_of, revision
from rlaif_ray.toyworld.discretion_drawing import draw_request, helpful_answer, varied_answer
from rlaif_ray.toyworld.drawing import FACTS, one_of
from rlaif_ray.toyworld.raters import first_probability
from rlaif_ray.toyworld.small_llama import EOS, PAD, SPECIAL_TOKENS, UNK, UNLEARNT, Batch

USER, ASSISTANT = "<user>", "<assistant>"
_TEMPLATE_WORDS = ("Request", ":", "Answer", "1", "2")
_WORLD_WORDS = ("tell", "critique", "revise", "choose", FINE, SORRY, *KINDS)
VOCABULARY = (*SPECIAL_TOKENS, USER, ASSISTANT, *_TEMPLATE_WORDS, *_WORLD_WORDS, *FACTS)
_ID = {word: index for index, word in enumerate(VOCABULARY)}

# Whoever is not the assistant is a user; an answer ends with the stop token.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<assistant>{{ message['content'] }}</s>"
    "{% else %}<user>{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

# What an answer of no sense is made of. A policy that does not stop is cut off at eight words.
_NOISE = (*FACTS, SORRY, FINE, "tell", *KINDS, "1", "2", "fog")
_LONGEST_ANSWER = 8

# In a request each fact that it warns of is marked, with its kind. In an answer each word is: with the kind that it is
# warned of by, or that it may be told, was not asked for, comes again or declines; and with its answer, of two.
_TELLABLE, _UNASKED, _REPEAT, _DECLINES = range(len(KINDS), len(KINDS) + 4)
_WORD_KINDS = len(KINDS) + 4
# Without the request's marks, which the first layer learns at once, no model of this size came to tell kinds apart.
REQUEST_LAYER, ANSWER_LAYER = 1, 2
MARKS = {REQUEST_LAYER: len(KINDS), ANSWER_LAYER: 2 * _WORD_KINDS}


@dataclass(frozen=True, slots=True)
class Span:
    """Words in a row: whether they are learnt, and the mark of each for a layer, where they have marks."""

    words: tuple[str, ...]
    learnt: bool = False
    marks: tuple[int, ...] = ()
    marked_layer: int = ANSWER_LAYER


def draw_batch(size: int, rng: np.random.Generator) -> Batch:
    """Conversations, and as many comparisons."""
    conversations = [draw_conversation(rng) for _ in range(size // 2)]
    return encode([*conversations, *(draw_comparison(rng) for _ in range(size - size // 2))])


def draw_conversation(rng: np.random.Generator) -> list[Span]:
    """A request, an answer, a critique of it and its revision. What is said is learnt, but for answers that are no
    helpful demonstrator's."""
    prompt = _draw_prompt(rng)
    is_helpful = rng.random() < 0.5
    answer = helpful_answer(prompt, rng) if is_helpful else draw_answer(prompt, rng)
    kind = _draw_kind([kind for kind in KINDS if critique(prompt, answer, kind) != FINE], rng)
    criticism = critique(prompt, answer, kind)
    return [
        Span((USER,)),
        _request_span(prompt),
        Span((ASSISTANT,)),
        Span(tuple(answer.split()), is_helpful, word_marks(prompt, answer, place=0)),
        Span((EOS,), is_helpful),
        *(_exchange("critique", kind, criticism) if rng.random() < 0.75 else ()),
        *_exchange("revise", kind, revision(answer, criticism)),
    ]


def draw_comparison(rng: np.random.Generator) -> list[Span]:
    """The judge prompt on two answers by one principle, and the label of a rater who holds it."""
    prompt = _draw_prompt(rng)
    answers = [draw_answer(prompt, rng)]
    answers.append(_edited(prompt, answers[0], rng) if rng.random() < 0.5 else draw_answer(prompt, rng))
    first, second = answers if rng.random() < 0.5 else reversed(answers)
    kind = _draw_kind([kind for kind in KINDS if critique(prompt, first, kind) != critique(prompt, second, kind)], rng)
    difference = principled_utility(prompt, first, kind) - principled_utility(prompt, second, kind)
    label = "1" if rng.random() < first_probability(difference) else "2"
    return [*spans_of_comparison(prompt, first, second, kind), Span((label,), learnt=True)]


def spans_of_comparison(prompt: Prompt, first: str, second: str, kind: str) -> list[Span]:
    """The judge prompt, with unknown words for the fences' marks."""
    return [
        Span((USER, "Request", ":", UNK)),
        _request_span(prompt),
        Span((UNK, "Answer", "1", ":", UNK)),
        Span(tuple(first.split()), marks=word_marks(prompt, first, place=0)),
        Span((UNK, "Answer", "2", ":", UNK)),
        Span(tuple(second.split()), marks=word_marks(prompt, second, place=1)),
        Span((UNK, "choose", kind, ASSISTANT)),
    ]


def word_marks(prompt: Prompt, answer: str, place: int) -> tuple[int, ...]:
    """The mark of each word of the answer that stands first (0) or second (1)."""
    request, words = request_of(prompt), answer.split()

    def kind(position: int, word: str) -> int:
        if word in words[:position]:
            return _REPEAT
        if word in request.warnings:
            return KINDS.index(request.warnings[word])
        if word == SORRY:
            return _DECLINES
        return _TELLABLE if word in request.asked else _UNASKED

    return tuple(place * _WORD_KINDS + kind(position, word) for position, word in enumerate(words))


def encode(lessons: Sequence[Sequence[Span]]) -> Batch:
    """The lessons' token ids, each learnt word as the target of the one before it."""
    rows = [[_ID.get(word, _ID[UNK]) for span in spans for word in span.words] for spans in lessons]
    shape = len(rows), max(map(len, rows))
    marks = {layer: np.full(shape, UNLEARNT) for layer in MARKS}
    batch = Batch(np.full(shape, _ID[PAD]), np.full(shape, UNLEARNT), marks)
    for row, (tokens, spans) in enumerate(zip(rows, lessons, strict=True)):
        batch.tokens[row, : len(tokens)] = tokens
        start = 0
        for span in spans:
            end = start + len(span.words)
            if span.learnt:
                batch.targets[row, start - 1 : end - 1] = tokens[start:end]
            if span.marks:
                marks[span.marked_layer][row, start:end] = span.marks
            start = end
    return batch


def draw_answer(prompt: Prompt, rng: np.random.Generator) -> str:
    """A helpful answer, one that was revised already, one of any quality, or none of any sense."""
    draw = rng.random()
    if draw < 0.25:
        return helpful_answer(prompt, rng)
    if draw < 0.55:
        return _edited(prompt, helpful_answer(prompt, rng), rng)
    if draw < 0.95:
        return varied_answer(prompt, rng)
    return " ".join(one_of(_NOISE, rng) for _ in range(rng.integers(_LONGEST_ANSWER + 1)))


def _request_span(prompt: Prompt) -> Span:
    words, warnings = tuple(prompt.text.split()), request_of(prompt).warnings
    before = len(words) - 2 * len(warnings)
    marks = [mark for kind in warnings.values() for mark in (UNLEARNT, KINDS.index(kind))]
    return Span(words, marks=(*[UNLEARNT] * before, *marks), marked_layer=REQUEST_LAYER)


def _exchange(request: str, kind: str, reply: str) -> tuple[Span, Span]:
    return Span((USER, request, kind, ASSISTANT)), Span((*reply.split(), EOS), learnt=True)


def _draw_prompt(rng: np.random.Generator) -> Prompt:
    return Prompt("", draw_request(rng, red_team=rng.random() < 0.75).content)


def _draw_kind(of_interest: Sequence[str], rng: np.random.Generator) -> str:
    """Any kind; more often one of interest, where there is one."""
    return one_of(of_interest if of_interest and rng.random() < 0.5 else KINDS, rng)


def _edited(prompt: Prompt, answer: str, rng: np.random.Generator) -> str:
    """The answer after one to three right revisions."""
    for place in rng.permutation(len(KINDS))[: rng.integers(1, 4)]:
        answer = revision(answer, critique(prompt, answer, KINDS[place]))
    return answer
