"""A chain of thought first, then the choice between the labels, by the judge's own reasoning (Lee et al. 2023, RLAIF,
section 2.1.2)."""

from __future__ import annotations

from dataclasses import replace

from rlaif_ray.judge.asking.ladder import NoCompletion, answered, ask_choice, ask_until_read
from rlaif_ray.judge.asking.terms import Abilities, AskSettings, PairQuestion
from rlaif_ray.judge.reading import Reading
from rlaif_ray.judge.request import Request, Steps
from rlaif_ray.records import Outcome


def ask_reasoned(question: PairQuestion, abilities: Abilities, settings: AskSettings) -> Steps[Reading]:
    """The probability of the first label after reasoning, within `settings.clamp`. A rationale that was cut is used as
    far as it goes. At most eight calls."""
    request = Request(
        question.reason(),
        # What the judge thinks unseen comes on top.
        max_tokens=settings.rationale_tokens + abilities.shortest_reply - 1,
        temperature=0.0 if abilities.temperature else None,
    )
    try:
        thought = yield from ask_until_read(request)
    except NoCompletion as failure:
        return Reading(failure.outcome, str(failure))
    if thought.declined:
        return Reading(Outcome.ABSTAINED, thought.declined)
    conversation = answered(request.messages, thought.text, question.choose_after)
    reading = yield from ask_choice(conversation, question, abilities, settings)
    if reading.p_first is not None and settings.clamp is not None:
        lowest, highest = settings.clamp
        reading = replace(reading, p_first=min(max(reading.p_first, lowest), highest))
    return replace(reading, rationale=thought.text.strip())
