"""Preferences from files: those that runs leave, and anyone's in TRL's formats. People's labels enter here too.

Every error names the file and the line or row.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from rlaif_ray.config import PreferenceFileConfig, UserError
from rlaif_ray.preferences.dataset import LabelSource, PreferenceRow, Split, answer_in, split_of, with_chosen_first
from rlaif_ray.records import Prompt
from rlaif_ray.rows import Row, identity_in, number_in, open_rows, prompt_in, text_in
from rlaif_ray.toyworld.sources import toy_source

_TOY_LABELS = 3_000

# `round` is younger than the other columns.
_OWN_COLUMNS = {field.name for field in dataclasses.fields(PreferenceRow)} - {"round"}
_OWN_ROW = TypeAdapter(PreferenceRow)


@dataclass(frozen=True, slots=True)
class RowDefaults:
    """What holds for a row that does not say it itself."""

    label_source: LabelSource
    seed: int
    held_out: float


def read_preference_file(config: PreferenceFileConfig, key: str, *, seed: int, held_out: float) -> list[PreferenceRow]:
    """Labels to fit on, from a file or the toy world's raters. They name no samples, which lie in another run, and
    their ids begin with the path, so that no other source has them.

    Raises UserError naming the file and the line, or the `key` that holds `config`.
    """
    defaults = RowDefaults(config.source, seed, held_out)
    if source := toy_source(config.path):
        if source.rater_labels is None:
            raise UserError(f"{key}: {config.path} has no raters; name another source")
        labels = source.rater_labels(config.limit or _TOY_LABELS, seed)
        rows = [verdict(label.prompt, label.preferred, label.other, defaults) for label in labels]
    else:
        read = itertools.islice(open_rows(config.path, key), config.limit)
        rows = [preference_in(row, where, defaults) for where, row in _with_distinct_ids(read)]
    if not rows:
        raise UserError(f"{key}: {config.path} holds no preferences; give some or leave it out")
    return [
        dataclasses.replace(
            row,
            pair_id=f"{config.path}:{pair_id}",
            weight=row.weight * config.weight,
            chosen_sample=None,
            rejected_sample=None,
        )
        for row, pair_id in zip(rows, _numbered([row.pair_id for row in rows]), strict=True)
    ]


def read_own_preferences(source: str, key: str) -> list[PreferenceRow]:
    """The rows of a file that a run, a labelling or a full export left, with all that they say.

    Raises UserError naming `key`, or the file and the line.
    """
    rows = []
    for where, row in _with_distinct_ids(open_rows(source, key)):
        missing = sorted(_OWN_COLUMNS - row.keys())
        if missing:
            raise UserError(f"{where}: has no {', '.join(missing)}; give {key} a preference file that rlaif wrote")
        rows.append(preference_in(row, where, RowDefaults("ai", 0, 0.0)))
    return rows


def preference_in(row: dict[str, Any], where: str, defaults: RowDefaults) -> PreferenceRow:
    """One row's preference, the likelier answer chosen. Raises UserError naming the place."""
    told = _own(row, where) if row.keys() >= _OWN_COLUMNS else _anyones(row, where, defaults)
    if told.chosen == told.rejected and told.p != 0.5:
        raise UserError(f"{where}: chosen and rejected are the same, so neither is better; set p to 0.5 or take it out")
    return with_chosen_first(told)


def verdict(prompt: Prompt, chosen: str, rejected: str, defaults: RowDefaults) -> PreferenceRow:
    """A preference without a doubt, known by its content."""
    return PreferenceRow(
        pair_id=hashlib.sha256(repr((prompt.content, chosen, rejected)).encode()).hexdigest()[:32],
        prompt_id=prompt.id,
        prompt=prompt.content,
        chosen=answer_in(prompt.content, chosen),
        rejected=answer_in(prompt.content, rejected),
        p=1.0,
        weight=1.0,
        label_source=defaults.label_source,
        split=split_of(prompt.id, defaults.seed, defaults.held_out),
    )


def _with_distinct_ids(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows as they are. Raises UserError where a row gives the id of an earlier one."""
    given: set[str] = set()
    for where, row in rows:
        identity = _given_id(row, where)
        if identity is not None and identity in given:
            raise UserError(f"{where}: its id {identity!r} is an earlier row's; give each pair an id of its own")
        given.add(identity or "")
        yield where, row


def _own(row: dict[str, Any], where: str) -> PreferenceRow:
    number_in(row, "p", where, 0.0, 1.0)
    number_in(row, "weight", where, 0.0)
    try:
        return _OWN_ROW.validate_python({name: row[name] for name in _OWN_COLUMNS | {"round"} if name in row})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}: {first['loc'][0]}: {first['msg']}") from None


def _anyones(row: dict[str, Any], where: str, defaults: RowDefaults) -> PreferenceRow:
    texts = row if row.get("prompt") is not None else _implicit_prompt(row, where)
    made = verdict(
        prompt_in(texts, "prompt", where), _answer(texts, "chosen", where), _answer(texts, "rejected", where), defaults
    )
    said = {
        **{name: getattr(made, name) for name in ("p", "weight", "label_source", "judge")},
        **{name: value for name, value in row.items() if value is not None},
    }
    if said["label_source"] not in get_args(LabelSource):
        raise UserError(f"{where}: label_source: must be human or ai, not {reprlib.repr(said['label_source'])}")
    return dataclasses.replace(
        made,
        pair_id=_given_id(row, where) or made.pair_id,
        p=number_in(said, "p", where, 0.0, 1.0),
        weight=number_in(said, "weight", where, 0.0),
        label_source=said["label_source"],
        split=said["split"] if said.get("split") in get_args(Split) else made.split,
        judge=text_in(said, "judge", where),
    )


def _numbered(ids: Iterable[str]) -> Iterator[str]:
    """The ids, of which a second like one before says so: several people may give the same label."""
    times: Counter[str] = Counter()
    for one in ids:
        times[one] += 1
        yield one if times[one] == 1 else f"{one}#{times[one]}"


def _given_id(row: dict[str, Any], where: str) -> str | None:
    return identity_in(row, "pair_id", where) or identity_in(row, "id", where)


def _answer(row: dict[str, Any], column: str, where: str) -> str:
    """An answer's text: the column itself, or its one message, the assistant's."""
    value = row.get(column)
    if not isinstance(value, list):
        text = text_in(row, column, where)
    elif len(value) == 1 and isinstance(value[0], dict) and value[0].get("role") == "assistant":
        text = text_in(value[0], "content", f"{where}: {column}")
    else:
        raise UserError(f"{where}: {column}: must be a text or one message of the assistant's")
    if not text.strip():
        raise UserError(f"{where}: {column}: is empty; write an answer or take the row out")
    return text


def _implicit_prompt(row: dict[str, Any], where: str) -> dict[str, Any]:
    """TRL's rows without a prompt: whole conversations that part at their last message, or texts that part at a word.

    An answer then begins with the white space before its first word.
    """
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, list) and isinstance(rejected, list):
        at = len(chosen) - 1
    else:
        chosen, rejected = text_in(row, "chosen", where), text_in(row, "rejected", where)
        alike = itertools.takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False))
        at = max((place for place, (character, _) in enumerate(alike) if character.isspace()), default=0)
    if not chosen[:at] or chosen[:at] != rejected[:at]:
        raise UserError(f"{where}: has no 'prompt', and chosen and rejected do not begin with the same one; add it")
    return {"prompt": chosen[:at], "chosen": chosen[at:], "rejected": rejected[at:]}
