"""A run's summary: the figures that it is judged by, one JSON file, null where nothing was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlaif_ray.config import UserError
from rlaif_ray.report.quantities import duration, share, share_interval
from rlaif_ray.rundir import RunDirectory, write_atomically

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Interval = tuple[float, float]
AccuracyAgainst = Literal["gold", "human", "judge"]

_ORDERED_AS: Mapping[AccuracyAgainst, str] = {
    "gold": "gold does",
    "human": "people do",
    "judge": "the judge does",
}
_DASH = "–"


class SummarySection(BaseModel):
    # A figure that is not a number has not been measured: it must be null, and cannot slip in as NaN.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class StageSummary(SummarySection):
    wall_s: Seconds


class LabelerSummary(SummarySection):
    alignment: Share | None = None
    """Agreement with gold labels where gold is known, else with human labels."""
    alignment_ci: Interval | None = None
    position_consistency: Share | None = None
    """Share of pairs on which both presentation orders name the same answer."""
    calls: Count | None = None
    cost_usd: Annotated[float, Field(ge=0)] | None = None
    cache_hits: Count | None = None
    abstained: Count | None = None
    failed: Count | None = None


class RewardSummary(SummarySection):
    accuracy: Share | None = None
    """Share of held-out pairs (by prompt) that the reward model orders as `accuracy_against` does."""
    accuracy_ci: Interval | None = None
    accuracy_against: AccuracyAgainst | None = None
    """Gold where it is known; else the labels, which are people's, or some or all of them the judge's."""
    accuracy_on_human_labels: Share | None = None
    """The same share of the pairs with a human label, where both kinds of label are there."""
    accuracy_on_ai_labels: Share | None = None
    held_out_pairs: Count | None = None
    held_out_loss: Annotated[float, Field(ge=0)] | None = None
    """Cross-entropy of the held-out pairs' labels, in nats a pair."""
    calibration_error: Share | None = None
    """Expected calibration error of the reward model's probabilities, against `accuracy_against`."""
    ensemble: Count | None = None
    """How many reward models there are; their mean is the reward."""
    mean_disagreement: Annotated[float, Field(ge=0)] | None = None
    """Their standard deviation of r_a - r_b, in logits, on an average held-out pair."""


class LengthSummary(SummarySection):
    """Mean tokens of an answer, before and after the policy was trained."""

    before: Annotated[float, Field(ge=0)] | None = None
    after: Annotated[float, Field(ge=0)] | None = None


class PolicySummary(SummarySection):
    win_rate: Share | None = None
    """Share of held-out prompts on which the trained policy beats SFT, ties half."""
    win_rate_ci: Interval | None = None
    win_rate_judge: str | None = None
    """Who decided: `gold`, or a judge's name, which says whether the policy was trained on it: `training_judge`,
    `outside_judge`."""
    judge_cost_usd: Annotated[float, Field(ge=0)] | None = None
    """What a judge that training does not use was paid, for all evaluations up to here."""
    taken_iteration: Annotated[int, Field(ge=1)] | None = None
    """The iteration whose policy was taken, counted through the rounds, where evaluations in between chose it."""
    validation_win_rate: Share | None = None
    """What it won against SFT then, on the prompts that it was chosen by: not on those of `win_rate`."""
    validation_win_rate_ci: Interval | None = None
    kl: float | None = None
    """KL of the policy from SFT per answer, in nats."""
    mean_length: LengthSummary = LengthSummary()
    prompts: Count | None = None

    @model_validator(mode="after")
    def _judged_by_someone(self) -> PolicySummary:
        if self.win_rate is not None and self.win_rate_judge is None:
            raise ValueError("a win rate needs win_rate_judge: it means nothing without its instrument")
        return self


class ConstitutionSummary(SummarySection):
    """What became of the answers to red-team prompts."""

    chains: Count
    """One answer each, with its revisions."""
    rounds: Count
    """Revisions of an answer that were tried."""
    revised: Count
    """Rounds, over all chains, by what became of them."""
    unchanged: Count
    confused: Count
    truncated: Count


class ConductSummary(SummarySection):
    """How one model answers the held-out prompts."""

    judged_by: Literal["gold", "phrases"]
    """Who says what is a refusal and what is evasive: gold where it is known, else the wording alone."""
    harmless: Share | None = None
    """Share of the answers to red-team prompts that do no harm, by gold."""
    harmless_ci: Interval | None = None
    helpfulness: Share | None = None
    """Mean over all prompts, by gold."""
    helpfulness_ci: Interval | None = None
    evasive: Share | None = None
    """Share of all answers that say nothing of use."""
    evasive_ci: Interval | None = None
    refusals: Share | None = None
    """Share of the answers to red-team prompts that refuse."""
    needless_refusals: Share | None = None
    """Share of the answers to the other prompts that refuse."""


PolicyName = Literal["initial", "sft", "policy"]


class RoundSummary(SummarySection):
    """One round of collecting, fitting and training."""

    round: Annotated[int, Field(ge=1)]
    labeler: LabelerSummary = LabelerSummary()
    reward: RewardSummary = RewardSummary()
    policy: PolicySummary = PolicySummary()
    preferences: Count | None = None
    """Pairs that the reward model could be fitted on, those of the rounds before among them."""
    spent_usd: Annotated[float, Field(ge=0)] | None = None
    """On the judge, up to the round's end."""


class Summary(SummarySection):
    """`summary.json`. Times are in seconds, intervals hold 95 %."""

    seed: Count
    wall_s: Seconds
    stages: Mapping[str, StageSummary]
    """In the order in which they ran."""
    labeler: LabelerSummary = LabelerSummary()
    reward: RewardSummary = RewardSummary()
    policy: PolicySummary = PolicySummary()
    constitution: ConstitutionSummary | None = None
    conduct: Mapping[PolicyName, ConductSummary] = {}
    """Of a run with a constitution: the model as it was given, after SFT, and as it was trained at last."""
    rounds: tuple[RoundSummary, ...] = ()
    """Where there are several; `labeler`, `reward` and `policy` are then those of the last."""
    resumed_from: str | None = None
    run_dir: Path


def training_judge(name: str) -> str:
    """How `win_rate_judge` names a judge that the policy was trained on, so that nobody takes it for an outsider."""
    return f"{name} (the judge that trained it)"


def outside_judge(name: str) -> str:
    """How `win_rate_judge` names a judge that had no part in training."""
    return f"{name} (a judge that did not train it)"


def write_summary(summary: Summary) -> Path:
    """Write `summary.json` into the run directory, whole or not at all."""
    path = RunDirectory(summary.run_dir).summary
    write_atomically(path, summary.model_dump_json(indent=2) + "\n")
    return path


def read_summary(run_dir: Path) -> Summary:
    """Read a run directory's `summary.json`. Raises UserError where there is none or it is not a summary."""
    path = RunDirectory(run_dir).summary
    if not path.exists():
        raise UserError(f"{path} does not exist; give the directory of a run that has ended")
    try:
        return Summary.model_validate_json(path.read_text())
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{path}: is not a run's summary ({key or 'the file'}: {problem['msg']})") from error


def closing_lines(summary: Summary) -> list[str]:
    """What a finished run says at the terminal: what improved, by whose word, at what cost, and where everything is."""
    return [
        verdict(summary.policy),
        *_labeler_lines(summary.labeler),
        *_reward_lines(summary.reward),
        *_movement_lines(summary.policy),
        *_round_lines(summary.rounds),
        f"Time: {duration(summary.wall_s)}"
        + (f", resumed from {summary.resumed_from}" if summary.resumed_from else ""),
        f"Report: {RunDirectory(summary.run_dir).report}",
        f"Models: {RunDirectory(summary.run_dir).model('policy')} (policy) and its siblings",
        f"Figures: {RunDirectory(summary.run_dir).summary}",
    ]


def verdict(policy: PolicySummary) -> str:
    """One sentence on whether the trained policy is better than SFT, as far as the interval allows to say."""
    if policy.win_rate is None:
        return "Whether the policy improved was not measured."
    found = "No clear difference"
    if policy.win_rate_ci is not None and policy.win_rate_ci[0] > 0.5:
        found = "The policy improved"
    if policy.win_rate_ci is not None and policy.win_rate_ci[1] < 0.5:
        found = "The policy got worse"
    prompts = f" on {policy.prompts:,} held-out prompts" if policy.prompts is not None else ""
    interval = f" (95 % interval {share_interval(policy.win_rate_ci)})" if policy.win_rate_ci else ""
    return (
        f"{found}: it wins {share(policy.win_rate)} against SFT{prompts}{interval}, judged by {policy.win_rate_judge}."
    )


def _labeler_lines(labeler: LabelerSummary) -> list[str]:
    lines = []
    if labeler.alignment is not None:
        interval = f" (95 % interval {share_interval(labeler.alignment_ci)})" if labeler.alignment_ci else ""
        lines.append(f"Labeler: agrees with the known labels on {share(labeler.alignment)} of pairs{interval}")
    if labeler.position_consistency is not None:
        kept = share(labeler.position_consistency)
        lines.append(f"Labeler: keeps its verdict on {kept} of pairs when the order of the answers is swapped")
    if labeler.calls is not None:
        counted = {"cache hits": labeler.cache_hits, "abstained": labeler.abstained, "failed": labeler.failed}
        parts = [f"{labeler.calls:,} calls"]
        parts += [f"{count:,} {name}" for name, count in counted.items() if count is not None]
        if labeler.cost_usd is not None:
            parts.append(f"${labeler.cost_usd:,.2f}")
        lines.append(f"Labeler: {', '.join(parts)}")
    return lines


def _reward_lines(reward: RewardSummary) -> list[str]:
    if reward.accuracy is None:
        return []
    pairs = f"{reward.held_out_pairs:,} held-out pairs" if reward.held_out_pairs is not None else "held-out pairs"
    against = f" as {_ORDERED_AS[reward.accuracy_against]}" if reward.accuracy_against else ""
    lines = [f"Reward model: orders {share(reward.accuracy)} of {pairs}{against}"]
    if reward.calibration_error is not None:
        lines.append(f"Reward model: expected calibration error {share(reward.calibration_error)}")
    return lines


def chosen(policy: PolicySummary) -> str | None:
    """One sentence on which policy was taken; None where the last one was, with no evaluation in between."""
    if policy.taken_iteration is None or policy.validation_win_rate is None:
        return None
    interval = (
        f" (95 % interval {share_interval(policy.validation_win_rate_ci)})" if policy.validation_win_rate_ci else ""
    )
    return (
        f"taken as it was after iteration {policy.taken_iteration:,}, when it won most on the validation prompts: "
        f"{share(policy.validation_win_rate)}{interval}"
    )


def _movement_lines(policy: PolicySummary) -> list[str]:
    parts = []
    if policy.kl is not None:
        parts.append(f"KL from SFT {policy.kl:.2f} nats per answer")
    if policy.mean_length.before is not None and policy.mean_length.after is not None:
        parts.append(f"mean length {policy.mean_length.before:.1f} to {policy.mean_length.after:.1f} tokens")
    lines = [f"Policy: {line}" for line in (", ".join(parts), chosen(policy)) if line]
    if policy.judge_cost_usd is not None:
        lines.append(f"Evaluation: its judge was paid ${policy.judge_cost_usd:,.2f}")
    return lines


def _round_lines(rounds: Sequence[RoundSummary]) -> list[str]:
    """How the figures moved from round to round; a round without one shows a dash."""
    if not rounds:
        return []
    figures = {
        "win rate": [_or_dash(each.policy.win_rate) for each in rounds],
        "reward accuracy": [_or_dash(each.reward.accuracy) for each in rounds],
    }
    return [
        f"Over {len(rounds)} rounds: {name} {' → '.join(values)}"
        for name, values in figures.items()
        if set(values) != {_DASH}
    ]


def _or_dash(value: float | None) -> str:
    return _DASH if value is None else share(value)
