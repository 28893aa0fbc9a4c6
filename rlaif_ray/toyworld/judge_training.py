"""Makes the toy world's judge: a small Llama that reads the judge prompt and answers `1` or `2`.

It learns from simulated raters, who are noisy and lean to the answer shown first, on answers of every quality and of
no policy's making. They also mark every word as headline, brief, invented or repeat; a head that learns those marks is
dropped afterwards. Its corpus is written straight as token ids, a batch at a time; a test holds that against the real
template and tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlaif_ray.judge.templates import load_template
from rlaif_ray.records import Order, Pair
from rlaif_ray.toyworld.asking import AskedModel
from rlaif_ray.toyworld.drawing import FACTS
from rlaif_ray.toyworld.headlines import (
    BRIEF_UTILITY,
    BRIEFS_PER_PROMPT,
    HEADLINE_UTILITY,
    HEADLINES_PER_PROMPT,
    INVENTED_UTILITY,
    REPEAT_UTILITY,
    draw_facts,
    facts_of,
    gold_utility,
    hurried_answer,
    prompts,
)
from rlaif_ray.toyworld.raters import FIRST_POSITION_LEAN, RATER_NOISE
from rlaif_ray.toyworld.small_llama import (
    PAD,
    SPECIAL_TOKENS,
    UNK,
    UNLEARNT,
    Batch,
    Recipe,
    build_model,
    build_tokenizer,
    save,
    train,
)

_TEMPLATE_WORDS = ("News", ":", "Summary", "1", "2", "Better", "summary", "headlines", "briefs")
VOCABULARY = (*SPECIAL_TOKENS, *_TEMPLATE_WORDS, *FACTS)
_ID = {word: index for index, word in enumerate(VOCABULARY)}

# A judge has no turns to mark: its prompt is the messages as they are, whoever is asked to go on.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"

# Words that no answer of this world may use, as an answer's word index: template words and one unknown word.
_STRAY_TOKENS = (_ID[UNK], _ID["headlines"], _ID["briefs"], _ID["1"], _ID["2"])
# A policy that does not stop is cut off, not held to six words, so the judge has seen such answers too.
LONGEST_ANSWER = 8
# Where the answers' words stand in the judge prompt: the first's after 16 tokens, the second's after five more.
_FIRST_ANSWER, _BETWEEN_ANSWERS = 16, 5

_HEADLINE, _BRIEF, _INVENTED, _REPEAT = range(4)
_UTILITY_OF_KIND = np.array([HEADLINE_UTILITY, BRIEF_UTILITY, INVENTED_UTILITY, REPEAT_UTILITY])
# A mark names a word's kind and the answer that it stands in, before the last layer adds the words up.
_MARKED_LAYER = 2
_MARKS = 2 * len(_UTILITY_OF_KIND)

RECIPE = Recipe(
    seed=20_240,
    steps=1_800,
    batch_size=128,
    learning_rate=2e-3,
    hidden_size=64,
    layers=3,
    heads=2,
    intermediate_size=128,
)


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers (B, 8) as word indices: below 20 a fact, else a stray word. `lengths` (B,) says how many count."""

    words: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @property
    def counted(self) -> NDArray[np.bool_]:
        """(B, 8), True where a word counts."""
        return np.arange(LONGEST_ANSWER) < self.lengths[:, None]


def draw_batch(size: int, rng: np.random.Generator) -> Batch:
    """Judge prompts on freshly drawn news and answers, whose last target is the label of one rater. A mark is a word's
    kind, the second answer's kinds counted on from the first's."""
    facts = draw_facts(size, rng)
    first, second = draw_pair(facts, rng)
    logit = (utilities(facts, first) - utilities(facts, second)) / RATER_NOISE + FIRST_POSITION_LEAN
    names_first = rng.random(size) < 1.0 / (1.0 + np.exp(-logit))
    tokens, lengths = encode_pairs(facts, first, second)
    marks, targets = np.full(tokens.shape, UNLEARNT), np.full(tokens.shape, UNLEARNT)
    targets[np.arange(size), lengths - 1] = np.where(names_first, _ID["1"], _ID["2"])
    starts = (np.full(size, _FIRST_ANSWER), _FIRST_ANSWER + first.lengths + _BETWEEN_ANSWERS)
    for place, (answers, start) in enumerate(zip((first, second), starts, strict=True)):
        kinds = word_kinds(facts, answers)
        rows, positions = np.nonzero(answers.counted)
        marks[rows, start[rows] + positions] = kinds[rows, positions] + place * len(_UTILITY_OF_KIND)
    longest = lengths.max()
    return Batch(tokens[:, :longest], targets[:, :longest], {_MARKED_LAYER: marks[:, :longest]})


def draw_pair(facts: NDArray[np.int64], rng: np.random.Generator) -> tuple[Answers, Answers]:
    """Two answers to each row of facts (B, 6); in two rows of five the second is an edit of the first."""
    first, other = draw_answers(facts, rng), draw_answers(facts, rng)
    size = len(facts)
    edited = rng.random(size) < 0.4
    # An edit keeps the first answer but for one word, or one word more or fewer.
    words = first.words.copy()
    changed = rng.integers(0, LONGEST_ANSWER, size)
    rows = np.arange(size)
    position = np.minimum(changed, np.maximum(first.lengths - 1, 0))
    words[rows, position] = other.words[rows, position]
    lengths = np.clip(first.lengths + rng.integers(-1, 2, size), 0, LONGEST_ANSWER)
    # In half the edits the words are also put in another order, which must not matter.
    keys = np.where(np.arange(LONGEST_ANSWER) < lengths[:, None], rng.random(words.shape), 2.0)
    shuffled = np.take_along_axis(words, np.argsort(keys, axis=1), axis=1)
    words = np.where(rng.random((size, 1)) < 0.5, shuffled, words)
    return first, Answers(np.where(edited[:, None], words, other.words), np.where(edited, lengths, other.lengths))


def draw_answers(facts: NDArray[np.int64], rng: np.random.Generator) -> Answers:
    """Answers of every quality to each row of facts (B, 6): from noise to the headlines alone, 0 to 8 words long."""
    size = len(facts)
    # Each answer has its own taste for headlines, briefs, other facts and stray words.
    taste = rng.normal(size=(size, 4)) * 1.5 + np.array([1.5, 0.5, -1.0, -2.0])
    keen = rng.random(size) < 0.35
    taste[keen, 0] += 6.0
    rows = np.arange(size)[:, None]
    weights = np.repeat(taste[:, 2:], [len(FACTS), len(_STRAY_TOKENS)], axis=1)
    weights[rows, facts[:, :HEADLINES_PER_PROMPT]] = taste[:, :1]
    weights[rows, facts[:, HEADLINES_PER_PROMPT:]] = taste[:, 1:2]
    # The largest of weights with Gumbel noise are draws without replacement.
    words = np.argsort(-(weights + rng.gumbel(size=weights.shape)), axis=1)[:, :LONGEST_ANSWER]
    lengths = np.where(keen, 2 + rng.binomial(4, 0.4, size), rng.integers(0, LONGEST_ANSWER + 1, size))
    repeats = rng.random((size, LONGEST_ANSWER)) < rng.choice([0.0, 0.0, 0.1, 0.4], size=(size, 1))
    for position in range(1, LONGEST_ANSWER):
        source = rng.integers(0, position, size)
        words[:, position] = np.where(repeats[:, position], words[rows[:, 0], source], words[:, position])
    return Answers(words, lengths)


def word_kinds(facts: NDArray[np.int64], answers: Answers) -> NDArray[np.int64]:
    """Each word's kind (B, 8): 0 a headline, 1 a brief, 2 invented, 3 a repeat."""
    words = answers.words
    headline = (words[:, :, None] == facts[:, None, :HEADLINES_PER_PROMPT]).any(axis=2)
    brief = (words[:, :, None] == facts[:, None, HEADLINES_PER_PROMPT:]).any(axis=2)
    earlier = np.tril(np.ones((LONGEST_ANSWER, LONGEST_ANSWER), dtype=bool), k=-1)
    repeat = ((words[:, :, None] == words[:, None, :]) & earlier).any(axis=2)
    return np.select([~(headline | brief), repeat, headline], [_INVENTED, _REPEAT, _HEADLINE], default=_BRIEF)


def utilities(facts: NDArray[np.int64], answers: Answers) -> NDArray[np.float64]:
    """Gold utilities (B,) of answers as word indices: `headlines.gold_utility`, by the batch."""
    worth = _UTILITY_OF_KIND[word_kinds(facts, answers)]
    return np.asarray((worth * answers.counted).sum(axis=1))


def encode_pairs(
    facts: NDArray[np.int64], first: Answers, second: Answers
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The judge prompts' token ids (B, 41), padded on the right, and their lengths (B,).

    The same ids as the template `headlines` rendered and tokenized, which a test holds to.
    """
    size = len(facts)
    token_of_word = np.array([_ID[fact] for fact in FACTS] + list(_STRAY_TOKENS))
    named = token_of_word[facts]

    def column(*words: str) -> NDArray[np.int64]:
        return np.tile([_ID[word] for word in words], (size, 1))

    # A slot that holds no word is negative until the row is closed up.
    def body(answers: Answers) -> NDArray[np.int64]:
        return np.where(answers.counted, token_of_word[answers.words], -1)

    loose = np.concatenate(
        [
            column("News", ":", UNK, "headlines"),
            named[:, :HEADLINES_PER_PROMPT],
            column("briefs"),
            named[:, HEADLINES_PER_PROMPT:],
            column(UNK, "Summary", "1", ":", UNK),
            body(first),
            column(UNK, "Summary", "2", ":", UNK),
            body(second),
            column(UNK, "Better", "summary", ":"),
        ],
        axis=1,
    )
    closed_up = np.take_along_axis(loose, np.argsort(loose < 0, axis=1, kind="stable"), axis=1)
    lengths = (loose >= 0).sum(axis=1)
    return np.where(closed_up < 0, _ID[PAD], closed_up), lengths


def make_judge(recipe: Recipe, directory: Path, on_step: Callable[[int, float], None]) -> None:
    """Trains the judge and writes it to `directory`; `on_step` hears as in `train`."""
    model = build_model(recipe, len(VOCABULARY))
    train(model, recipe, draw_batch, {_MARKED_LAYER: _MARKS}, on_step)
    save(model, build_tokenizer(VOCABULARY, CHAT_TEMPLATE), directory)


@dataclass(frozen=True, slots=True)
class JudgeQuality:
    """How a judge does on pairs whose gold preference is known; pairs that gold ties are left out."""

    pairs: int
    alignment: float  # share of pairs on which both orders' mean names the better answer
    position_consistency: float  # share of pairs on which both orders name the same answer
    label_mass: float  # the least probability that the two labels have together


def held_out_pairs(count: int, seed: int) -> list[Pair]:
    """Pairs of answers such as a policy gives that imitates the demonstrations, none tied by gold."""
    rng = np.random.default_rng(seed)
    pairs: list[Pair] = []
    for prompt in prompts(2 * count, seed):
        first, second = hurried_answer(prompt, rng), hurried_answer(prompt, rng)
        if not math.isclose(gold_utility(prompt, first), gold_utility(prompt, second)):
            pairs.append(Pair(id=prompt.id, prompt=prompt, response_a=first, response_b=second))
    return pairs[:count]


def padded_pairs(count: int, seed: int) -> list[Pair]:
    """Pairs of the three headlines alone with the same and one to three briefs: the longer answer is the worse."""
    rng = np.random.default_rng(seed)
    pairs = []
    for prompt in prompts(count, seed):
        headlines, briefs = facts_of(prompt)
        alone = rng.permutation(headlines).tolist()
        padding = rng.permutation(briefs)[: rng.integers(1, BRIEFS_PER_PROMPT + 1)].tolist()
        pairs.append(Pair(prompt.id, prompt, " ".join(alone), " ".join(alone + padding)))
    return pairs


def measure_judge(directory: Path, pairs: Sequence[Pair]) -> JudgeQuality:
    """Asks the judge in `directory` about each pair in both orders, through the template that labelling uses."""
    template, model = load_template("headlines"), AskedModel(directory)
    log_odds = []
    mass = 1.0
    for order in (Order.AB, Order.BA):
        logprobs = model.label_logprobs([template.question(pair, order).choose() for pair in pairs], template.labels)
        log_odds.append(logprobs[:, 0] - logprobs[:, 1])
        mass = min(mass, float(np.exp(logprobs).sum(axis=1).min()))
    ab, ba = log_odds
    better = np.array(
        [gold_utility(p.prompt, p.response_a) > gold_utility(p.prompt, p.response_b) for p in pairs], dtype=bool
    )
    return JudgeQuality(
        pairs=len(pairs),
        alignment=float(((ab - ba > 0) == better).mean()),
        position_consistency=float(((ab > 0) == (ba < 0)).mean()),
        label_mass=mass,
    )
