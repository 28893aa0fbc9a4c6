"""Preferences at rest: one parquet row a pair, as TRL's trainers read it, and every raw judgement in a file beside it.

The columns `prompt`, `chosen` and `rejected` are plain texts, or lists of messages where prompts are conversations.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from rlaif_ray.judge.aggregate import disagreement
from rlaif_ray.records import Judgement, Message, Order, Outcome, Preference, Role
from rlaif_ray.rundir import file_written_atomically
from rlaif_ray.samples import write_table

LabelSource = Literal["ai", "human"]
OnInconsistent = Literal["keep_soft", "drop", "tie", "downweight"]
Split = Literal["train", "test"]
Text = str | tuple[Message, ...]

_JUDGEMENTS_AT_A_TIME = 4_096

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

_JUDGEMENT_TYPES = {
    "str": pa.string(),
    "float": pa.float64(),
    "int": pa.int64(),
    "bool": pa.bool_(),
    "tuple[str, ...]": pa.list_(pa.string()),
}

# What members of an ensemble hold, beside what they add up to.
_MEMBERS = pa.list_(
    pa.struct(
        [
            ("judge", pa.string()),
            ("template", pa.string()),
            ("principle", pa.string()),
            ("weight", pa.float64()),
            ("p", pa.float64()),
            ("consistent", pa.bool_()),
            ("contradiction", pa.bool_()),
            ("set_aside", pa.bool_()),
        ]
    )
)


# Conversational files hold messages in the three texts.
_COLUMNS = pa.schema(
    [
        ("prompt", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("p", pa.float64()),
        ("weight", pa.float64()),
        ("chosen_first_logprob_chosen", pa.float64()),
        ("chosen_first_logprob_rejected", pa.float64()),
        ("chosen_second_logprob_chosen", pa.float64()),
        ("chosen_second_logprob_rejected", pa.float64()),
        ("consistent", pa.bool_()),
        ("disagreement", pa.float64()),
        ("members", _MEMBERS),
        ("rationale", pa.string()),
        ("judge", pa.string()),
        ("template_hash", pa.string()),
        ("label_source", pa.string()),
        ("split", pa.string()),
        ("pair_id", pa.string()),
        ("prompt_id", pa.string()),
        ("chosen_sample", pa.string()),
        ("rejected_sample", pa.string()),
        ("round", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Label:
    """What a preference says to a trainer: `p` that response_a is better, and what the pair counts for."""

    p: float
    weight: float


@dataclass(frozen=True, slots=True)
class Member:
    """What one judge, template and principle held: `p` is the probability that `chosen` is better. Those that a
    cascade went beyond are set aside."""

    judge: str
    template: str
    principle: str | None
    weight: float
    p: float | None
    consistent: bool | None
    contradiction: bool | None
    set_aside: bool


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """One labelled pair. `p` is the probability that `chosen` is better, in [0.5, 1]; at 0.5 neither is chosen truly.

    `weight` is what the pair counts for in a loss, `round` the round of the run that collected it. `consistent` is None
    where only one order was asked. `disagreement` is the standard deviation of an ensemble's probabilities. The
    log-probabilities, in nats, are those of the label that names an answer, where the chosen one was shown first and
    where it was shown second; None where the judge gave none, and for an ensemble those of its first member.
    """

    pair_id: str
    prompt_id: str
    prompt: Text
    chosen: Text
    rejected: Text
    p: float
    weight: float
    label_source: LabelSource
    split: Split
    round: int = 1
    judge: str = ""
    template_hash: str = ""
    chosen_first_logprob_chosen: float | None = None
    chosen_first_logprob_rejected: float | None = None
    chosen_second_logprob_chosen: float | None = None
    chosen_second_logprob_rejected: float | None = None
    consistent: bool | None = None
    disagreement: float | None = None
    members: tuple[Member, ...] = ()
    rationale: str | None = None
    chosen_sample: str | None = None
    rejected_sample: str | None = None


def preference_rows(
    preferences: Sequence[Preference],
    *,
    seed: int,
    held_out: float,
    on_inconsistent: OnInconsistent = "keep_soft",
    tie_margin: float = 0.0,
    round: int = 1,
) -> list[PreferenceRow]:
    """Rows of the judged pairs that `label_of` gives a label, ties among them; the others stay in the judgements alone.

    `held_out` is the share of the prompts whose pairs go to the split `test`.
    """
    labels = [(preference, label_of(preference, on_inconsistent, tie_margin)) for preference in preferences]
    return [
        _row(preference, label, split_of(preference.pair.prompt.id, seed, held_out), round)
        for preference, label in labels
        if label is not None
    ]


def label_of(preference: Preference, on_inconsistent: OnInconsistent, tie_margin: float) -> Label | None:
    """What to train on; None for a pair without a number, and for an inconsistent one that is to be dropped."""
    if preference.p is None:
        return None
    p, weight = preference.p, 1.0
    if preference.consistent is False:
        if on_inconsistent == "drop":
            return None
        if on_inconsistent == "tie":
            p = 0.5
        elif on_inconsistent == "downweight":
            weight = abs(2.0 * p - 1.0)
    return Label(0.5 if abs(p - 0.5) < tie_margin else p, weight)


def split_of(prompt_id: str, seed: int, held_out: float) -> Split:
    """The split of a prompt, all its pairs together: a hash decides, so that it stays when prompts are added."""
    digest = hashlib.sha256(f"split\0{seed}\0{prompt_id}".encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") / 2**64 < held_out else "train"


def split_by_prompt(rows: Sequence[PreferenceRow]) -> list[PreferenceRow]:
    """The rows of several sources, no prompt on both sides: one that any row holds out is held out in all.

    A prompt is known by what it says; a text is the same as a conversation of that one message.
    """
    held_out = {_said(row.prompt) for row in rows if row.split == "test"}
    return [dataclasses.replace(row, split="test" if _said(row.prompt) in held_out else "train") for row in rows]


def with_chosen_first(row: PreferenceRow) -> PreferenceRow:
    """The same label told from the side of the answer that it prefers: where p is below 1/2, chosen and rejected change
    places."""
    if row.p >= 0.5:
        return row
    return dataclasses.replace(
        row,
        chosen=row.rejected,
        rejected=row.chosen,
        p=1.0 - row.p,
        chosen_first_logprob_chosen=row.chosen_second_logprob_rejected,
        chosen_first_logprob_rejected=row.chosen_second_logprob_chosen,
        chosen_second_logprob_chosen=row.chosen_first_logprob_rejected,
        chosen_second_logprob_rejected=row.chosen_first_logprob_chosen,
        members=tuple(
            member if member.p is None else dataclasses.replace(member, p=1.0 - member.p) for member in row.members
        ),
        chosen_sample=row.rejected_sample,
        rejected_sample=row.chosen_sample,
    )


def answer_in(prompt: Text, answer: str) -> Text:
    """An answer as a row holds it: a text, or an assistant's message where the prompt is a conversation."""
    return answer if isinstance(prompt, str) else (Message("assistant", answer),)


def answer_text(answer: Text) -> str:
    """What `answer_in` holds."""
    return answer if isinstance(answer, str) else answer[-1].content


def preference_table(rows: Sequence[PreferenceRow], *, conversational: bool = False) -> pa.Table:
    """Rows as columns. All are conversations where they are asked for as such, or any prompt is one."""
    conversational = conversational or any(not isinstance(row.prompt, str) for row in rows)
    texts = {name: _MESSAGES if conversational else pa.string() for name in ("prompt", "chosen", "rejected")}
    columns = {name: [getattr(row, name) for row in rows] for name in _COLUMNS.names}
    columns["members"] = [[dataclasses.asdict(member) for member in row.members] for row in rows]
    if conversational:
        for name in texts:
            role: Role = "user" if name == "prompt" else "assistant"
            columns[name] = [_messages(text, role) for text in columns[name]]
    schema = pa.schema([(field.name, texts.get(field.name, field.type)) for field in _COLUMNS])
    return pa.table(columns, schema=schema)


def write_preferences(path: Path, rows: Sequence[PreferenceRow]) -> None:
    """Write as parquet, atomically."""
    write_table(path, preference_table(rows))


def read_preferences(path: Path) -> list[PreferenceRow]:
    """The rows of a file that `write_preferences` wrote."""
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        for name in ("prompt", "chosen", "rejected"):
            if not isinstance(row[name], str):
                row[name] = tuple(Message(message["role"], message["content"]) for message in row[name])
        row["members"] = tuple(Member(**member) for member in row["members"])
    return [PreferenceRow(**row) for row in rows]


def write_judgements(path: Path, judgements: Iterable[Judgement]) -> None:
    """Write every field of every judgement, atomically, some at a time, as their prompts and replies are long."""
    schema = pa.schema([(field.name, _judgement_type(str(field.type))) for field in dataclasses.fields(Judgement)])
    remaining = iter(judgements)
    with (
        file_written_atomically(path) as unfinished,
        pq.ParquetWriter(unfinished, schema, compression="zstd") as writer,
    ):
        while batch := list(itertools.islice(remaining, _JUDGEMENTS_AT_A_TIME)):
            columns = {name: [getattr(judgement, name) for judgement in batch] for name in schema.names}
            writer.write_table(pa.table(columns, schema=schema))


def read_judgements(path: Path) -> list[Judgement]:
    """The judgements of a file that `write_judgements` wrote."""
    return [
        Judgement(
            **{
                **row,
                "order": Order(row["order"]),
                "outcome": Outcome(row["outcome"]),
                "ledger_keys": tuple(row["ledger_keys"]),
            }
        )
        for row in pq.read_table(path).to_pylist()
    ]


def _row(preference: Preference, label: Label, split: Split, round: int) -> PreferenceRow:
    pair, judgements = preference.pair, preference.judgements
    # The first member's: later ones do not displace it.
    by_order = {judgement.order: judgement for judgement in reversed(judgements)}
    ab, ba = by_order.get(Order.AB), by_order.get(Order.BA)
    prompt = pair.prompt.content
    return with_chosen_first(
        PreferenceRow(
            pair_id=pair.id,
            prompt_id=pair.prompt.id,
            prompt=prompt,
            chosen=answer_in(prompt, pair.response_a),
            rejected=answer_in(prompt, pair.response_b),
            p=label.p,
            weight=label.weight,
            label_source="ai",
            split=split,
            round=round,
            judge=judgements[0].judge if judgements else "",
            template_hash=judgements[0].template_hash if judgements else "",
            chosen_first_logprob_chosen=ab.logprob_first if ab else None,
            chosen_first_logprob_rejected=ab.logprob_second if ab else None,
            chosen_second_logprob_chosen=ba.logprob_second if ba else None,
            chosen_second_logprob_rejected=ba.logprob_first if ba else None,
            consistent=preference.consistent,
            disagreement=disagreement(preference),
            members=tuple(
                Member(
                    opinion.judge,
                    opinion.template,
                    opinion.principle,
                    opinion.weight,
                    opinion.p,
                    opinion.consistent,
                    opinion.contradiction,
                    opinion in preference.set_aside,
                )
                for opinion in (*preference.opinions, *preference.set_aside)
            ),
            rationale=next((judgement.rationale for judgement in judgements if judgement.rationale), None),
            chosen_sample=pair.sample_a,
            rejected_sample=pair.sample_b,
        )
    )


def _said(prompt: Text) -> Text:
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def _messages(text: Text, role: Role) -> list[dict[str, str]]:
    turns = (Message(role, text),) if isinstance(text, str) else text
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _judgement_type(annotation: str) -> Any:
    """The column type of a field; an enum is written as its text, an optional field as nullable."""
    return _JUDGEMENT_TYPES.get(annotation.removesuffix(" | None"), pa.string())
