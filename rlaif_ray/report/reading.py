"""What the report needs from a run directory. A file that is not there is None; one that cannot be read is an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from rlaif_ray.config import UserError
from rlaif_ray.metrics import MetricsLog, MetricsRow
from rlaif_ray.records import FinishReason, Order, Outcome
from rlaif_ray.report.summary import Summary, read_summary
from rlaif_ray.rundir import RunDirectory

if TYPE_CHECKING:
    import pyarrow as pa

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
    """preferences/preferences.parquet: the probability that the chosen answer is better, by what the orders said."""

    agree: NDArray[np.float64]
    disagree: NDArray[np.float64]
    one_order: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ShownJudgement:
    """One judgement as the judge saw it. `prompt` is None where the rendered text was not kept."""

    prompt: str | None
    answer: str  # what the judge said
    raw_reply: str  # all that came back
    judge: str
    template_hash: str
    order: str
    p_first: float
    logprob_first: float | None
    logprob_second: float | None
    label_mass: float | None
    prompt_tokens: int
    completion_tokens: int
    latency_s: float
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class Judged:
    """judgements/judgements.parquet: what became of the calls, and where the verdicts fell by position.

    A pair with both orders scored is `consistent`, or its judge chose the answer shown first, or the one shown
    second, both times; a verdict of exactly one half in either order makes it `undecided`.
    """

    outcomes: Mapping[str, int]
    consistent: int
    always_first: int
    always_second: int
    undecided: int
    mean_p_first: float | None  # over all scored judgements; one half for a judge without a leaning
    shown: ShownJudgement | None


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
        judged=_judged(directory.judgements),
    )


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
    table = _table(path, ["prompt", "before", "after", "outcome", "before_utility", "after_utility"])
    if table is None:
        return None
    drawn = np.random.default_rng(seed).permutation(table.num_rows)[:_SAMPLES_SHOWN]
    return Evaluated(
        outcomes=tuple(table.column("outcome").to_pylist()),
        before_utility=_numbers(table, "before_utility"),
        after_utility=_numbers(table, "after_utility"),
        shown=tuple(Comparison(**row) for row in table.take(drawn).to_pylist()),
    )


def _collected(path: Path) -> Collected | None:
    table = _table(path, ["prompt_id", "finish_reason"])
    if table is None:
        return None
    return Collected(
        answers=table.num_rows,
        prompts=len(table.column("prompt_id").unique()),
        truncated=table.column("finish_reason").to_pylist().count(FinishReason.LENGTH),
    )


def _preferences(path: Path) -> Preferences | None:
    table = _table(path, ["p", "consistent"])
    if table is None:
        return None
    p, consistent = _numbers(table, "p"), table.column("consistent").to_pylist()
    labelled = np.isfinite(p)
    return Preferences(*(p[labelled & [said is wanted for said in consistent]] for wanted in (True, False, None)))


def _judged(path: Path) -> Judged | None:
    table = _table(path, ["pair_id", "order", "outcome", "p_first"])
    if table is None:
        return None
    outcomes = table.column("outcome").to_pylist()
    # Scores of one answer alone have no first answer.
    scored = [row for row in table.to_pylist() if row["p_first"] is not None]
    by_order = {
        order: {row["pair_id"]: row["p_first"] for row in scored if row["order"] == order}
        for order in (Order.AB, Order.BA)
    }
    # The first answer's advantage in each order: of the same sign in both, the judge follows the position.
    both = [
        (p_first - 0.5, by_order[Order.BA][pair] - 0.5)
        for pair, p_first in by_order[Order.AB].items()
        if pair in by_order[Order.BA]
    ]
    return Judged(
        outcomes={outcome: outcomes.count(outcome) for outcome in Outcome},
        consistent=sum(ab * ba < 0 for ab, ba in both),
        always_first=sum(ab > 0 and ba > 0 for ab, ba in both),
        always_second=sum(ab < 0 and ba < 0 for ab, ba in both),
        undecided=sum(ab * ba == 0 for ab, ba in both),
        mean_p_first=float(np.mean([row["p_first"] for row in scored])) if scored else None,
        shown=_shown_judgement(path),
    )


def _shown_judgement(path: Path) -> ShownJudgement | None:
    """The first scored judgement, found without reading every prompt and reply into memory."""
    import pyarrow.parquet as pq

    columns = [name for name in ShownJudgement.__dataclass_fields__ if name not in ("prompt", "answer")]
    _require(path, ["judge_prompt", *columns])
    for batch in pq.ParquetFile(path).iter_batches(batch_size=256, columns=["judge_prompt", *columns]):
        for row in batch.to_pylist():
            if row["p_first"] is not None:
                shown = {name: row[name] for name in columns}
                return ShownJudgement(prompt=row["judge_prompt"] or None, answer=_answer(row["raw_reply"]), **shown)
    return None


def _answer(raw_reply: str) -> str:
    """What a chat completion says, or the whole reply where it is none."""
    try:
        said = json.loads(raw_reply)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return raw_reply
    return said if isinstance(said, str) else raw_reply


def _table(path: Path, columns: list[str]) -> pa.Table | None:
    import pyarrow.parquet as pq

    if not path.exists():
        return None
    _require(path, columns)
    return pq.read_table(path, columns=columns)


def _require(path: Path, columns: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: is not a parquet file ({error})") from error
    for column in columns:
        if column not in found:
            raise UserError(f"{path}: has no column {column!r}; it has {', '.join(found)}")


def _numbers(table: pa.Table, column: str) -> NDArray[np.float64]:
    values = table.column(column).to_pylist()
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
