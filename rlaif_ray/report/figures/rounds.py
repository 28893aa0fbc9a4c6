"""How a run's figures drift over its rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif_ray.records import Estimate
from rlaif_ray.report.figures.panel import FIRST, SHARES, Figure, interval_bars
from rlaif_ray.report.summary import Interval, RoundSummary


@dataclass(frozen=True, slots=True)
class _Drift:
    """One figure of a round, and its interval where it has one."""

    id: str
    title: str
    note: str
    value: Callable[[RoundSummary], float | None]
    interval: Callable[[RoundSummary], Interval | None] | None = None
    axis: Mapping[str, Any] | None = None


_PERCENT: Mapping[str, Any] = {"tickformat": ".1~%"}
_FROM_ZERO: Mapping[str, Any] = {"rangemode": "tozero"}

_DRIFTS = (
    _Drift(
        "win-rate", "Win rate", "Against SFT", lambda one: one.policy.win_rate,
        lambda one: one.policy.win_rate_ci, SHARES,
    ),
    _Drift("kl", "KL from SFT", "Nats per answer", lambda one: one.policy.kl, axis=_FROM_ZERO),
    _Drift(
        "length", "Answer length", "Mean tokens, stop token included", lambda one: one.policy.mean_length.after,
        axis=_FROM_ZERO,
    ),
    _Drift(
        "alignment", "Labeler alignment", "Share of pairs labelled as the reference does",
        lambda one: one.labeler.alignment, lambda one: one.labeler.alignment_ci, _PERCENT,
    ),
    _Drift(
        "consistency", "Position consistency", "Share of pairs with one verdict in both orders",
        lambda one: one.labeler.position_consistency, axis=_PERCENT,
    ),
    _Drift(
        "accuracy", "Reward accuracy", "On held-out pairs of all rounds so far", lambda one: one.reward.accuracy,
        lambda one: one.reward.accuracy_ci, _PERCENT,
    ),
    _Drift(
        "calibration", "Calibration error", "Of the reward model, expected", lambda one: one.reward.calibration_error,
        axis={**_PERCENT, **_FROM_ZERO},
    ),
    _Drift("preferences", "Preferences", "Pairs of all rounds so far", lambda one: one.preferences, axis=_FROM_ZERO),
    _Drift("spent", "Spent on the judge", "US dollars so far", lambda one: one.spent_usd, axis=_FROM_ZERO),
)  # fmt: skip


def round_figures(rounds: Sequence[RoundSummary]) -> list[Figure]:
    """A panel for each figure that two rounds or more measured."""
    panels = [_panel(drift, rounds) for drift in _DRIFTS]
    return [panel for panel in panels if len(panel.traces[0]["x"]) > 1]


def _panel(drift: _Drift, rounds: Sequence[RoundSummary]) -> Figure:
    measured = [(one, value) for one in rounds if (value := drift.value(one)) is not None]
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [one.round for one, _ in measured],
        "y": [value for _, value in measured],
        "line": {"color": FIRST, "width": 2},
        "marker": {"size": 7},
    }
    if drift.interval is not None:
        intervals = [(value, drift.interval(one)) for one, value in measured]
        estimates = [interval and Estimate(value, *interval) for value, interval in intervals]
        trace["error_y"] = interval_bars(estimates, FIRST)
    return Figure(
        id=f"rounds-{drift.id}",
        title=drift.title,
        note=drift.note,
        traces=[trace],
        layout={
            "xaxis": {"title": {"text": "round"}, "dtick": 1, "tickformat": "d"},
            "yaxis": dict(drift.axis or {}),
            "height": 210,
        },
    )
