"""What judges make of a policy's answers: scores, marks by a rubric, and verdicts between siblings or against a
reference.

A judgement that brought no number leaves its answer without one. Where a budget is spent the run stops, unless
`judge.when_spent` says otherwise.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from actors.judge import Judges
from rlaif_ray.config import JudgeConfig, Stopped
from rlaif_ray.labelling import label_where_answers_differ, over_budget_stop
from rlaif_ray.records import AnswerScore, AnswerToScore, Pair, Preference, RubricScore
from rlaif_ray.reward.bradley_terry import bradley_terry_scores
from rlaif_ray.reward.composition import DecodedAnswer, RewardPart


async def judge_scores(
    judges: Judges, judge: JudgeConfig, answers: Sequence[DecodedAnswer], purpose: str
) -> RewardPart:
    """Each answer alone, from -1 to 1 (direct RLAIF, Lee et al. 2023)."""
    scores = await judges.score(_to_score(answers), purpose)
    return RewardPart(_values(scores), _reasons(scores, judge, "answers"))


async def rubric_scores(
    judges: Judges, judge: JudgeConfig, answers: Sequence[DecodedAnswer], purpose: str
) -> RewardPart:
    """Each answer alone by the criteria of the rubric: their weighted mean, from -1 to 1, and each as a detail."""
    scores = await judges.rubric(_to_score(answers), purpose)
    details = {name: np.array([score.criteria[name] for score in scores], dtype=float) for name in scores[0].criteria}
    return RewardPart(_values(scores), _reasons(scores, judge, "answers"), details)


async def sibling_scores(
    judges: Judges, judge: JudgeConfig, answers: Sequence[DecodedAnswer], purpose: str
) -> RewardPart:
    """Each answer against every other to its prompt: Bradley-Terry scores within the group, in logits around 0."""
    groups: dict[str, list[int]] = {}
    for row, answer in enumerate(answers):
        groups.setdefault(answer.group_id, []).append(row)
    rows = [pair for group in groups.values() for pair in itertools.combinations(group, 2)]
    pairs = [_pair(answers[a], answers[b].sample_id, answers[b].text) for a, b in rows]
    preferences = await _compared(judges, pairs, purpose)
    reasons = _reasons([one for one in preferences if one is not None], judge, "pairs")
    verdicts = dict(zip(rows, map(_probability, preferences), strict=True))
    values = np.full(len(answers), np.nan)
    for group in groups.values():
        values[group] = _group_scores(group, verdicts)
    lone = sum(len(group) == 1 for group in groups.values())
    return RewardPart(values, reasons + Counter({"it has no siblings": lone}))


async def reference_scores(
    judges: Judges, judge: JudgeConfig, answers: Sequence[DecodedAnswer], purpose: str
) -> RewardPart:
    """Each answer against its prompt's reference answer: 2p - 1, from -1 to 1."""
    rows = [row for row, answer in enumerate(answers) if answer.prompt.reference is not None]
    pairs = [_pair(answers[row], "reference", answers[row].prompt.reference or "") for row in rows]
    preferences = await _compared(judges, pairs, purpose)
    values = np.full(len(answers), np.nan)
    values[rows] = [np.nan if (p := _probability(one)) is None else 2 * p - 1 for one in preferences]
    reasons = _reasons([one for one in preferences if one is not None], judge, "answers")
    return RewardPart(values, reasons + Counter({"its prompt has no reference answer": len(answers) - len(rows)}))


def _group_scores(group: Sequence[int], verdicts: Mapping[tuple[int, int], float | None]) -> NDArray[np.float64]:
    """Of one group's rows, by the probabilities that the first of two is better; pairs without one are left out."""
    places = itertools.combinations(range(len(group)), 2)
    scored = [(a, b) for a, b in places if verdicts[group[a], group[b]] is not None]
    first, second = np.array(scored, dtype=np.int64).reshape(-1, 2).T
    p = np.array([verdicts[group[a], group[b]] for a, b in scored], dtype=np.float64)
    return bradley_terry_scores(first, second, p, len(group))


async def _compared(judges: Judges, pairs: Sequence[Pair], purpose: str) -> list[Preference | None]:
    return await label_where_answers_differ(lambda asked: judges.label(asked, purpose), pairs)


def _probability(preference: Preference | None) -> float | None:
    return 0.5 if preference is None else preference.p


def _pair(answer: DecodedAnswer, against: str, text: str) -> Pair:
    return Pair(f"{answer.sample_id}~{against}", answer.prompt, answer.text, text, sample_a=answer.sample_id)


def _to_score(answers: Sequence[DecodedAnswer]) -> list[AnswerToScore]:
    return [AnswerToScore(answer.sample_id, answer.prompt, answer.text) for answer in answers]


def _values(scores: Sequence[AnswerScore | RubricScore]) -> NDArray[np.float64]:
    return np.array([score.value for score in scores], dtype=float)


def _reasons(judged: Sequence[AnswerScore | RubricScore | Preference], judge: JudgeConfig, what: str) -> Counter[str]:
    """Why judgements brought no number. Raises Stopped where they could not be paid for."""
    stop = over_budget_stop(judged, judge, what)
    if stop is not None:
        raise Stopped(stop)
    return Counter(one.reason for one in judged if one.reason)
