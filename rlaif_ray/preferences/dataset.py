"""Preferences at rest: one parquet row a labelled pair, as TRL's trainers read it.

The columns `prompt`, `chosen` and `rejected` are plain texts, or lists of messages where prompts are conversations.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from rlaif_ray.records import Message, Role
from rlaif_ray.samples import write_table

LabelSource = Literal["ai", "human"]
Split = Literal["train", "test"]
Text = str | tuple[Message, ...]

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

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


def _said(prompt: Text) -> Text:
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def _messages(text: Text, role: Role) -> list[dict[str, str]]:
    turns = (Message(role, text),) if isinstance(text, str) else text
    return [{"role": turn.role, "content": turn.content} for turn in turns]
