"""The run's report: one HTML file that works offline, made of whatever the run directory holds.

Text in it comes from models and must stay text: the template escapes everything, and the page's own policy lets no
script run but the two that are written here, and nothing be fetched.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import jinja2
from markupsafe import Markup

from rlaif_ray.report.figures import (
    RUNGS,
    evaluation_figures,
    judge_figures,
    preference_figures,
    stage_curves,
    stage_times,
)
from rlaif_ray.report.reading import Run, read_run
from rlaif_ray.report.summary import Interval, duration, share, share_interval, verdict
from rlaif_ray.rundir import write_atomically


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline figure. `value` is None where it was not measured; `interval` is drawn on a scale from 0 to 1."""

    label: str
    value: str | None
    unit: str = ""
    detail: str = ""
    interval: Interval | None = None


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run directory and return its path.

    Needs the directory's summary; everything else is shown where it is there and named where it is not. Raises
    UserError, naming the file, where there is no summary or a file is corrupt.
    """
    from plotly.offline import get_plotlyjs

    run = read_run(run_dir)
    evaluation, preferences = evaluation_figures(run), preference_figures(run)
    judges = judge_figures(run.judged) if run.judged is not None else []
    stages = stage_curves(run.metrics or ())
    times = stage_times(run.summary)
    figures = [
        *evaluation,
        *preferences,
        *judges,
        *(figure for stage in stages for figure in (*stage.main, *stage.more)),
        *([times] if times else []),
    ]
    page = _template().render(
        run=run,
        summary=run.summary,
        verdict=verdict(run.summary.policy),
        facts=_facts(run),
        tiles=_tiles(run),
        evaluation=evaluation,
        preferences=preferences,
        judges=judges,
        rungs=RUNGS,
        stages=stages,
        times=times,
        missing=_missing(run),
        figures={figure.id: {"traces": figure.traces, "layout": figure.layout} for figure in figures},
        nonce=secrets.token_urlsafe(16),
        plotly=Markup(get_plotlyjs()),
    )
    write_atomically(run.directory.report, page)
    return run.directory.report


def dollars(value: float) -> str:
    """US dollars, with as many digits as the price of one call needs."""
    return f"${value:,.2f}" if value >= 1 or value == 0 else f"${value:.3g}" if value >= 1e-4 else f"${value:.1e}"


def moment(created_at: float) -> str:
    """Seconds since the epoch as date and time."""
    return datetime.fromtimestamp(created_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters["share"] = share
    environment.filters["duration"] = duration
    environment.filters["dollars"] = dollars
    environment.filters["moment"] = moment
    return environment.get_template("report.html.j2")


def _facts(run: Run) -> list[tuple[str, str]]:
    """What the run was, in a few words, from its config."""
    policy, judge = run.config.get("policy") or {}, run.config.get("judge") or {}
    facts = [
        ("policy", policy.get("model") or ("built from scratch" if policy.get("scratch") else None)),
        ("algorithm", policy.get("algorithm")),
        ("judge", judge.get("model")),
        ("control", judge.get("control")),
        ("prompts", (run.config.get("prompts") or {}).get("path")),
        ("seed", run.summary.seed),
        ("resumed from", run.summary.resumed_from),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]


def _tiles(run: Run) -> list[Tile]:
    policy, labeler, reward = run.summary.policy, run.summary.labeler, run.summary.reward
    return [
        Tile(
            "Win rate against SFT",
            *_share(policy.win_rate),
            _details(
                policy.win_rate_ci and share_interval(policy.win_rate_ci),
                policy.win_rate_judge and f"judged by {policy.win_rate_judge}",
                policy.prompts is not None and f"{policy.prompts:,} prompts",
            ),
            policy.win_rate_ci,
        ),
        Tile(
            "Labeler alignment",
            *_share(labeler.alignment),
            _details(
                labeler.alignment_ci and share_interval(labeler.alignment_ci),
                labeler.position_consistency is not None
                and f"{share(labeler.position_consistency)} consistent over orders",
            ),
            labeler.alignment_ci,
        ),
        Tile(
            "Reward accuracy",
            *_share(reward.accuracy),
            _details(
                reward.accuracy_ci and share_interval(reward.accuracy_ci),
                reward.accuracy_against and f"against {reward.accuracy_against}",
                reward.held_out_pairs is not None and f"{reward.held_out_pairs:,} held-out pairs",
            ),
            reward.accuracy_ci,
        ),
        Tile("KL from SFT", None if policy.kl is None else f"{policy.kl:.2f}", "nats", "per answer"),
        _length_tile(run),
        _labelling_tile(run),
        Tile(
            "Wall time",
            duration(run.summary.wall_s),
            "",
            f"{len(run.summary.stages)} stages" if run.summary.stages else "",
        ),
    ]


def _length_tile(run: Run) -> Tile:
    before, after = run.summary.policy.mean_length.before, run.summary.policy.mean_length.after
    if before is None or after is None:
        return Tile("Answer length", None)
    change = f"{100 * (after / before - 1):+.0f} % against SFT" if before else ""
    return Tile("Answer length", f"{before:.1f} → {after:.1f}", "tokens", change)


def _labelling_tile(run: Run) -> Tile:
    labeler = run.summary.labeler
    if labeler.calls is None:
        return Tile("Judge calls", None)
    counted = [("from the cache", labeler.cache_hits), ("abstained", labeler.abstained), ("failed", labeler.failed)]
    cost = labeler.cost_usd is not None and f"${labeler.cost_usd:,.2f}"
    return Tile(
        "Judge calls",
        f"{labeler.calls:,}",
        "",
        _details(cost, *(count is not None and f"{count:,} {name}" for name, count in counted)),
    )


def _share(value: float | None) -> tuple[str | None, str]:
    return (None if value is None else f"{100 * value:.1f}"), "%"


def _details(*parts: str | bool | None) -> str:
    return " · ".join(part for part in parts if isinstance(part, str) and part)


def _missing(run: Run) -> list[str]:
    """What this report could have shown, had it been there."""
    directory = run.directory
    logged = {row.stage for row in run.metrics or ()}
    absences: Sequence[tuple[bool, str]] = [
        (run.config_text is None, f"{directory.config.name}: the config of the run"),
        (run.metrics is None, f"{directory.metrics.name}: training curves"),
        (run.metrics is not None and not logged, f"{directory.metrics.name} is empty: training curves"),
        (run.evaluated is None, "samples/evaluation.parquet: answers before and after"),
        (run.collected is None, "samples/collect.parquet: the answers that were judged"),
        (run.preferences is None, "preferences/preferences.parquet: soft preferences"),
        (run.judged is None, "judgements/judgements.parquet: what the judges said, by position and in full"),
        (run.judged is not None and not run.judged.cases, "judgements/judgements.parquet is empty: judgements"),
    ]
    return [text for absent, text in absences if absent]
