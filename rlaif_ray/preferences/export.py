"""Preferences for other tools: TRL's columns, or all of ours, as parquet or JSONL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rlaif_ray.config import UserError
from rlaif_ray.preferences.dataset import PreferenceRow, preference_table
from rlaif_ray.preferences.files import read_own_preferences
from rlaif_ray.rundir import write_atomically
from rlaif_ray.samples import write_table

Form = Literal["trl", "full"]

_TRL_COLUMNS = ("prompt", "chosen", "rejected", "p", "weight", "label_source", "judge", "split", "pair_id")


def export_preferences(source: str, out: Path, form: Form, *, conversational: bool) -> str:
    """Write a preference file of ours in another form, and return what a person reads at the end.

    Raises UserError for a file that is not ours, and where `out` cannot be written.
    """
    rows = read_own_preferences(source, "PREFERENCES")
    kept = [row for row in rows if row.p > 0.5] if form == "trl" else rows
    try:
        write_export(out, kept, form, conversational=conversational)
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written ({error.strerror}); name another file") from None
    return f"{len(kept):,} preferences in {out}; {len(rows) - len(kept):,} ties left out"


def write_export(out: Path, rows: Sequence[PreferenceRow], form: Form, *, conversational: bool = False) -> None:
    """Write rows as .parquet or .jsonl, atomically. Raises UserError for another ending."""
    table = preference_table(rows, conversational=conversational)
    if form == "trl":
        table = table.select(_TRL_COLUMNS)
    if out.suffix == ".parquet":
        write_table(out, table)
    elif out.suffix == ".jsonl":
        write_atomically(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()))
    else:
        raise UserError(f"--out: {out} must end in .parquet or .jsonl")
