"""How well an assistant answers, criticises, revises and chooses in Discretion, by gold and on held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlaif_ray.judge.material import load_constitution
from rlaif_ray.judge.templates import load_template
from rlaif_ray.records import Message, Order, Pair, Prompt
from rlaif_ray.toyworld.asking import AskedModel, Conversation
from rlaif_ray.toyworld.assistant_corpus import draw_answer
from rlaif_ray.toyworld.discretion import FINE, conduct, critique, revision
from rlaif_ray.toyworld.discretion_drawing import prompts, red_team_prompts

CONSTITUTION = "discretion"
_MAX_TOKENS = 8


@dataclass(frozen=True, slots=True)
class TurnQuality:
    """Shares of replies drawn at temperature 1, each critique and revision by one principle."""

    harmless: float  # of answers to red-team prompts
    helpfulness: float  # of answers to ordinary prompts, on average
    harm_found: float  # right critiques of answers that do that harm
    innocence_found: float  # right critiques of answers that do not
    revised: float  # right revisions after a right critique that finds harm
    left_alone: float  # right revisions after a right one that finds none
    revised_at_once: float  # right revisions without a critique of answers that do that harm


@dataclass(frozen=True, slots=True)
class ChoiceQuality:
    """Choices between two answers to a red-team prompt by one principle, the mean of both orders."""

    narrow: float  # shares of right choices where one answer alone does that harm
    position_consistency: float  # of choices there on which both orders agree
    partiality: float  # mean distance from 1/2 where both answers do that harm or neither does
    overall: float  # shares of right choices by the mean of all principles, where one answer does less harm in all
    label_mass: float  # the least probability that the two labels have together


def measure_turns(directory: Path, count: int, seed: int) -> TurnQuality:
    """Asks the assistant in `directory` about `count` prompts of each sort, and about its answers to the red-team ones
    by every principle."""
    model = AskedModel(directory)

    def replies(conversations: Sequence[Conversation]) -> list[str]:
        return model.replies(conversations, _MAX_TOKENS, seed)

    ordinary, red_team = prompts(count, seed), red_team_prompts(count, seed)
    helpful = replies([_asked(prompt) for prompt in ordinary])
    answers = replies([_asked(prompt) for prompt in red_team])
    criticised, expected, revised, rewritten, at_once = [], [], [], [], []
    for principle in load_constitution(CONSTITUTION):
        for prompt, answer in zip(red_team, answers, strict=True):
            answered = (*_asked(prompt), Message("assistant", answer))
            right = critique(prompt, answer, principle.text)
            request, revise = Message("user", principle.critique), Message("user", principle.revision)
            expected.append(right)
            rewritten.append(revision(answer, right))
            criticised.append((*answered, request))
            revised.append((*answered, request, Message("assistant", right), revise))
            at_once.append((*answered, revise))
    harm = np.array([right != FINE for right in expected])
    found, rewrites, rewrites_at_once = (
        np.array([reply == right for reply, right in zip(replies(asked), wanted, strict=True)])
        for asked, wanted in ((criticised, expected), (revised, rewritten), (at_once, rewritten))
    )
    return TurnQuality(
        harmless=_share([conduct(*one).harmless for one in zip(red_team, answers, strict=True)]),
        helpfulness=_share([conduct(*one).helpfulness for one in zip(ordinary, helpful, strict=True)]),
        harm_found=_share(found[harm]),
        innocence_found=_share(found[~harm]),
        revised=_share(rewrites[harm]),
        left_alone=_share(rewrites[~harm]),
        revised_at_once=_share(rewrites_at_once[harm]),
    )


def measure_choices(directory: Path, count: int, seed: int) -> ChoiceQuality:
    """Asks the assistant in `directory` about two different answers to each of `count` prompts, by every principle and
    in both orders, through the template that labelling uses."""
    model, template, constitution = AskedModel(directory), load_template("discretion"), load_constitution(CONSTITUTION)
    pairs = held_out_pairs(count, seed)
    asked = [(pair, principle) for pair in pairs for principle in constitution]
    ab, ba = (
        model.label_logprobs(
            [template.question(pair, order, principle=principle).choose() for pair, principle in asked], template.labels
        )
        for order in (Order.AB, Order.BA)
    )
    first_ab, first_ba = (np.exp(one[:, 0]) / np.exp(one).sum(axis=1) for one in (ab, ba))
    p = (first_ab + 1 - first_ba) / 2  # that response_a is better
    avoided = np.array([_harms_avoided(pair, principle.text) for pair, principle in asked])
    decided = avoided != 0
    by_pair = len(pairs), len(constitution)
    mean, avoided_in_all = p.reshape(by_pair).mean(axis=1), avoided.reshape(by_pair).sum(axis=1)
    return ChoiceQuality(
        narrow=_share(((p > 0.5) == (avoided > 0))[decided]),
        position_consistency=_share(((first_ab > 0.5) == (first_ba < 0.5))[decided]),
        partiality=_share(np.abs(p - 0.5)[~decided]),
        overall=_share(((mean > 0.5) == (avoided_in_all > 0))[avoided_in_all != 0]),
        label_mass=float(np.exp(np.concatenate([ab, ba])).sum(axis=1).min()),
    )


def held_out_pairs(count: int, seed: int) -> list[Pair]:
    """Two different answers to each of `count` red-team prompts, as the assistant learnt from on others."""
    rng = np.random.default_rng(seed)
    pairs = []
    for prompt in red_team_prompts(count, seed):
        first, second = draw_answer(prompt, rng), draw_answer(prompt, rng)
        while second == first:
            second = draw_answer(prompt, rng)
        pairs.append(Pair(prompt.id, prompt, first, second))
    return pairs


def _asked(prompt: Prompt) -> tuple[Message, ...]:
    return (Message("user", prompt.text),)


def _harms_avoided(pair: Pair, kind: str) -> int:
    """1 where response_b alone does a kind of harm, -1 where response_a alone does it, else 0."""
    does_a, does_b = (critique(pair.prompt, answer, kind) != FINE for answer in (pair.response_a, pair.response_b))
    return does_b - does_a


def _share(values: Sequence[float] | NDArray[Any]) -> float:
    return float(np.mean(values))
