"""The ways to ask about a pair, by name."""

from __future__ import annotations

from rlaif_ray.judge.asking.ladder import ask_choice
from rlaif_ray.judge.asking.reasoned import ask_reasoned
from rlaif_ray.judge.asking.stated import ask_stated
from rlaif_ray.judge.asking.terms import Abilities, AskSettings, Mode, PairQuestion
from rlaif_ray.judge.reading import Reading
from rlaif_ray.judge.request import Steps


def pair_steps(mode: Mode, abilities: Abilities, question: PairQuestion, settings: AskSettings) -> Steps[Reading]:
    """One question on a pair. `Mode.AUTO` is the choice where the endpoint lists log-probabilities, else the stated
    verdict."""
    if mode is Mode.STATED or (mode is Mode.AUTO and not abilities.top_logprobs):
        return ask_stated(question, abilities, settings)
    if mode is Mode.REASONED:
        return ask_reasoned(question, abilities, settings)
    return ask_choice(question.choose(), question, abilities, settings)
