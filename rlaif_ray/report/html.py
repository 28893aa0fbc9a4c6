"""The run's report: one HTML file that works offline, made of whatever the run directory holds.

Text in it comes from models and must stay text: the template escapes everything, and the page's own policy lets no
script run but the two that are written here, and nothing be fetched.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import jinja2
from markupsafe import Markup

from rlaif_ray.report.cautions import silence_caution
from rlaif_ray.report.figures.constitution import constitution_figures
from rlaif_ray.report.figures.evaluation import evaluation_figures
from rlaif_ray.report.figures.feedback import RUNGS, judge_figures, preference_figures
from rlaif_ray.report.figures.rewarding import accuracy_figures, reliability_figure
from rlaif_ray.report.figures.rounds import round_figures
from rlaif_ray.report.figures.times import stage_times
from rlaif_ray.report.figures.training import stage_curves
from rlaif_ray.report.quantities import duration, share, share_interval
from rlaif_ray.report.reading import Run, read_run
from rlaif_ray.report.summary import chosen, verdict
from rlaif_ray.report.tiles import conduct_tiles, headline_tiles, reward_tiles
from rlaif_ray.rundir import write_atomically


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run directory and return its path.

    Needs the directory's summary; everything else is shown where it is there and named where it is not. Raises
    UserError, naming the file, where there is no summary or a file is corrupt.
    """
    from plotly.offline import get_plotlyjs

    run = read_run(run_dir)
    evaluation, preferences = evaluation_figures(run), preference_figures(run)
    judges = judge_figures(run.judged) if run.judged is not None else []
    constitution = constitution_figures(run)
    rounds = round_figures(run.summary.rounds)
    reliability = reliability_figure(run.reward) if run.reward is not None else None
    accuracies = accuracy_figures(run.reward) if run.reward is not None and reliability is not None else []
    stages = stage_curves(run.metrics or (), *_training_of(run))
    times = stage_times(run.summary)
    figures = [
        *evaluation,
        *constitution,
        *rounds,
        *preferences,
        *judges,
        *([reliability] if reliability else []),
        *accuracies,
        *(figure for stage in stages for figure in (*stage.main, *stage.more)),
        *([times] if times else []),
    ]
    page = _template().render(
        run=run,
        summary=run.summary,
        verdict=verdict(run.summary.policy),
        chosen=chosen(run.summary.policy),
        facts=_facts(run),
        caution=silence_caution(run.summary.conduct),
        tiles=headline_tiles(run.summary),
        conduct_tiles=conduct_tiles(run.summary.conduct),
        evaluation=evaluation,
        constitution=constitution,
        rounds=rounds,
        preferences=preferences,
        judges=judges,
        rungs=RUNGS,
        reliability=reliability,
        accuracies=accuracies,
        reward_tiles=reward_tiles(run.reward) if run.reward is not None else [],
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
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters["share"] = share
    environment.filters["share_interval"] = share_interval
    environment.filters["duration"] = duration
    environment.filters["dollars"] = dollars
    environment.filters["moment"] = moment
    return environment.get_template("report.html.j2")


def _facts(run: Run) -> list[tuple[str, str]]:
    """What the run was, in a few words, from its config."""
    policy, judge = run.config.get("policy") or {}, run.config.get("judge") or {}
    constitution = run.config.get("constitution") or {}
    facts = [
        ("policy", policy.get("model") or ("built from scratch" if policy.get("scratch") else None)),
        ("algorithm", policy.get("algorithm")),
        ("judge", judge.get("model")),
        ("control", judge.get("control")),
        ("constitution", constitution.get("principles")),
        ("red-team prompts", (constitution.get("prompts") or {}).get("path")),
        ("prompts", (run.config.get("prompts") or {}).get("path")),
        ("rounds", len(run.summary.rounds) or None),
        ("taken after iteration", run.summary.policy.taken_iteration),
        ("seed", run.summary.seed),
        ("resumed from", run.summary.resumed_from),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]


def _training_of(run: Run) -> tuple[str, list[int]]:
    """The algorithm that trained the policy, and the iterations after which a round ended and another began."""
    policy, ppo = run.config.get("policy") or {}, run.config.get("ppo") or {}
    return policy.get("algorithm", "ppo"), [
        number * ppo["iterations"] for number in range(1, len(run.summary.rounds)) if "iterations" in ppo
    ]


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
        (
            run.revised is None and bool(run.config.get("constitution")),
            "constitution/chains: answers to red-team prompts and their revisions",
        ),
        (
            run.revised is not None and run.revised.verdicts is None,
            "samples/principles.parquet: how the policy fares by each principle",
        ),
        (run.reward is None, "reward/held_out.parquet: how well the reward model is calibrated, and where it errs"),
        (
            run.reward is not None and run.reward.calibration is None,
            "reward/held_out.parquet holds no pair that was scored: calibration",
        ),
    ]
    return [text for absent, text in absences if absent]
