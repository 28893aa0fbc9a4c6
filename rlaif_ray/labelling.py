"""Anyone's pairs to preferences: what `rlaif judge` does with a judge stage, its progress and its files.

Nothing is kept but the ledger until the end: to run it again is to resume, as what was answered is not asked again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from rlaif_ray.config import JudgeConfig, JudgeRunConfig, Stopped, UserError
from rlaif_ray.console import Console
from rlaif_ray.judge.batch_files import read_batch_files, write_batch_files
from rlaif_ray.judge.hygiene import normalised, why_not_sent
from rlaif_ray.judge.ledger import Ledger, Receipt, Refusal
from rlaif_ray.judge.offline import estimate, missing_calls, prices_of
from rlaif_ray.judge.retry import Failure
from rlaif_ray.preferences.dataset import PreferenceRow, write_preferences
from rlaif_ray.preferences.judgements import write_judgements
from rlaif_ray.preferences.labels import OnInconsistent, preference_rows
from rlaif_ray.records import AnswerScore, Outcome, Pair, Preference, RubricScore
from rlaif_ray.rundir import RunDirectory, write_atomically
from rlaif_ray.samples import write_table
from rlaif_ray.stages import JudgeStage

Use = Literal["reward", "dpo"]

# Pairs to one call of the pool, and calls at a time: enough to keep it busy, few enough to hold in memory.
_CHUNK = 500
_CHUNKS_AT_A_TIME = 8

_POLL_S = 0.5

_OUTCOMES = pa.schema(
    [("pair_id", pa.string()), ("outcome", pa.string()), ("reason", pa.string()), ("p", pa.float64())]
)


@dataclass(frozen=True, slots=True)
class LabelFiles:
    """Where a labelling leaves what it made, all beside the preferences."""

    preferences: Path

    @property
    def judgements(self) -> Path:
        return self.preferences.with_suffix(".judgements.parquet")

    @property
    def outcomes(self) -> Path:
        return self.preferences.with_suffix(".outcomes.parquet")

    @property
    def summary(self) -> Path:
        return self.preferences.with_suffix(".summary.json")


class LabelSummary(BaseModel):
    """`OUT.summary.json`. Each pair that was read has exactly one outcome or was not sent."""

    model_config = ConfigDict(frozen=True)

    pairs: int
    scored: int
    abstained: int
    failed: int
    over_budget: int
    not_sent: dict[str, int]
    """Pairs that are not worth asking about, by reason."""
    written: int
    """Rows in the preferences: the scored pairs, without those that `judge.on_inconsistent` drops."""
    inconsistent: int
    """Scored pairs whose two orders name different answers."""
    calls: int
    """Replies that were bought in this run, those of earlier runs not among them."""
    cache_hits: int
    """Judgements that cost nothing here."""
    cost_usd: float
    """Of this run's calls, where prices are known."""
    spent_usd: float
    """Of the run and its resumptions, ambiguous calls at their worst."""
    ambiguous: int
    """Calls that may have been answered and billed, unseen, over all resumptions."""
    wall_s: float


class Labelling:
    """One file of pairs, one judge config, one place for what comes of them."""

    def __init__(self, config: JudgeRunConfig, pairs: Iterable[Pair], out: Path, use: Use) -> None:
        """Raises UserError for a row that is no pair, and where the preferences cannot be written."""
        _check_out(out)
        self.config = config
        self.run = RunDirectory(config.run_dir or out.with_suffix(".run"))
        self._files = LabelFiles(out)
        self._use = use
        bound = config.judge.similarity_bound
        self._pairs = list(pairs)
        self._not_sent = {pair.id: reason for pair in self._pairs if (reason := why_not_sent(pair, bound))}
        self._asked = [pair for pair in self._pairs if pair.id not in self._not_sent]

    async def label(self, judges: JudgeStage, console: Console) -> list[str]:
        """Label the pairs, write the files, and return what a person reads at the end. Raises UserError and Stopped as
        the judges do; and, with the files written, Stopped where a budget or quota left pairs without a judgement, and
        UserError where no pair was scored."""
        begun = time.monotonic()
        console.stage("judge", f"{len(self._asked):,} pairs, {len(self._not_sent):,} not worth asking about")
        preferences = await _labelled(judges, self._asked, console)
        rows = self._rows(preferences)
        write_judgements(self._files.judgements, (one for each in preferences for one in each.judgements))
        self._write_outcomes(preferences)
        write_preferences(self._files.preferences, rows)
        outcomes = Counter(preference.outcome for preference in preferences)
        progress, totals = await judges.progress(), await judges.totals()
        summary = LabelSummary(
            pairs=len(self._pairs),
            scored=outcomes[Outcome.SCORED],
            abstained=outcomes[Outcome.ABSTAINED],
            failed=outcomes[Outcome.FAILED],
            over_budget=outcomes[Outcome.OVER_BUDGET],
            not_sent=dict(Counter(reason.value for reason in self._not_sent.values())),
            written=len(rows),
            inconsistent=sum(preference.consistent is False for preference in preferences),
            calls=progress.calls,
            cache_hits=progress.cached,
            cost_usd=progress.cost_usd,
            spent_usd=totals.spent_usd,
            ambiguous=totals.ambiguous,
            wall_s=time.monotonic() - begun,
        )
        write_atomically(self._files.summary, summary.model_dump_json(indent=2) + "\n")
        stop = over_budget_stop(preferences, self.config.judge)
        if stop is not None:
            raise Stopped(stop)
        if preferences and not outcomes[Outcome.SCORED]:
            reason = preferences[0].reason.rstrip(".")
            raise UserError(
                f"none of {len(preferences):,} pairs was scored ({reason}); check judge.base_url, judge.model and "
                f"judge.template; {self._files.outcomes} says why for each"
            )
        return _closing_lines(summary, self._files)

    def estimate(self) -> list[str]:
        """What is left to ask and what it would cost, in words. Raises UserError for a wrong judge config."""
        judge = self.config.judge
        with self._ledger() as ledger:
            missing = asyncio.run(missing_calls(self._asked, judge, self.config.seed, ledger, assume=True))
        expected = estimate(missing, judge, prices_of(judge))
        lines = [
            f"{len(self._asked):,} pairs to judge, {len(self._not_sent):,} not worth asking about",
            f"Calls that the ledger lacks: {expected.calls:,}, about {expected.prompt_tokens:,} prompt tokens and "
            f"{expected.completion_tokens:,} answer tokens",
        ]
        if expected.usd is None or expected.at_most_usd is None:
            lines.append("Cost: no price is known; set judge.price.input and judge.price.output")
        else:
            lines.append(f"Cost: about ${expected.usd:.4f}; no more than ${expected.at_most_usd:.4f} if none fails")
        if expected.minutes is not None:
            lines.append(f"Time at the configured limits: {expected.minutes:.1f} minutes")
        return lines

    def write_batches(self, directory: Path) -> list[str]:
        """Write the next calls as OpenAI batch files, and say what to do with them. Raises UserError for a config that
        cannot be batched."""
        judge = self._batched_judge()
        with self._ledger() as ledger:
            missing = asyncio.run(missing_calls(self._asked, judge, self.config.seed, ledger, assume=False))
        if not missing:
            return ["The ledger lacks nothing: run the same command without --batch-out to write the preferences"]
        paths = write_batch_files(directory, judge, ((call.key, call.request) for call in missing))
        return [
            f"{len(missing):,} calls in {len(paths)} files: {', '.join(str(path) for path in paths)}",
            "Upload them as batches, and give what comes back to the same command as --batch-in FILE",
        ]

    def take_batches(self, paths: Sequence[Path]) -> list[str]:
        """Put a batch's results into the ledger. Raises UserError naming the file and the line."""
        judge = self._batched_judge()
        (price,) = prices_of(judge)
        priced = judge.model_copy(update={"price": None if price is None else price.in_batches})
        taken = lost = 0
        with self._ledger() as ledger:
            for key, outcome in read_batch_files(paths, priced):
                if isinstance(outcome, Failure) and not outcome.refused:
                    lost += 1
                    continue
                kept = Refusal(outcome.reason) if isinstance(outcome, Failure) else outcome
                ledger.buy(Receipt(key, judge.model, None, kept), self.run.id, "" if price is None else price.source)
                taken += 1
        return [f"{taken:,} results taken into the ledger, {lost:,} were not answered and will be asked again"]

    def _batched_judge(self) -> JudgeConfig:
        judge = self.config.judge
        if judge.base_url is None or len(judge.judges) > 1:
            raise UserError(
                "judge: batch files are for one judge behind a base_url; leave out ensemble, cascade and fallback"
            )
        return judge

    @contextmanager
    def _ledger(self) -> Iterator[Ledger]:
        ledger = Ledger(self.config.judge.ledger or self.run.ledger)
        try:
            yield ledger
        finally:
            ledger.close()

    def _rows(self, preferences: Sequence[Preference]) -> list[PreferenceRow]:
        default: OnInconsistent = "drop" if self._use == "dpo" else "keep_soft"
        rows = preference_rows(
            preferences,
            seed=self.config.seed,
            held_out=0.0,
            on_inconsistent=self.config.judge.on_inconsistent or default,
            tie_margin=self.config.judge.tie_margin,
        )
        # A trainer without soft labels would take a tie for a verdict.
        return [row for row in rows if row.p > 0.5] if self._use == "dpo" else rows

    def _write_outcomes(self, preferences: Sequence[Preference]) -> None:
        """One row a pair that was read: what became of it, and why."""
        judged = {preference.pair.id: preference for preference in preferences}
        rows = [
            {"pair_id": pair.id, "outcome": "not_sent", "reason": self._not_sent[pair.id].value, "p": None}
            if pair.id in self._not_sent
            else {
                "pair_id": pair.id,
                "outcome": judged[pair.id].outcome.value,
                "reason": judged[pair.id].reason,
                "p": judged[pair.id].p,
            }
            for pair in self._pairs
        ]
        write_table(self._files.outcomes, pa.Table.from_pylist(rows, schema=_OUTCOMES))


async def label_where_answers_differ(
    label: Callable[[Sequence[Pair]], Awaitable[Sequence[Preference]]], pairs: Sequence[Pair]
) -> list[Preference | None]:
    """The judges' preferences, one a pair; None for a pair of equal answers, which tie and are not sent."""
    asked = [pair for pair in pairs if normalised(pair.response_a) != normalised(pair.response_b)]
    judged = {one.pair.id: one for one in await label(asked)}
    return [judged.get(pair.id) for pair in pairs]


def over_budget_stop(
    judged: Sequence[Preference | AnswerScore | RubricScore],
    config: JudgeConfig,
    what: str = "pairs",
    *,
    key: str = "judge",
) -> str | None:
    """Why a run must stop where a budget or quota left pairs or answers without a judgement; None where it may go
    on. `key` is the judge's in the run's config."""
    unpaid = [one for one in judged if one.outcome is Outcome.OVER_BUDGET]
    if not unpaid or config.when_spent == "go_on":
        return None
    return (
        f"{len(unpaid):,} of {len(judged):,} {what} are not judged ({unpaid[0].reason}); all replies are kept, and "
        f"the same command with a larger {key}.budget_usd or more credit goes on from them"
    )


def _closing_lines(summary: LabelSummary, files: LabelFiles) -> list[str]:
    """What a person reads at the end."""
    lines = [
        f"Labelled {summary.scored:,} of {summary.pairs:,} pairs in {summary.wall_s:.0f} s: {summary.abstained:,} "
        f"abstained, {summary.failed:,} failed, {summary.over_budget:,} over budget",
        *(f"Not sent: {count:,}, as {reason}" for reason, count in summary.not_sent.items()),
        f"Orders disagree on {summary.inconsistent:,} pairs",
        f"{summary.calls:,} calls for ${summary.cost_usd:.4f}; {summary.cache_hits:,} judgements from the ledger",
        f"Spent with all earlier runs: ${summary.spent_usd:.4f}",
    ]
    if summary.ambiguous:
        lines.append(f"{summary.ambiguous:,} calls were lost on the way and may have been billed")
    return [*lines, f"Preferences: {files.preferences} ({summary.written:,} rows)", f"Figures: {files.summary}"]


async def _labelled(judges: JudgeStage, pairs: Sequence[Pair], console: Console) -> list[Preference]:
    done = 0
    begun = time.monotonic()
    room = asyncio.Semaphore(_CHUNKS_AT_A_TIME)

    async def chunk(start: int) -> list[Preference]:
        nonlocal done
        async with room:
            labelled = await judges.label(pairs[start : start + _CHUNK], "judge")
        done += len(labelled)
        return labelled

    async def watch() -> None:
        while True:
            counts = await judges.progress()
            rate = counts.calls / max(time.monotonic() - begun, 1e-9)
            note = (
                f"{rate:.0f} calls/s, ${counts.cost_usd:.4f}, {counts.abstained} abstained, {counts.failed} failed, "
                f"{counts.actors} judge actors"
            )
            console.advance(min(max(done, counts.pairs), len(pairs)), len(pairs), note)
            await asyncio.sleep(_POLL_S)

    watching = asyncio.create_task(watch())
    chunks = [asyncio.create_task(chunk(start)) for start in range(0, len(pairs), _CHUNK)]
    try:
        return [preference for labelled in await asyncio.gather(*chunks) for preference in labelled]
    finally:
        for task in (watching, *chunks):
            task.cancel()


def _check_out(out: Path) -> None:
    """Raises UserError where the preferences cannot be written there, before anything is paid for."""
    if out.suffix != ".parquet":
        raise UserError(f"--out: {out} must end in .parquet")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {out.parent} cannot be made ({error.strerror}); name another file") from None
