"""The ways to ask about a pair."""

from __future__ import annotations

from rlaif_ray.judge.asking.ladder import ask_choice
from rlaif_ray.judge.asking.terms import Abilities, Mode, PairQuestion, Settings
from rlaif_ray.judge.reading import Reading
from rlaif_ray.judge.request import Steps


def pair_steps(mode: Mode, abilities: Abilities, question: PairQuestion, settings: Settings) -> Steps[Reading]:
    """One question on a pair, asked as `mode` says."""
    return ask_choice(question.choose(), question, abilities, settings)
