"""How the policy fared against SFT while it was trained, and which of its versions was taken."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlaif_ray import metrics
from rlaif_ray.metrics import MetricsRow
from rlaif_ray.records import Estimate
from rlaif_ray.report.figures.panel import FIRST, QUIET, SECOND, SHARES, Figure, interval_bars
from rlaif_ray.report.summary import Summary


def validation_figure(rows: Sequence[MetricsRow], summary: Summary) -> Figure | None:
    """The win rate over the iterations, with the policy that each round took."""
    logged = sorted((row for row in rows if row.stage == metrics.VALIDATION), key=lambda row: row.step)
    measured = [row for row in logged if math.isfinite(row.values[metrics.WIN_RATE])]
    points = [(row.step, row.values[metrics.WIN_RATE]) for row in measured]
    if not points:
        return None
    policies = [one.policy for one in summary.rounds] or [summary.policy]
    taken = {policy.taken_iteration for policy in policies}
    chosen = [(step, won) for step, won in points if step in taken]
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "win rate",
            "x": [step for step, _ in points],
            "y": [won for _, won in points],
            "error_y": interval_bars([_estimate(row) for row in measured], FIRST),
            "line": {"color": FIRST, "width": 2},
            "marker": {"size": 6},
        },
        {
            "type": "scatter",
            "mode": "markers+text",
            "name": "taken",
            "x": [step for step, _ in chosen],
            "y": [value for _, value in chosen],
            "text": [f"taken: {step:,}" for step, _ in chosen],
            # Beside the interval, and within the panel.
            "textposition": ["top right" if 2 * step < points[-1][0] else "top left" for step, _ in chosen],
            "marker": {"color": SECOND, "size": 13, "symbol": "diamond"},
        },
    ]
    even = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 0.5, "y1": 0.5}
    return Figure(
        id="validation",
        title="While it was trained",
        note=f"Win rate against SFT on {max(row.values[metrics.COMPARED] for row in logged):,.0f} validation prompts, "
        "which the final evaluation leaves out",
        traces=traces if chosen else traces[:1],
        layout={
            "xaxis": {"title": {"text": "iteration"}},
            "yaxis": {"title": {"text": "win rate"}, **SHARES},
            "shapes": [{**even, "line": {"color": QUIET, "width": 1, "dash": "dot"}}],
        },
    )


def _estimate(row: MetricsRow) -> Estimate | None:
    """None where there is no interval."""
    value, low, high = (row.values[name] for name in (metrics.WIN_RATE, metrics.WIN_RATE_LOW, metrics.WIN_RATE_HIGH))
    return Estimate(value, low, high) if math.isfinite(low) and math.isfinite(high) else None
