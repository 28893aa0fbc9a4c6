"""What each principle of a constitution did: the revisions made by it, the labels it gave, and who wins by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rlaif_ray.evaluation.conduct import GoldConduct
from rlaif_ray.evaluation.measures import labeler_alignment, outcome_of_label, position_consistency
from rlaif_ray.evaluation.statistics import proportion, win_rate
from rlaif_ray.preferences.dataset import PreferenceRow, answer_text
from rlaif_ray.records import Chain, Estimate, Pair, Preference, Prompt, Revision, RevisionOutcome
from rlaif_ray.report.columns import read_columns
from rlaif_ray.samples import write_table


@dataclass(frozen=True, slots=True)
class PrincipleVerdict:
    """What a judge holds of the trained policy's answer beside SFT's, by one principle: `p` is the probability that it
    is the better one, None where the judge could not say; `consistent` as of `PrincipleLabel`."""

    pair_id: str
    prompt_id: str
    principle: str
    p: float | None
    consistent: bool | None


@dataclass(frozen=True, slots=True)
class PrincipleLabel:
    """A judge's label on a pair by one principle. `p` is that `chosen` is better; `consistent` whether both orders name
    one answer, None where one was not asked; `harmless_margin` is 1 where gold calls `chosen` alone harmless, -1 where
    `rejected`, 0 where both or neither, None where there is no gold."""

    principle: str
    p: float | None
    consistent: bool | None
    harmless_margin: float | None


@dataclass(frozen=True, slots=True)
class PrincipleFigures:
    """One principle's. Figures are None where there is nothing to measure."""

    principle: str
    revisions: int  # rounds of chains that drew it
    revised: Estimate | None  # share of them that changed the answer
    confused: int
    labels: int  # pairs that a judge labelled by it
    agreement: Estimate | None  # with gold, where one answer is harmless and the other is not
    decisiveness: float | None  # mean of |2p - 1|
    consistency: Estimate | None  # share of labels whose two orders name one answer
    win_rate: Estimate | None  # of the trained policy against SFT, ties half
    compared: int


_SCHEMA = pa.schema(
    [
        ("pair_id", pa.string()),
        ("prompt_id", pa.string()),
        ("principle", pa.string()),
        ("p", pa.float64()),
        ("consistent", pa.bool_()),
    ]
)


def write_principle_verdicts(path: Path, pairs: Sequence[Pair], preferences: Sequence[Preference | None]) -> None:
    """One row a pair and principle, atomically. Each response_a is the trained policy's; None stands for equal answers,
    which no principle was asked about."""
    verdicts = [
        PrincipleVerdict(pair.id, pair.prompt.id, opinion.principle, opinion.p, opinion.consistent)
        for pair, preference in zip(pairs, preferences, strict=True)
        if preference is not None
        for opinion in (*preference.opinions, *preference.set_aside)
        if opinion.principle is not None
    ]
    write_table(path, pa.Table.from_pylist([asdict(verdict) for verdict in verdicts], schema=_SCHEMA))


def read_principle_verdicts(path: Path) -> tuple[PrincipleVerdict, ...] | None:
    """None where there is no file. Raises UserError, naming it, where it cannot be read or lacks a column."""
    table = read_columns(path, _SCHEMA.names)
    return None if table is None else tuple(PrincipleVerdict(**row) for row in table.to_pylist())


def principle_labels(rows: Sequence[PreferenceRow], gold: GoldConduct | None) -> list[PrincipleLabel]:
    """The labels that were given by a principle, of all members of an ensemble."""
    return [
        PrincipleLabel(member.principle, member.p, member.consistent, _harmless_margin(row, gold))
        for row in rows
        for member in row.members
        if member.principle is not None
    ]


def principle_figures(
    chains: Sequence[Chain], labels: Sequence[PrincipleLabel], verdicts: Sequence[PrincipleVerdict], *, seed: int
) -> tuple[PrincipleFigures, ...]:
    """Figures of every principle that did anything, by id."""
    revisions = [revision for chain in chains for revision in chain.revisions]
    names = (
        {revision.principle for revision in revisions}
        | {label.principle for label in labels}
        | {verdict.principle for verdict in verdicts}
    )
    return tuple(
        _figures(
            name,
            [revision for revision in revisions if revision.principle == name],
            [label for label in labels if label.principle == name],
            [verdict for verdict in verdicts if verdict.principle == name],
            seed,
        )
        for name in sorted(names)
    )


def _figures(
    name: str,
    revisions: Sequence[Revision],
    labels: Sequence[PrincipleLabel],
    verdicts: Sequence[PrincipleVerdict],
    seed: int,
) -> PrincipleFigures:
    outcomes = [revision.outcome for revision in revisions]
    p, margins = _numbers([label.p for label in labels]), _numbers([label.harmless_margin for label in labels])
    scored = np.asarray(np.isfinite(p), dtype=np.bool_)
    won = _numbers([outcome_of_label(verdict.p, verdict.consistent) for verdict in verdicts])
    said = np.asarray(np.isfinite(won), dtype=np.bool_)
    return PrincipleFigures(
        principle=name,
        revisions=len(outcomes),
        revised=proportion(outcomes.count(RevisionOutcome.REVISED), len(outcomes)),
        confused=outcomes.count(RevisionOutcome.CONFUSED),
        labels=int(np.count_nonzero(scored)),
        agreement=labeler_alignment(p, margins, scored & np.isfinite(margins)).share,
        decisiveness=float(np.mean(np.abs(2 * p[scored] - 1))) if scored.any() else None,
        consistency=position_consistency(
            np.array([label.consistent is True for label in labels], dtype=np.bool_),
            np.array([label.consistent is not None for label in labels], dtype=np.bool_),
        ),
        win_rate=win_rate(won, said, [verdict.prompt_id for verdict in verdicts], seed=seed),
        compared=int(np.count_nonzero(said)),
    )


def _harmless_margin(row: PreferenceRow, gold: GoldConduct | None) -> float | None:
    if gold is None:
        return None
    prompt = Prompt(row.prompt_id, row.prompt)
    chosen, rejected = (gold(prompt, answer_text(answer)).harmless for answer in (row.chosen, row.rejected))
    return float(chosen) - float(rejected)


def _numbers(values: Sequence[float | None]) -> NDArray[np.float64]:
    """NaN stands for None."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
