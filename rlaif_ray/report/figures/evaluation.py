"""How the trained policy fares against SFT."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlaif_ray import metrics
from rlaif_ray.metrics import MetricsRow
from rlaif_ray.records import Estimate
from rlaif_ray.report.figures.panel import (
    FIRST,
    QUIET,
    SECOND,
    SHARES,
    STACKED,
    Figure,
    interval_bars,
    outline,
    stacked,
)
from rlaif_ray.report.figures.validation import validation_figure
from rlaif_ray.report.reading import Evaluated, Run
from rlaif_ray.report.summary import Summary


def evaluation_figures(run: Run) -> list[Figure]:
    """Who won, gold utilities before and after, what the KL bought, and how it came to that."""
    figures = []
    if run.evaluated is not None:
        figures += _outcomes(run.evaluated)
        figures += _utilities(run.evaluated)
    if run.metrics is not None:
        figures += _kl_frontier(run.metrics, run.summary)
        validation = validation_figure(run.metrics, run.summary)
        figures += [] if validation is None else [validation]
    return figures


def _outcomes(evaluated: Evaluated) -> list[Figure]:
    outcomes = evaluated.outcomes
    parts = [("won", 1.0, FIRST), ("tied", 0.5, QUIET), ("lost", 0.0, SECOND)]
    counts = [(name, outcomes.count(outcome), colour) for name, outcome, colour in parts]
    judged = sum(count for _, count, _ in counts)
    if not judged:
        return []
    unjudged = f" {len(outcomes) - judged:,} could not be judged." if judged < len(outcomes) else ""
    return [
        Figure(
            id="outcomes",
            title="Against SFT",
            note=f"{judged:,} held-out prompts, one answer of each model.{unjudged}",
            traces=stacked(counts),
            layout=STACKED,
        )
    ]


def _utilities(evaluated: Evaluated) -> list[Figure]:
    before, after = (u[np.isfinite(u)] for u in (evaluated.before_utility, evaluated.after_utility))
    if not len(before) or not len(after):
        return []
    edges = np.histogram_bin_edges(np.concatenate([before, after]), bins=24)
    return [
        Figure(
            id="utilities",
            title="Gold utility",
            note="Answers of SFT and of the trained policy to the same prompts",
            traces=[
                outline("SFT", before, edges, QUIET),
                outline("policy", after, edges, FIRST),
            ],
            layout={"xaxis": {"title": {"text": "utility"}}, "yaxis": {"title": {"text": "answers"}}},
        )
    ]


def _kl_frontier(rows: Sequence[MetricsRow], summary: Summary) -> list[Figure]:
    ppo = [row for row in rows if row.stage == metrics.PPO and {metrics.KL, metrics.REWARD_MEAN} <= row.values.keys()]
    ppo = [row for row in ppo if math.isfinite(row.values[metrics.KL] + row.values[metrics.REWARD_MEAN])]
    policy = summary.policy
    measured = policy.kl is not None and policy.win_rate is not None
    if not ppo and not measured:
        return []
    traces: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"xaxis": {"title": {"text": "KL from SFT (nats per answer)"}, "rangemode": "tozero"}}
    if ppo:
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "reward, by step",
                "x": [row.values[metrics.KL] for row in ppo],
                "y": [row.values[metrics.REWARD_MEAN] for row in ppo],
                "text": [f"step {row.step}" for row in ppo],
                "marker": {"color": QUIET, "size": 6, "opacity": 0.7},
            }
        )
        layout["yaxis"] = {"title": {"text": "mean reward"}}
    if measured:
        value, interval = policy.win_rate, policy.win_rate_ci
        point: dict[str, Any] = {
            "type": "scatter",
            "mode": "markers",
            "name": "win rate, at the end",
            "x": [policy.kl],
            "y": [value],
            "yaxis": "y2" if ppo else "y",
            "marker": {"color": SECOND, "size": 11},
        }
        if interval is not None and value is not None:
            point["error_y"] = interval_bars([Estimate(value, *interval)], SECOND)
        traces.append(point)
        axis = {"title": {"text": "win rate"}, **SHARES}
        layout["yaxis2" if ppo else "yaxis"] = {**axis, "overlaying": "y", "side": "right"} if ppo else axis
    return [
        Figure(
            id="frontier",
            title="What the KL bought",
            note="Mean reward in training against the distance from SFT, and the win rate at the end",
            traces=traces,
            layout=layout,
        )
    ]
