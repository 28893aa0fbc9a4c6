"""One answer on a scale of integers: the likelihood-weighted mean of its points (Lee et al. 2023, RLAIF, section
2.2.2), or the mean of stated scores where an endpoint lists no log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

from rlaif_ray.judge.asking.choice import bare, label_position, sigmoid
from rlaif_ray.judge.asking.ladder import (
    NoCompletion,
    answered,
    ask_until_read,
    choice_request,
    try_to_read,
    verdict_request,
)
from rlaif_ray.judge.asking.replies import Completion, MalformedReply, TokenLogprob
from rlaif_ray.judge.asking.stated import ask_statements, worst_rung
from rlaif_ray.judge.asking.terms import Abilities, AskSettings, ScoreQuestion
from rlaif_ray.judge.asking.together import together
from rlaif_ray.judge.asking.verdicts import parse_score
from rlaif_ray.judge.reading import Rung, ScoreReading
from rlaif_ray.judge.request import Request, Steps
from rlaif_ray.records import Outcome

# A number that may go on and has less of the scale's probability than this is taken as it stands.
_NEGLIGIBLE = 0.01


def score_steps(question: ScoreQuestion, abilities: Abilities, settings: AskSettings) -> Steps[ScoreReading]:
    """One answer's score. The ladder is that of pairs, without a constrained call."""
    try:
        if not abilities.top_logprobs:
            return (yield from _ask_stated(question, abilities, settings))
        request = choice_request(question.score(), abilities)
        request = replace(request, max_tokens=max(request.max_tokens, len(str(question.scale[1]))))
        completion = yield from ask_until_read(request)
        first = yield from _read(request, completion, question.scale, settings)
        if first.outcome is Outcome.SCORED or completion.declined or not completion.text.strip():
            return first
        conversation = answered(request.messages, completion.text, question.verdict_only)
        request = replace(verdict_request(conversation, abilities), top_logprobs=abilities.top_logprobs)
        (answer,) = yield [request]
        again = try_to_read(answer)
        if again is not None:
            reading = yield from _read(request, again, question.scale, settings)
            if reading.outcome is Outcome.SCORED:
                return replace(reading, rung=Rung.REFORMAT)
    except NoCompletion as failure:
        return ScoreReading(failure.outcome, str(failure))
    return first


def normalised(score: float, scale: tuple[int, int]) -> float:
    """A score on [-1, 1]: r = 2 (s - lowest) / (highest - lowest) - 1."""
    lowest, highest = scale
    return 2.0 * (score - lowest) / (highest - lowest) - 1.0


def rubric_p(
    scores_a: Sequence[float | None], scores_b: Sequence[float | None], weights: Sequence[float], temperature: float
) -> float | None:
    """Probability that answer a is better: sigma((s_a - s_b) / temperature), where s is an answer's `rubric_mean`. None
    where a score is missing."""
    a, b = rubric_mean(scores_a, weights), rubric_mean(scores_b, weights)
    return None if a is None or b is None else sigmoid((a - b) / temperature)


def rubric_mean(scores: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """The weighted mean of an answer's scores by criterion. None where one is missing. Weights are positive."""
    weighted = [score * weight for score, weight in zip(scores, weights, strict=True) if score is not None]
    return sum(weighted) / sum(weights) if len(weighted) == len(scores) else None


def _ask_stated(question: ScoreQuestion, abilities: Abilities, settings: AskSettings) -> Steps[ScoreReading]:
    scores = yield from ask_statements(
        question.state(abilities.form),
        question.verdict_schema,
        question.verdict_only,
        lambda completion: _stated_score(completion, question.scale),
        abilities,
        settings,
    )
    mean = sum(score.value for score in scores) / len(scores)
    nearest = min(scores, key=lambda score: abs(score.value - mean))
    return ScoreReading(Outcome.SCORED, "", score=mean, rung=worst_rung(scores), rationale=nearest.rationale)


def _read(
    request: Request, completion: Completion, scale: tuple[int, int], settings: AskSettings
) -> Steps[ScoreReading]:
    """By log-probabilities, else by the reply's words."""
    if completion.declined:
        return ScoreReading(Outcome.ABSTAINED, completion.declined)
    least = max(settings.min_label_mass, _NEGLIGIBLE)
    try:
        weights = _weights(completion.top_tokens(label_position(completion)), scale)
        if sum(weights.values()) >= least:
            weights = yield from _finish(weights, request, completion, scale)
        reading = _weigh(weights, scale, least)
        if reading.outcome is Outcome.SCORED:
            return reading
    except MalformedReply as error:
        reading = ScoreReading(Outcome.ABSTAINED, str(error))
    score = _stated_score(completion, scale)
    if score is None:
        return replace(reading, reason=f"{reading.reason}, and its words end with no score")
    return replace(reading, outcome=Outcome.SCORED, reason="", score=float(score), rung=Rung.TEXT)


def _stated_score(completion: Completion, scale: tuple[int, int]) -> int | None:
    """What ends a reply that was cut is not its score."""
    return None if completion.finish_reason == "length" else parse_score(completion.text, scale)


def _weights(top: Iterable[TokenLogprob], scale: tuple[int, int], head: str = "") -> dict[str, float]:
    """Probabilities of the listed tokens that are a number of the scale, or begin one; after a `head`, of those that
    go on with it."""
    weights: dict[str, float] = {}
    for entry in top:
        number = head + (entry.token if head else bare(entry.token))
        if number != head and number in _beginnings(scale):
            weights[number] = weights.get(number, 0.0) + math.exp(entry.logprob)
    return weights


def _finish(
    weights: dict[str, float], request: Request, completion: Completion, scale: tuple[int, int]
) -> Steps[dict[str, float]]:
    """Probabilities of whole numbers where a vocabulary writes them digit by digit, so that "1" may go on to "10".
    One that lists a number of several digits writes them whole. Raises NoCompletion."""
    if any(len(number) > 1 for number in weights):
        return weights
    least = _NEGLIGIBLE * sum(weights.values())
    parts = yield from together(
        [_spread(head, weight, least, request, completion, scale) for head, weight in weights.items()]
    )
    return {number: weight for part in parts for number, weight in part.items()}


def _spread(
    head: str, weight: float, least: float, request: Request, completion: Completion, scale: tuple[int, int]
) -> Steps[dict[str, float]]:
    """The weight of a number, spread over itself and the longer ones that it begins: by the reply's own next position
    where the judge said it, else by asking with the number put into the judge's mouth. Raises NoCompletion where the
    endpoint cannot be asked so."""
    if weight < least or not _goes_on(head, scale):
        return {head: weight}
    start = label_position(completion)
    end = start + len(head)
    try:
        if bare("".join(completion.tokens[start:end])) == head and end < len(completion.tokens):
            top = completion.top_tokens(end)
        else:
            (answer,) = yield [replace(request, max_tokens=1, prefill=head)]
            continued = try_to_read(answer)
            if continued is None:
                raise MalformedReply(answer.reason or "the reply is malformed")
            top = continued.top_tokens(0)
            if sum(math.exp(entry.logprob) for entry in top if _begins_anew(entry.token, head, scale)) > 0.5:
                raise MalformedReply("the judge answered anew")
    except MalformedReply as error:
        raise NoCompletion(
            Outcome.ABSTAINED, f"whether {head!r} begins a longer score is not known, as no reply goes on: {error}"
        ) from None
    longer = _weights(top, scale, head)
    finished = {head: weight * max(0.0, 1.0 - sum(longer.values()))}
    for number, share in longer.items():
        finished |= yield from _spread(number, weight * share, least, request, completion, scale)
    return finished


def _weigh(weights: dict[str, float], scale: tuple[int, int], least: float) -> ScoreReading:
    """Mean and entropy over the points that are listed: what is not has less than the last that is."""
    points = range(scale[0], scale[1] + 1)
    masses = [weights.get(str(point), 0.0) for point in points]
    mass = sum(masses)
    if mass < least:
        reason = f"the scale has probability {mass:.3g}, less than {least:g}"
        return ScoreReading(Outcome.ABSTAINED, reason, mass=mass)
    probabilities = tuple(each / mass for each in masses)
    return ScoreReading(
        Outcome.SCORED,
        "",
        score=sum(point * probability for point, probability in zip(points, probabilities, strict=True)),
        probabilities=probabilities,
        mass=mass,
        entropy=-sum(probability * math.log(probability) for probability in probabilities if probability > 0),
        rung=Rung.LOGPROBS,
    )


@lru_cache(maxsize=16)
def _beginnings(scale: tuple[int, int]) -> frozenset[str]:
    """Every number of the scale and every string of digits that begins one."""
    numbers = [str(point) for point in range(scale[0], scale[1] + 1)]
    return frozenset(number[:length] for number in numbers for length in range(1, len(number) + 1))


def _begins_anew(token: str, head: str, scale: tuple[int, int]) -> bool:
    """Whether a token is a score, and not the rest of one."""
    return bare(token) in _beginnings(scale) and head + token not in _beginnings(scale)


def _goes_on(head: str, scale: tuple[int, int]) -> bool:
    return any(f"{head}{digit}" in _beginnings(scale) for digit in range(10))
