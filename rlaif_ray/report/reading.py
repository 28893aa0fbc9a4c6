"""What the report needs from a run directory. A file that is not there is None; one that cannot be read is an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from rlaif_ray.config import UserError
from rlaif_ray.evaluation.held_out import read_held_out
from rlaif_ray.evaluation.reward_quality import RewardQuality, reward_quality
from rlaif_ray.metrics import MetricsLog, MetricsRow
from rlaif_ray.records import FinishReason
from rlaif_ray.report.columns import numbers, read_columns
from rlaif_ray.report.judged import Judged, read_judged
from rlaif_ray.report.revised import Revised, read_revised
from rlaif_ray.report.summary import Summary, read_summary
from rlaif_ray.rundir import RunDirectory

_SAMPLES_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Comparison:
    """One prompt answered before and after the policy was trained. `outcome` is that of the later answer."""

    prompt: str
    before: str
    after: str
    outcome: float | None
    before_utility: float | None
    after_utility: float | None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """samples/evaluation.parquet. Utilities (N,) are NaN where gold is not known."""

    outcomes: tuple[float | None, ...]
    before_utility: NDArray[np.float64]
    after_utility: NDArray[np.float64]
    shown: tuple[Comparison, ...]  # drawn at random, so that losses are shown as often as they happen


@dataclass(frozen=True, slots=True)
class Collected:
    """samples/collect.parquet: how many answers were drawn, and how many hit the length limit."""

    answers: int
    prompts: int
    truncated: int


@dataclass(frozen=True, slots=True)
class Preferences:
    """preferences/preferences.parquet: the probability that the chosen answer is better, by who said so and, of a
    judge, by what the orders said."""

    agree: NDArray[np.float64]
    disagree: NDArray[np.float64]
    one_order: NDArray[np.float64]
    human: NDArray[np.float64]
    mean_disagreement: float | None  # between an ensemble's members: the mean of their standard deviations


@dataclass(frozen=True, slots=True)
class Run:
    """All that a report shows."""

    directory: RunDirectory
    summary: Summary
    config_text: str | None
    config: Mapping[str, Any]
    metrics: tuple[MetricsRow, ...] | None
    evaluated: Evaluated | None
    collected: Collected | None
    preferences: Preferences | None
    judged: Judged | None
    reward: RewardQuality | None
    revised: Revised | None


def read_run(run_dir: Path) -> Run:
    """Read a run directory. Raises UserError naming the file where one is corrupt or there is no summary."""
    directory = RunDirectory(run_dir)
    summary = read_summary(run_dir)
    config_text, config = _config(directory.config)
    return Run(
        directory=directory,
        summary=summary,
        config_text=config_text,
        config=config,
        metrics=_metrics(directory.metrics),
        evaluated=_evaluated(directory.samples("evaluation"), summary.seed),
        collected=_collected(directory.samples("collect")),
        preferences=_preferences(directory.preferences),
        judged=read_judged(directory.judgements, summary.seed),
        reward=_reward(directory.reward_held_out),
        revised=read_revised(directory, config, summary.seed),
    )


def _reward(path: Path) -> RewardQuality | None:
    pairs = read_held_out(path)
    return reward_quality(pairs) if pairs else None


def _config(path: Path) -> tuple[str | None, Mapping[str, Any]]:
    if not path.exists():
        return None, {}
    text = path.read_text()
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML ({error})") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must hold a mapping of keys")
    return text, tree


def _metrics(path: Path) -> tuple[MetricsRow, ...] | None:
    if not path.exists():
        return None
    try:
        rows = MetricsLog(path).read()
    except ValueError as error:
        raise UserError(str(error)) from error
    return tuple(sorted(rows, key=lambda row: row.step))


def _evaluated(path: Path, seed: int) -> Evaluated | None:
    table = read_columns(path, ["prompt", "before", "after", "outcome", "before_utility", "after_utility"])
    if table is None:
        return None
    drawn = np.random.default_rng(seed).permutation(table.num_rows)[:_SAMPLES_SHOWN]
    return Evaluated(
        outcomes=tuple(table.column("outcome").to_pylist()),
        before_utility=numbers(table, "before_utility"),
        after_utility=numbers(table, "after_utility"),
        shown=tuple(Comparison(**row) for row in table.take(drawn).to_pylist()),
    )


def _collected(path: Path) -> Collected | None:
    table = read_columns(path, ["prompt_id", "finish_reason"])
    if table is None:
        return None
    return Collected(
        answers=table.num_rows,
        prompts=len(table.column("prompt_id").unique()),
        truncated=table.column("finish_reason").to_pylist().count(FinishReason.LENGTH),
    )


def _preferences(path: Path) -> Preferences | None:
    table = read_columns(path, ["p", "consistent", "disagreement", "label_source"])
    if table is None:
        return None
    p, consistent = numbers(table, "p"), table.column("consistent").to_pylist()
    labelled, disagreement = np.isfinite(p), numbers(table, "disagreement")
    spread = disagreement[np.isfinite(disagreement)]
    human = np.array([source == "human" for source in table.column("label_source").to_pylist()], dtype=np.bool_)
    agree, disagree, one_order = (
        p[labelled & ~human & [said is wanted for said in consistent]] for wanted in (True, False, None)
    )
    return Preferences(
        agree=agree,
        disagree=disagree,
        one_order=one_order,
        human=p[labelled & human],
        mean_disagreement=float(spread.mean()) if len(spread) else None,
    )
