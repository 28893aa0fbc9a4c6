"""What the judges said, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rlaif_ray.judge.reading import Rung
from rlaif_ray.report.figures.panel import FIRST, FOURTH, QUIET, SECOND, STACKED, THIRD, Figure, bars, stacked
from rlaif_ray.report.judged import Judged
from rlaif_ray.report.quantities import share
from rlaif_ray.report.reading import Preferences, Run

# How a reply was read, in words.
RUNGS: Mapping[str, str] = {
    Rung.LOGPROBS: "log-probabilities",
    Rung.TEXT: "words of the reply",
    Rung.REFORMAT: "a second call, for the verdict",
    Rung.CONSTRAINED: "a call confined to the labels",
    "": "not read",
}


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
        ("both orders agree", preferences.agree, FIRST),
        ("orders disagree", preferences.disagree, SECOND),
        ("one order only", preferences.one_order, QUIET),
        ("human labels", preferences.human, FOURTH),
    ]
    total = sum(len(p) for _, p, _ in groups)
    return Figure(
        id="soft-preferences",
        title="Soft preferences",
        note=f"Probability that the chosen answer is the better one, over {total:,} pairs",
        traces=[bars(name, p, edges, colour) for name, p, colour in groups if len(p)],
        layout={
            "barmode": "stack",
            "bargap": 0.06,
            "xaxis": {"title": {"text": "p of the chosen answer"}, "range": [0.5, 1]},
            "yaxis": {"title": {"text": "pairs"}},
        },
    )


def _positions(judged: Judged) -> list[Figure]:
    counts = [
        ("same answer", judged.consistent, FIRST),
        ("always the first", judged.always_first, SECOND),
        ("always the second", judged.always_second, THIRD),
        ("undecided", judged.undecided, QUIET),
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
            traces=stacked([part for part in counts if part[1]]),
            layout=STACKED,
        )
    ]


def judge_figures(judged: Judged) -> list[Figure]:
    """How replies were read, and how far the labels were what the judge meant to say; nothing where every reply was
    read in the best way, or none was there to read."""
    if judged.rungs.keys() <= {Rung.LOGPROBS} or judged.rungs.keys() <= {""}:
        return []
    counts = [
        (name, judged.rungs.get(rung, 0), colour)
        for (rung, name), colour in zip(RUNGS.items(), (FIRST, SECOND, THIRD, FOURTH, QUIET), strict=True)
    ]
    figures = [
        Figure(
            id="rungs",
            title="How replies were read",
            note=f"{sum(judged.rungs.values()):,} judgements, by the step that gave the reading",
            traces=stacked([part for part in counts if part[1]]),
            layout={**STACKED, "height": 190, "legend": {"traceorder": "normal", "maxheight": 0.9}},
        )
    ]
    masses = [("scored", judged.label_mass_scored, FIRST), ("no number", judged.label_mass_unscored, SECOND)]
    known = sum(len(mass) for _, mass, _ in masses)
    if known:
        edges = np.linspace(0.0, 1.0, 26)
        figures.append(
            Figure(
                id="label-mass",
                title="Label mass",
                note=f"Probability on the two labels together, over {known:,} judgements",
                # Spelled in several ways, a label's probabilities are summed, and may pass 1 by a rounding.
                traces=[bars(name, np.clip(mass, 0, 1), edges, colour) for name, mass, colour in masses if len(mass)],
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
