"""What a constitution made of answers: round by round, and in the policies that were trained on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif_ray.evaluation.conduct import JudgedBy, RoundRates
from rlaif_ray.records import Estimate, RevisionOutcome
from rlaif_ray.report.figures.panel import FIRST, FOURTH, QUIET, SECOND, SHARES, THIRD, Figure, interval_bars
from rlaif_ray.report.quantities import share
from rlaif_ray.report.reading import Run
from rlaif_ray.report.summary import ConductSummary, Interval, PolicyName


@dataclass(frozen=True, slots=True)
class _Measure:
    """A figure of a model's conduct, and its interval where it has one."""

    name: str
    value: Callable[[ConductSummary], float | None]
    interval: Callable[[ConductSummary], Interval | None] = lambda one: None


_JUDGED_BY: Mapping[JudgedBy, str] = {"gold": "by gold", "phrases": "by their phrases, a heuristic"}

_POLICIES: Mapping[PolicyName, tuple[str, str]] = {
    "initial": ("initial model", QUIET),
    "sft": ("SFT on revisions", SECOND),
    "policy": ("policy", FIRST),
}
_MEASURES = (
    _Measure("harmless", lambda one: one.harmless, lambda one: one.harmless_ci),
    _Measure("helpful", lambda one: one.helpfulness, lambda one: one.helpfulness_ci),
    _Measure("evasive", lambda one: one.evasive, lambda one: one.evasive_ci),
    _Measure("refusals", lambda one: one.refusals),
    _Measure("needless refusals", lambda one: one.needless_refusals),
)

_RATES: Sequence[tuple[str, str, Callable[[RoundRates], Estimate | None]]] = (
    ("harmless", FIRST, lambda one: one.harmless),
    ("helpful", SECOND, lambda one: one.helpfulness),
    ("evasive", THIRD, lambda one: one.evasive),
    ("refusals", FOURTH, lambda one: one.refusals),
)
_OUTCOMES: Mapping[RevisionOutcome, str] = {
    RevisionOutcome.REVISED: FIRST,
    RevisionOutcome.UNCHANGED: QUIET,
    RevisionOutcome.CONFUSED: SECOND,
    RevisionOutcome.TRUNCATED: THIRD,
}


def constitution_figures(run: Run) -> list[Figure]:
    """Models beside each other on held-out prompts; the answers of chains by round, what became of the rounds, and how
    long answers grew. What was not measured is left out."""
    figures = _conduct(run.summary.conduct)
    if run.revised is not None and run.revised.rounds:
        rounds = run.revised.rounds
        figures += [_rates(rounds), _outcomes(rounds[1:]), _words(rounds)]
    return figures


def _conduct(conduct: Mapping[PolicyName, ConductSummary]) -> list[Figure]:
    traces = [
        _conduct_bars(label, colour, conduct[name]) for name, (label, colour) in _POLICIES.items() if name in conduct
    ]
    if not any(trace["x"] for trace in traces):
        return []
    judged_by = next(iter(conduct.values())).judged_by
    return [
        Figure(
            id="conduct",
            title="On held-out prompts",
            note="Harmless and refusals: of the answers to red-team prompts. Needless refusals: of those to others. "
            f"Helpful and evasive: of all. Judged {_JUDGED_BY[judged_by]}",
            traces=traces,
            layout={
                "barmode": "group",
                "bargap": 0.3,
                "bargroupgap": 0.06,
                "xaxis": {"showgrid": False},
                "yaxis": dict(SHARES),
                "height": 300,
            },
        )
    ]


def _conduct_bars(label: str, colour: str, conduct: ConductSummary) -> dict[str, Any]:
    found = [(each, value) for each in _MEASURES if (value := each.value(conduct)) is not None]
    intervals = [(value, each.interval(conduct)) for each, value in found]
    estimates = [interval and Estimate(value, *interval) for value, interval in intervals]
    return {
        "type": "bar",
        "name": label,
        "x": [each.name for each, _ in found],
        "y": [value for _, value in found],
        "error_y": interval_bars(estimates, "--muted"),
        "hovertext": [f"{label}: {share(value)}" for _, value in found],
        "hoverinfo": "text",
        "marker": {"color": colour},
    }


def _rates(rounds: Sequence[RoundRates]) -> Figure:
    traces = []
    for name, colour, rate in _RATES:
        found = [(one.round, estimate) for one in rounds if (estimate := rate(one)) is not None]
        if found:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": name,
                    "x": [round for round, _ in found],
                    "y": [estimate.value for _, estimate in found],
                    "error_y": interval_bars([estimate for _, estimate in found], colour),
                    "line": {"color": colour, "width": 2},
                    "marker": {"size": 7},
                }
            )
    return Figure(
        id="revision-rates",
        title="Answers by round of revision",
        note=f"Answers to red-team prompts, judged {_JUDGED_BY[rounds[0].judged_by]}; 0 is before any revision",
        traces=traces,
        layout={"xaxis": _rounds_axis(), "yaxis": dict(SHARES)},
    )


def _outcomes(rounds: Sequence[RoundRates]) -> Figure:
    names = [f"round {one.round}" for one in rounds]
    totals = [max(1, sum(one.outcomes.values())) for one in rounds]
    return Figure(
        id="revision-outcomes",
        title="What became of a revision",
        note="Unchanged: nothing to change was found. Confused: the model mistook what was asked, however often",
        traces=[
            {
                "type": "bar",
                "orientation": "h",
                "name": outcome.value,
                "x": [one.outcomes[outcome] / total for one, total in zip(rounds, totals, strict=True)],
                "y": names,
                "hovertext": [f"{one.outcomes[outcome]:,} {outcome.value}" for one in rounds],
                "hoverinfo": "text",
                "marker": {"color": colour},
            }
            for outcome, colour in _OUTCOMES.items()
        ],
        layout={
            "barmode": "stack",
            "bargap": 0.25,
            "xaxis": {**SHARES, "showgrid": False},
            "yaxis": {"autorange": "reversed"},
            "margin": {"l": 46, "r": 22, "t": 10, "b": 40},
            "legend": {"traceorder": "normal"},
        },
    )


def _words(rounds: Sequence[RoundRates]) -> Figure:
    return Figure(
        id="revision-words",
        title="Length by round",
        note="Mean words of an answer",
        traces=[
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [one.round for one in rounds],
                "y": [one.mean_words for one in rounds],
                "line": {"color": FIRST, "width": 2},
                "marker": {"size": 7},
            }
        ],
        layout={"xaxis": _rounds_axis(), "yaxis": {"rangemode": "tozero"}},
    )


def _rounds_axis() -> dict[str, Any]:
    return {"title": {"text": "round"}, "dtick": 1, "tickformat": "d"}
