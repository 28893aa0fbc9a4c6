"""What a run's judges said: counts by judge, template and principle, and some judgements to read.

The counts come from the short columns; prompts and replies are read only of the rows that are shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlaif_ray.records import Judgement, Order, Outcome
from rlaif_ray.report.columns import numbers, read_columns, require_columns
from rlaif_ray.report.drawing import taken_in_turn

if TYPE_CHECKING:
    import pyarrow as pa

_CASES_SHOWN = 6
_REASONS_SHOWN = 6
_ROWS_AT_A_TIME = 256

_OUTCOMES = tuple(Outcome)  # from the best to the gravest
_MEMBER = ["judge", "template", "principle"]
_CASE = [*_MEMBER, "pair_id", "criterion"]
_COUNTED = [
    *_CASE, "order", "outcome", "reason", "p_first", "label_mass", "rung", "cache_hit", "prompt_tokens",
    "completion_tokens", "cost_usd", "latency_s",
]  # fmt: skip

# Numbers such as a probability make one reason look like many; a status such as 429 is a reason of its own.
_FRACTION = re.compile(r"\d+\.\d+(e-?\d+)?|\d+e-\d+")


class Kind(StrEnum):
    """What became of one question, over the orders in which it was asked."""

    AGREE = "orders agree"
    DISAGREE = "orders disagree"
    SCORED = "scored"  # in one order, or on each answer alone
    ABSTAINED = "abstained"
    FAILED = "failed"
    OVER_BUDGET = "over budget"


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts and means over some judgements; None where there is nothing to count."""

    judgements: int
    outcomes: Mapping[str, int]
    from_ledger: int
    consistency: float | None  # share of the pairs with both orders scored whose orders name the same answer
    mean_p_first: float | None  # one half for a judge without a leaning
    mean_label_mass: float | None
    tokens: int
    cost_usd: float | None
    median_latency_s: float | None  # of what was asked; a judgement of several calls counts their sum


@dataclass(frozen=True, slots=True)
class MemberTally:
    """What one judge, by one template and one principle, made of its pairs."""

    judge: str
    template: str
    principle: str | None
    tally: Tally


@dataclass(frozen=True, slots=True)
class Reason:
    """Why judgements have no number, and how many say so."""

    outcome: str
    text: str
    count: int


@dataclass(frozen=True, slots=True)
class ShownJudgement:
    """A judgement and what the judge said, which is somewhere in the raw reply."""

    judgement: Judgement
    answer: str


@dataclass(frozen=True, slots=True)
class Case:
    """One question of one member on a pair, in the orders in which it was asked. `p` is that response_a is better."""

    kind: Kind
    p: float | None
    shown: tuple[ShownJudgement, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """judgements/judgements.parquet.

    Of the questions with both orders scored, one is `consistent`, or its judge chose the answer shown first, or the
    one shown second, both times; a verdict of exactly one half in either order makes it `undecided`.
    """

    total: Tally
    members: tuple[MemberTally, ...]
    consistent: int
    always_first: int
    always_second: int
    undecided: int
    rungs: Mapping[str, int]  # an empty name is a judgement that was not read
    label_mass_scored: NDArray[np.float64]
    label_mass_unscored: NDArray[np.float64]
    reasons: tuple[Reason, ...]  # the commonest first
    other_reasons: int  # judgements with a reason that is not listed
    cases: tuple[Case, ...]  # drawn with the run's seed, some of each kind


@dataclass(frozen=True, slots=True)
class _Questions:
    """Every question of every member, and where its judgements are. Arrays are (Q,), NaN where there is no number."""

    member: pa.Table  # judge, template and principle; row_min is the first row
    p_ab: NDArray[np.float64]
    p_ba: NDArray[np.float64]
    outcome: NDArray[np.int64]  # the gravest, by its place in `_OUTCOMES`
    first_row: NDArray[np.int64]  # in order
    last_row: NDArray[np.int64]

    @property
    def both(self) -> NDArray[np.bool_]:
        return np.asarray(np.isfinite(self.p_ab) & np.isfinite(self.p_ba), dtype=np.bool_)

    @property
    def agree(self) -> NDArray[np.bool_]:
        return np.asarray((self.p_ab - 0.5) * (self.p_ba - 0.5) < 0, dtype=np.bool_)


def read_judged(path: Path, seed: int) -> Judged | None:
    """None where there is no file. Raises UserError, naming it, where it cannot be read or lacks a column."""
    import pyarrow.compute as pc

    table = read_columns(path, _COUNTED)
    if table is None:
        return None
    questions = _questions(table)
    ab, ba = questions.p_ab - 0.5, questions.p_ba - 0.5
    scored = pc.equal(table.column("outcome"), Outcome.SCORED)
    mass, is_scored = numbers(table, "label_mass"), np.asarray(scored)
    reasons = _reasons(table.filter(pc.invert(scored)))
    return Judged(
        total=_tally(table, questions.both, questions.agree),
        members=_members(table, questions),
        consistent=int(np.sum(ab * ba < 0)),
        always_first=int(np.sum((ab > 0) & (ba > 0))),
        always_second=int(np.sum((ab < 0) & (ba < 0))),
        undecided=int(np.sum(ab * ba == 0)),
        rungs={each["values"]: each["counts"] for each in pc.value_counts(table.column("rung")).to_pylist()},
        label_mass_scored=mass[is_scored & np.isfinite(mass)],
        label_mass_unscored=mass[~is_scored & np.isfinite(mass)],
        reasons=tuple(reasons[:_REASONS_SHOWN]),
        other_reasons=sum(reason.count for reason in reasons[_REASONS_SHOWN:]),
        cases=_cases(path, questions, seed),
    )


def _questions(table: pa.Table) -> _Questions:
    import pyarrow as pa
    import pyarrow.compute as pc

    order, p_first = table.column("order"), table.column("p_first").cast(pa.float64())
    unknown = pa.scalar(None, pa.float64())
    rows = (
        table.select(_CASE)
        .append_column("p_ab", pc.if_else(pc.equal(order, Order.AB), p_first, unknown))
        .append_column("p_ba", pc.if_else(pc.equal(order, Order.BA), p_first, unknown))
        .append_column("gravity", pc.index_in(table.column("outcome"), pa.array(_OUTCOMES)))
        .append_column("row", pa.array(np.arange(table.num_rows)))
    )
    # Groups come in any order; in that of the rows, a seed draws the same cases every time.
    grouped = (
        rows.group_by(_CASE)
        .aggregate([("p_ab", "max"), ("p_ba", "max"), ("gravity", "max"), ("row", "min"), ("row", "max")])
        .sort_by("row_min")
    )
    return _Questions(
        member=grouped.select([*_MEMBER, "row_min"]),
        p_ab=numbers(grouped, "p_ab_max"),
        p_ba=numbers(grouped, "p_ba_max"),
        outcome=grouped.column("gravity_max").to_numpy(),
        first_row=grouped.column("row_min").to_numpy(),
        last_row=grouped.column("row_max").to_numpy(),
    )


def _members(table: pa.Table, questions: _Questions) -> tuple[MemberTally, ...]:
    first = questions.member.group_by(_MEMBER).aggregate([("row_min", "min")]).sort_by("row_min_min")
    both, agree = questions.both, questions.agree
    tallies = []
    for name in first.select(_MEMBER).to_pylist():
        asked = np.asarray(_is_of(questions.member, name))
        tally = _tally(table.filter(_is_of(table, name)), both[asked], agree[asked])
        tallies.append(MemberTally(**name, tally=tally))
    return tuple(tallies)


def _is_of(table: pa.Table, member: Mapping[str, str | None]) -> pa.ChunkedArray:
    import pyarrow.compute as pc

    is_of = None
    for column, value in member.items():
        held = table.column(column)
        same = pc.is_null(held) if value is None else pc.fill_null(pc.equal(held, value), False)
        is_of = same if is_of is None else pc.and_(is_of, same)
    return is_of


def _tally(rows: pa.Table, both: NDArray[np.bool_], agree: NDArray[np.bool_]) -> Tally:
    import pyarrow.compute as pc

    counts = {each["values"]: each["counts"] for each in pc.value_counts(rows.column("outcome")).to_pylist()}
    latency, cost = numbers(rows, "latency_s"), numbers(rows, "cost_usd")
    pairs = int(both.sum())
    return Tally(
        judgements=rows.num_rows,
        outcomes={outcome: counts.get(outcome, 0) for outcome in Outcome},
        from_ledger=int(np.sum(rows.column("cache_hit"))),
        consistency=int(np.sum(both & agree)) / pairs if pairs else None,
        mean_p_first=_mean(numbers(rows, "p_first")),
        mean_label_mass=_mean(numbers(rows, "label_mass")),
        tokens=int(np.sum(rows.column("prompt_tokens"))) + int(np.sum(rows.column("completion_tokens"))),
        cost_usd=float(np.nansum(cost)) if np.isfinite(cost).any() else None,
        median_latency_s=float(np.median(latency[latency > 0])) if (latency > 0).any() else None,
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _reasons(unscored: pa.Table) -> list[Reason]:
    """Why there is no number, the commonest first; reasons that differ in a measured value alone are one."""
    counted = (
        unscored.select(["outcome", "reason"])
        .group_by(["outcome", "reason"])
        .aggregate([([], "count_all")])
        .to_pylist()
    )
    alike: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for each in counted:
        folded = _FRACTION.sub("…", each["reason"])
        alike.setdefault((each["outcome"], folded), []).append((each["reason"], each["count_all"]))
    reasons = [
        Reason(outcome, folded if len(texts) > 1 else texts[0][0], sum(count for _, count in texts))
        for (outcome, folded), texts in alike.items()
    ]
    return sorted(reasons, key=lambda reason: (-reason.count, reason.outcome, reason.text))


def _cases(path: Path, questions: _Questions, seed: int) -> tuple[Case, ...]:
    """Questions of every kind in turn, as far as there are any, until there are enough."""
    both, agree = questions.both, questions.agree
    of_kind = {
        Kind.AGREE: both & agree,
        Kind.DISAGREE: both & ~agree,
        Kind.SCORED: (questions.outcome == _OUTCOMES.index(Outcome.SCORED)) & ~both,
        Kind.ABSTAINED: questions.outcome == _OUTCOMES.index(Outcome.ABSTAINED),
        Kind.FAILED: questions.outcome == _OUTCOMES.index(Outcome.FAILED),
        Kind.OVER_BUDGET: questions.outcome == _OUTCOMES.index(Outcome.OVER_BUDGET),
    }
    generator = np.random.default_rng(seed)
    chosen = taken_in_turn(
        {kind: generator.permutation(np.flatnonzero(held)).tolist() for kind, held in of_kind.items()}, _CASES_SHOWN
    )
    rows_of = {
        number: sorted({int(questions.first_row[number]), int(questions.last_row[number])}) for _, number in chosen
    }
    judgements = _judgements_at(path, sorted(row for rows in rows_of.values() for row in rows))
    return tuple(
        Case(
            kind=kind,
            p=float(questions.p_ab[number] + 1 - questions.p_ba[number]) / 2 if both[number] else None,
            shown=tuple(ShownJudgement(judgements[row], _answer(judgements[row].raw_reply)) for row in rows_of[number]),
        )
        for kind, number in chosen
    )


def _judgements_at(path: Path, rows: Sequence[int]) -> dict[int, Judgement]:
    """Some rows of the file, a batch at a time, passing over the row groups that hold none of them."""
    import pyarrow.parquet as pq

    columns = [field.name for field in fields(Judgement)]
    require_columns(path, columns)
    found: dict[int, Judgement] = {}
    with pq.ParquetFile(path) as file:
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            wanted = [row for row in rows if start <= row < end]
            if wanted:
                for batch in file.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=columns):
                    here = [row for row in wanted if start <= row < start + batch.num_rows]
                    held = batch.take([row - start for row in here]).to_pylist() if here else []
                    found.update(zip(here, map(_judgement, held), strict=True))
                    start += batch.num_rows
            start = end
    return found


def _judgement(row: dict[str, Any]) -> Judgement:
    order, outcome = Order(row["order"]), Outcome(row["outcome"])
    return Judgement(**{**row, "order": order, "outcome": outcome, "ledger_keys": tuple(row["ledger_keys"])})


def _answer(raw_reply: str) -> str:
    """What a chat completion says, or the whole reply where it is none."""
    try:
        said = json.loads(raw_reply)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return raw_reply
    return said if isinstance(said, str) else raw_reply
