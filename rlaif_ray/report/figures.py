"""The report's figures, as Plotly's JSON. Colours are CSS variables of the page, so that they follow its theme."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlaif_ray import metrics
from rlaif_ray.judge.reading import Rung
from rlaif_ray.metrics import METRICS, MetricsRow
from rlaif_ray.report.judged import Judged
from rlaif_ray.report.reading import Evaluated, Preferences, Run
from rlaif_ray.report.summary import Summary, duration, share

_FIRST, _SECOND, _THIRD, _FOURTH, _QUIET = "--series-1", "--series-2", "--series-3", "--series-4", "--quiet"
_BAND = "--band"

# How a reply was read, in words.
RUNGS: Mapping[str, str] = {
    Rung.LOGPROBS: "log-probabilities",
    Rung.TEXT: "words of the reply",
    Rung.REFORMAT: "a second call, for the verdict",
    Rung.CONSTRAINED: "a call confined to the labels",
    "": "not read",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One panel: a title, a line that says what is seen, and Plotly's traces and layout."""

    id: str
    title: str
    note: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StageCurves:
    """What one stage logged: its main curves, and the rest."""

    stage: str
    title: str
    main: tuple[Figure, ...]
    more: tuple[Figure, ...]


# The curves that matter most, by stage; metrics in one tuple share a panel. What else was logged is folded away.
_TITLES = {metrics.SFT: "Supervised fine-tuning", metrics.REWARD: "Reward model", metrics.PPO: "PPO"}
_MAIN: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    metrics.SFT: (("Loss", (metrics.LOSS, metrics.HELD_OUT_LOSS)),),
    metrics.REWARD: (
        ("Loss", (metrics.LOSS, metrics.HELD_OUT_LOSS)),
        ("Accuracy", (metrics.ACCURACY, metrics.HELD_OUT_ACCURACY)),
    ),
    metrics.PPO: (
        ("Reward", (metrics.REWARD_MEAN,)),
        ("KL from SFT", (metrics.KL,)),
        ("Answer length", (metrics.ANSWER_LENGTH,)),
        ("Value loss", (metrics.VALUE_LOSS,)),
        ("Clip fraction", (metrics.CLIP_FRACTION,)),
        ("Entropy", (metrics.ENTROPY,)),
        ("Rollout-learner gap", (metrics.LOGPROB_GAP, metrics.LOGPROB_GAP_MAX)),
    ),
}


def stage_curves(rows: Sequence[MetricsRow]) -> list[StageCurves]:
    """The training curves of every stage, in the order in which the stages were logged first."""
    stages = sorted({row.stage: min(r.time for r in rows if r.stage == row.stage) for row in rows}.items(), key=_second)
    return [_curves_of(stage, [row for row in rows if row.stage == stage]) for stage, _ in stages]


def _second(item: tuple[str, float]) -> float:
    return item[1]


def _curves_of(stage: str, rows: Sequence[MetricsRow]) -> StageCurves:
    logged = list(dict.fromkeys(name for row in rows for name in row.values))
    main, shown = [], {metrics.REWARD_STD}
    for title, names in _MAIN.get(stage, ()):
        present = [name for name in names if name in logged]
        if present:
            main.append(_curve(stage, title, present, rows))
            shown.update(present)
    more = [_curve(stage, name.replace("_", " ").capitalize(), [name], rows) for name in logged if name not in shown]
    return StageCurves(stage, _TITLES.get(stage, stage), tuple(main), tuple(more))


def _curve(stage: str, title: str, names: Sequence[str], rows: Sequence[MetricsRow]) -> Figure:
    traces: list[dict[str, Any]] = []
    if names == [metrics.REWARD_MEAN]:
        traces += _band(rows, metrics.REWARD_MEAN, metrics.REWARD_STD)
    for name, colour in zip(names, (_FIRST, _SECOND), strict=False):
        steps, values = _series(rows, name)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines" if len(steps) > 40 else "lines+markers",
                "name": name.replace("_", " "),
                "x": steps,
                "y": values,
                "line": {"color": colour, "width": 2},
                "marker": {"size": 5},
            }
        )
    known = METRICS.get(names[0])
    note = known.meaning[0].upper() + known.meaning[1:] if known else ""
    return Figure(
        id=f"{stage}-{names[0]}",
        title=title,
        note=note + (f" ({known.unit})" if known and known.unit else ""),
        traces=traces,
        layout={"xaxis": {"title": {"text": "step"}}, "showlegend": len(names) > 1},
    )


def _series(rows: Sequence[MetricsRow], name: str) -> tuple[list[int], list[float | None]]:
    """Steps and values of a metric. What is not a number leaves a gap in the line."""
    logged = [(row.step, row.values[name]) for row in rows if name in row.values]
    return [step for step, _ in logged], [value if math.isfinite(value) else None for _, value in logged]


def _band(rows: Sequence[MetricsRow], mean: str, deviation: str) -> list[dict[str, Any]]:
    both = [row for row in rows if mean in row.values and deviation in row.values]
    both = [row for row in both if math.isfinite(row.values[mean]) and math.isfinite(row.values[deviation])]
    if not both:
        return []
    shape = {"type": "scatter", "mode": "lines", "x": [row.step for row in both], "line": {"width": 0}}
    quiet = {"hoverinfo": "skip", "showlegend": False}
    low = [row.values[mean] - row.values[deviation] for row in both]
    high = [row.values[mean] + row.values[deviation] for row in both]
    return [{**shape, **quiet, "y": low}, {**shape, **quiet, "y": high, "fill": "tonexty", "fillcolor": _BAND}]


def evaluation_figures(run: Run) -> list[Figure]:
    """Who won, gold utilities before and after, and what the KL bought."""
    figures = []
    if run.evaluated is not None:
        figures += _outcomes(run.evaluated)
        figures += _utilities(run.evaluated)
    if run.metrics is not None:
        figures += _kl_frontier(run.metrics, run.summary)
    return figures


def _outcomes(evaluated: Evaluated) -> list[Figure]:
    outcomes = evaluated.outcomes
    parts = [("won", 1.0, _FIRST), ("tied", 0.5, _QUIET), ("lost", 0.0, _SECOND)]
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
            traces=_stacked(counts),
            layout=_STACKED,
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
                _steps("SFT", before, edges, _QUIET),
                _steps("policy", after, edges, _FIRST),
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
                "marker": {"color": _QUIET, "size": 6, "opacity": 0.7},
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
            "marker": {"color": _SECOND, "size": 11},
        }
        if interval is not None and value is not None:
            spread = {"type": "data", "symmetric": False, "color": _SECOND, "thickness": 2, "width": 5}
            point["error_y"] = {**spread, "array": [interval[1] - value], "arrayminus": [value - interval[0]]}
        traces.append(point)
        axis = {
            "title": {"text": "win rate"},
            "tickformat": ".0%",
            "range": [0, 1],
            "tickvals": [0, 0.25, 0.5, 0.75, 1],
        }
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


def preference_figures(run: Run) -> list[Figure]:
    """How sure the labeler is, and how far it follows the position instead of the answer."""
    figures = []
    if run.preferences is not None:
        figures.append(_soft_preferences(run.preferences))
    if run.judged is not None:
        figures += _positions(run.judged)
    return figures


def _soft_preferences(preferences: Preferences) -> Figure:
    edges = np.linspace(0.5, 1.0, 26)
    groups = [
        ("both orders agree", preferences.agree, _FIRST),
        ("orders disagree", preferences.disagree, _SECOND),
        ("one order only", preferences.one_order, _QUIET),
    ]
    total = sum(len(p) for _, p, _ in groups)
    return Figure(
        id="soft-preferences",
        title="Soft preferences",
        note=f"Probability that the chosen answer is the better one, over {total:,} pairs",
        traces=[_bars(name, p, edges, colour) for name, p, colour in groups if len(p)],
        layout={
            "barmode": "stack",
            "bargap": 0.06,
            "xaxis": {"title": {"text": "p of the chosen answer"}, "range": [0.5, 1]},
            "yaxis": {"title": {"text": "pairs"}},
        },
    )


def _positions(judged: Judged) -> list[Figure]:
    counts = [
        ("same answer", judged.consistent, _FIRST),
        ("always the first", judged.always_first, _SECOND),
        ("always the second", judged.always_second, _THIRD),
        ("undecided", judged.undecided, _QUIET),
    ]
    pairs = sum(count for _, count, _ in counts)
    if not pairs:
        return []
    leaning = ""
    if judged.total.mean_p_first is not None:
        leaning = f" The answer shown first gets {share(judged.total.mean_p_first)} on average."
    return [
        Figure(
            id="positions",
            title="Position bias",
            note=f"{pairs:,} questions on a pair, each asked in both orders.{leaning}",
            traces=_stacked([part for part in counts if part[1]]),
            layout=_STACKED,
        )
    ]


def judge_figures(judged: Judged) -> list[Figure]:
    """How replies were read, and how far the labels were what the judge meant to say; nothing where every reply was
    read in the best way, or none was there to read."""
    if judged.rungs.keys() <= {Rung.LOGPROBS} or judged.rungs.keys() <= {""}:
        return []
    counts = [
        (name, judged.rungs.get(rung, 0), colour)
        for (rung, name), colour in zip(RUNGS.items(), (_FIRST, _SECOND, _THIRD, _FOURTH, _QUIET), strict=True)
    ]
    figures = [
        Figure(
            id="rungs",
            title="How replies were read",
            note=f"{sum(judged.rungs.values()):,} judgements, by the step that gave the reading",
            traces=_stacked([part for part in counts if part[1]]),
            layout={**_STACKED, "height": 190, "legend": {"traceorder": "normal", "maxheight": 0.9}},
        )
    ]
    masses = [("scored", judged.label_mass_scored, _FIRST), ("no number", judged.label_mass_unscored, _SECOND)]
    known = sum(len(mass) for _, mass, _ in masses)
    if known:
        edges = np.linspace(0.0, 1.0, 26)
        figures.append(
            Figure(
                id="label-mass",
                title="Label mass",
                note=f"Probability on the two labels together, over {known:,} judgements",
                # Spelled in several ways, a label's probabilities are summed, and may pass 1 by a rounding.
                traces=[_bars(name, np.clip(mass, 0, 1), edges, colour) for name, mass, colour in masses if len(mass)],
                layout={
                    "barmode": "stack",
                    "bargap": 0.06,
                    "xaxis": {"title": {"text": "label mass"}, "range": [0, 1]},
                    "yaxis": {"title": {"text": "judgements"}},
                    "legend": {"traceorder": "normal"},
                    "height": 190,
                },
            )
        )
    return figures


def stage_times(summary: Summary) -> Figure | None:
    """Where the wall time went, the first stage on top."""
    if not summary.stages:
        return None
    names = list(summary.stages)
    seconds = [summary.stages[name].wall_s for name in names]
    return Figure(
        id="stage-times",
        title="Stage times",
        note=f"{duration(summary.wall_s)} in all",
        traces=[
            {
                "type": "bar",
                "orientation": "h",
                "x": seconds,
                "y": names,
                "text": [duration(value) for value in seconds],
                "textposition": "auto",
                "hoverinfo": "y+text",
                "marker": {"color": _FIRST},
            }
        ],
        layout={
            "xaxis": {"title": {"text": "seconds"}},
            "yaxis": {"autorange": "reversed", "automargin": True, "showgrid": False},
            "bargap": 0.35,
            "height": 90 + 34 * len(names),
        },
    )


# A part of the stacked bar that is smaller has no room for its share.
_NAMED = 0.1

# One bar of 100 %, its parts named inside it.
_STACKED: Mapping[str, Any] = {
    "barmode": "stack",
    "xaxis": {"range": [0, 1], "tickformat": ".0%", "tickvals": [0, 0.25, 0.5, 0.75, 1], "showgrid": False},
    "yaxis": {"visible": False},
    "margin": {"l": 16, "r": 22, "t": 10, "b": 30},
    "legend": {"traceorder": "normal"},
    "bargap": 0.1,
    "height": 170,
}


def _stacked(counts: Sequence[tuple[str, int, str]]) -> list[dict[str, Any]]:
    total = sum(count for _, count, _ in counts)
    return [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "x": [count / total],
            "y": [""],
            "text": [share(count / total) if count / total > _NAMED else ""],
            "textposition": "inside",
            "insidetextanchor": "middle",
            "textangle": 0,
            "hovertext": [f"{count:,} {name}"],
            "hoverinfo": "text",
            "marker": {"color": colour},
        }
        for name, count, colour in counts
    ]


def _bars(name: str, values: NDArray[np.float64], edges: NDArray[np.float64], colour: str) -> dict[str, Any]:
    counts, _ = np.histogram(values, edges)
    centres = (edges[:-1] + edges[1:]) / 2
    return {
        "type": "bar",
        "name": name,
        "x": [round(float(centre), 6) for centre in centres],
        "y": counts.tolist(),
        "marker": {"color": colour},
    }


def _steps(name: str, values: NDArray[np.float64], edges: NDArray[np.float64], colour: str) -> dict[str, Any]:
    counts, _ = np.histogram(values, edges)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [float(edge) for edge in edges],
        "y": [*counts.tolist(), 0],
        "line": {"color": colour, "width": 2, "shape": "hv"},
    }
