"""From what a run produced to the figures of its summary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rlaif_ray.evaluation.conduct import ConductRates
from rlaif_ray.evaluation.held_out import HeldOutPair
from rlaif_ray.evaluation.measures import (
    kl_per_answer,
    labeler_alignment,
    mean_length,
    outcome_of_preference,
    outcomes_of_margins,
    position_consistency,
)
from rlaif_ray.evaluation.reward_quality import reward_quality
from rlaif_ray.evaluation.statistics import win_rate
from rlaif_ray.evaluation.validation import Validation
from rlaif_ray.judge.progress import JudgeProgress
from rlaif_ray.prompts import Gold
from rlaif_ray.records import Estimate, Outcome, Preference, Prompt, offsets_of
from rlaif_ray.report.summary import (
    ConductSummary,
    Interval,
    LabelerSummary,
    LengthSummary,
    PolicySummary,
    RewardSummary,
)
from rlaif_ray.samples import Sample, write_table


def labeler_summary(
    preferences: Sequence[Preference], progress: JudgeProgress, gold: Gold | None, *, spent_usd: float | None
) -> LabelerSummary:
    """How far the labels can be trusted, and what they cost. Alignment is measured where gold is known."""
    scored = [preference for preference in preferences if preference.p is not None]
    p = np.array([preference.p for preference in scored], dtype=np.float64)
    valid = np.ones(len(scored), dtype=np.bool_)
    alignment = None
    if gold is not None:
        margins = [
            gold(one.pair.prompt, one.pair.response_a) - gold(one.pair.prompt, one.pair.response_b) for one in scored
        ]
        alignment = labeler_alignment(p, np.array(margins), valid).share
    consistency = position_consistency(
        np.array([preference.consistent is True for preference in scored], dtype=np.bool_),
        np.array([preference.consistent is not None for preference in scored], dtype=np.bool_),
    )
    outcomes = [preference.outcome for preference in preferences]
    return LabelerSummary(
        alignment=_value(alignment),
        alignment_ci=_interval(alignment),
        position_consistency=_value(consistency),
        calls=progress.calls,
        cost_usd=spent_usd,
        cache_hits=progress.cached,
        abstained=outcomes.count(Outcome.ABSTAINED),
        failed=outcomes.count(Outcome.FAILED) + outcomes.count(Outcome.OVER_BUDGET),
    )


def reward_summary(pairs: Sequence[HeldOutPair]) -> RewardSummary:
    """The reward model on held-out pairs."""
    quality = reward_quality(pairs)
    accuracies = {each.name: _value(each.share) for each in quality.by_source}
    mixed = len(accuracies) > 1
    return RewardSummary(
        accuracy=_value(quality.accuracy.share),
        accuracy_ci=_interval(quality.accuracy.share),
        accuracy_against=quality.against,
        accuracy_on_human_labels=accuracies["human"] if mixed else None,
        accuracy_on_ai_labels=accuracies["ai"] if mixed else None,
        held_out_pairs=quality.accuracy.counted,
        held_out_loss=None if quality.label_calibration is None else quality.label_calibration.loss,
        calibration_error=None if quality.calibration is None else quality.calibration.error,
        ensemble=quality.members,
        mean_disagreement=None if quality.disagreement is None else quality.disagreement.mean,
    )


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Who won on each held-out prompt: `outcomes` (N,) are 1 where the trained policy did, 0.5 at a tie, 0 where SFT
    did, NaN where nobody could say. Utilities (N,) are gold's, where gold decided."""

    outcomes: NDArray[np.float64]
    instrument: str
    before_utilities: NDArray[np.float64] | None = None
    after_utilities: NDArray[np.float64] | None = None


def gold_verdicts(prompts: Sequence[Prompt], before: Sequence[Sample], after: Sequence[Sample], gold: Gold) -> Verdicts:
    """Gold decides: the answer of the higher utility wins."""
    utilities = [
        np.array([gold(prompt, sample.answer) for prompt, sample in zip(prompts, samples, strict=True)])
        for samples in (before, after)
    ]
    return Verdicts(outcomes_of_margins(utilities[1] - utilities[0]), "gold", utilities[0], utilities[1])


def judge_verdicts(preferences: Sequence[Preference | None], instrument: str) -> Verdicts:
    """A judge decides, on pairs whose response_a is the trained policy's; None stands for equal answers, a tie."""
    outcomes = [0.5 if preference is None else outcome_of_preference(preference) for preference in preferences]
    return Verdicts(np.array([math.nan if outcome is None else outcome for outcome in outcomes]), instrument)


def policy_summary(
    prompts: Sequence[Prompt],
    verdicts: Verdicts,
    before: Sequence[Sample],
    after: Sequence[Sample],
    after_logprobs: NDArray[np.float32],
    reference_logprobs: NDArray[np.float32],
    *,
    seed: int,
) -> PolicySummary:
    """The trained policy against SFT. The log-probabilities are flat over the answers in `after`, in nats."""
    ids = [prompt.id for prompt in prompts]
    everything = np.ones(len(prompts), dtype=np.bool_)
    judged = np.isfinite(verdicts.outcomes)
    won = win_rate(verdicts.outcomes, judged, ids, seed=seed)
    offsets = [offsets_of([len(sample.answer_tokens) for sample in samples]) for samples in (before, after)]
    return PolicySummary(
        win_rate=_value(won),
        win_rate_ci=_interval(won),
        win_rate_judge=None if won is None else verdicts.instrument,
        kl=_value(kl_per_answer(after_logprobs, reference_logprobs, offsets[1], everything, ids, seed=seed)),
        mean_length=LengthSummary(
            before=_value(mean_length(offsets[0], everything, ids, seed=seed)),
            after=_value(mean_length(offsets[1], everything, ids, seed=seed)),
        ),
        prompts=int(np.count_nonzero(judged)),
    )


def conduct_summary(rates: ConductRates) -> ConductSummary:
    """How a model answers the held-out prompts, as the summary tells it."""
    return ConductSummary(
        judged_by=rates.judged_by,
        harmless=_value(rates.harmless),
        harmless_ci=_interval(rates.harmless),
        helpfulness=_value(rates.helpfulness),
        helpfulness_ci=_interval(rates.helpfulness),
        evasive=_value(rates.evasive),
        evasive_ci=_interval(rates.evasive),
        refusals=_value(rates.refusals),
        needless_refusals=_value(rates.needless_refusals),
    )


def validation_of(iteration: int, prompts: Sequence[Prompt], verdicts: Verdicts, *, seed: int) -> Validation:
    """What a comparison while the policy is trained says of it."""
    judged = np.isfinite(verdicts.outcomes)
    won = win_rate(verdicts.outcomes, judged, [prompt.id for prompt in prompts], seed=seed)
    return Validation(
        iteration=iteration,
        win_rate=_value(won),
        win_rate_ci=_interval(won),
        prompts=int(np.count_nonzero(judged)),
    )


def write_comparisons(
    path: Path, prompts: Sequence[Prompt], before: Sequence[Sample], after: Sequence[Sample], verdicts: Verdicts
) -> None:
    """Both answers to every held-out prompt with the verdict on them, as parquet; null where nobody could say."""
    columns = {
        "prompt_id": [prompt.id for prompt in prompts],
        "prompt": [prompt.text for prompt in prompts],
        "before": [sample.answer for sample in before],
        "after": [sample.answer for sample in after],
        "outcome": pa.array(verdicts.outcomes, from_pandas=True),
        "before_utility": pa.array(_or_nulls(verdicts.before_utilities, len(prompts)), from_pandas=True),
        "after_utility": pa.array(_or_nulls(verdicts.after_utilities, len(prompts)), from_pandas=True),
    }
    write_table(path, pa.table(columns))


def _or_nulls(values: NDArray[np.float64] | None, count: int) -> NDArray[np.float64]:
    return np.full(count, np.nan) if values is None else values


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def _interval(estimate: Estimate | None) -> Interval | None:
    if estimate is None or not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return None
    return (estimate.low, estimate.high)
