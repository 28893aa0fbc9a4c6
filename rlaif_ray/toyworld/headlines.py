"""Headlines: a news desk in twenty words, in which the true worth of every summary is known.

A prompt names six facts, such as `headlines storm vote strike briefs parade fair rain`. An answer is a summary of at
most six words. The headlines are worth covering; briefs, inventions and repeats cost. Trainers see only what a judge
prefers: `gold_utility` is for evaluation, and for the simulated raters whose noisy labels a judge was trained on.

NumPy only. The judge itself is made in `judge_training`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rlaif_ray.records import Demonstration, Prompt
from rlaif_ray.toyworld.drawing import FACTS, distinct_prompts, generator
from rlaif_ray.toyworld.raters import RaterLabel, compare

HEADLINES_PER_PROMPT = 3
BRIEFS_PER_PROMPT = 3
FACTS_PER_PROMPT = HEADLINES_PER_PROMPT + BRIEFS_PER_PROMPT
MAX_ANSWER_WORDS = 6

HEADLINE_UTILITY = 1.0
BRIEF_UTILITY = -0.2
INVENTED_UTILITY = -1.0
REPEAT_UTILITY = -0.5

# Demonstrators are hurried: one to five words, of which many are not headlines. A policy that imitates them knows the
# language and has much left to learn.
_DEMONSTRATION_LENGTHS = (0.10, 0.25, 0.35, 0.20, 0.10)
_DEMONSTRATION_WORDS = (0.58, 0.31, 0.07, 0.04)  # headline, brief, invented, repeat

_PROMPT_COUNT = math.perm(len(FACTS), FACTS_PER_PROMPT)
_PROMPT_STREAM, _DEMONSTRATION_STREAM, _ANSWER_STREAM, _REFERENCE_STREAM = range(4)
_RATER_STREAM = 3  # as before references had a stream: labels stay what they were


def prompts(count: int, seed: int) -> list[Prompt]:
    """The first `count` prompts of the stream that `seed` names, no two alike.

    A prompt's id is derived from its content, so it is the same in every stream. Raises UserError where the world has
    fewer prompts than asked for.
    """
    return _distinct_prompts(count, generator(seed, _PROMPT_STREAM))


def with_references(prompts: list[Prompt], seed: int) -> list[Prompt]:
    """The prompts, each with a demonstrator's answer as its reference."""
    rng = generator(seed, _REFERENCE_STREAM)
    return [replace(prompt, reference=hurried_answer(prompt, rng)) for prompt in prompts]


def demonstrations(count: int, seed: int) -> list[Demonstration]:
    """The first `count` demonstrations of the stream that `seed` names: answers of mixed quality to distinct prompts.

    Their prompts are drawn apart from those of `prompts`. Raises UserError where the world has too few prompts.
    """
    drawn = _distinct_prompts(count, generator(seed, _DEMONSTRATION_STREAM))
    rng = generator(seed, _ANSWER_STREAM)
    return [Demonstration(prompt, hurried_answer(prompt, rng)) for prompt in drawn]


def rater_labels(count: int, seed: int) -> list[RaterLabel]:
    """The first `count` labels of the stream that `seed` names: two demonstrators' summaries to a prompt, compared by
    gold utility.

    Prompts are distinct, and drawn apart from those of `prompts` and `demonstrations`.
    """
    rng = generator(seed, _RATER_STREAM)
    return compare(prompts(count, int(rng.integers(2**63))), hurried_answer, gold_utility, rng)


def gold_utility(prompt: Prompt, answer: str) -> float:
    """The true worth of an answer, in utility units: 3 at best, unbounded below.

    Each word counts once, as the first of these that fits: no fact of the prompt (-1, at every occurrence), a repeat
    (-0.5), a headline (+1), a brief (-0.2). Defined for any string; words are what whitespace separates. Raises
    ValueError where the prompt is not one of this world.
    """
    headlines, briefs = facts_of(prompt)
    seen: set[str] = set()
    utility = 0.0
    for word in answer.split():
        if word not in headlines and word not in briefs:
            utility += INVENTED_UTILITY
        elif word in seen:
            utility += REPEAT_UTILITY
        else:
            utility += HEADLINE_UTILITY if word in headlines else BRIEF_UTILITY
        seen.add(word)
    return utility


def facts_of(prompt: Prompt) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The headlines and the briefs that a prompt names. Raises ValueError where it is not a prompt of this world."""
    words = prompt.text.split()
    facts = words[1 : 1 + HEADLINES_PER_PROMPT] + words[2 + HEADLINES_PER_PROMPT :]
    if words != _content(facts).split() or len(set(facts)) != FACTS_PER_PROMPT or not set(facts) <= set(FACTS):
        raise ValueError(f"prompt {prompt.id!r} is not a Headlines prompt: {prompt.text!r}")
    return tuple(facts[:HEADLINES_PER_PROMPT]), tuple(facts[HEADLINES_PER_PROMPT:])


def hurried_answer(prompt: Prompt, rng: np.random.Generator) -> str:
    """One demonstrator's summary. A kind whose words are used up gives way to the facts that are left.

    Raises ValueError where the prompt is not one of this world.
    """
    length = 1 + rng.choice(len(_DEMONSTRATION_LENGTHS), p=_DEMONSTRATION_LENGTHS)
    headlines, briefs = map(list, facts_of(prompt))
    invented = [fact for fact in FACTS if fact not in headlines and fact not in briefs]
    answer: list[str] = []
    for kind in rng.choice(len(_DEMONSTRATION_WORDS), size=length, p=_DEMONSTRATION_WORDS):
        source = (headlines, briefs, invented, list(answer))[kind] or headlines or briefs
        answer.append(source.pop(rng.integers(len(source))))
    return " ".join(answer)


def draw_facts(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Facts (count, 6) as indices into FACTS, headlines first. Rows may recur."""
    # Sorting one uniform number per fact takes a fixed share of the stream per row: a longer draw begins with a
    # shorter one.
    return np.argsort(rng.random((count, len(FACTS))), axis=1)[:, :FACTS_PER_PROMPT]


def _distinct_prompts(count: int, rng: np.random.Generator) -> list[Prompt]:
    def contents(more: int) -> list[str]:
        return [_content([FACTS[fact] for fact in row]) for row in draw_facts(more, rng).tolist()]

    return distinct_prompts("headlines", count, _PROMPT_COUNT, contents)


def _content(facts: list[str]) -> str:
    headlines, briefs = facts[:HEADLINES_PER_PROMPT], facts[HEADLINES_PER_PROMPT:]
    return " ".join(["headlines", *headlines, "briefs", *briefs])
