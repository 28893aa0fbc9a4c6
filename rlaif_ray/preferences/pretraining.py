"""Ranked and voted answers as pairs, for preference-model pretraining (Askell et al. 2021)."""

from __future__ import annotations

import dataclasses
import itertools
import math
import reprlib
from types import NoneType
from typing import Any

from rlaif_ray.config import PretrainingConfig, UserError
from rlaif_ray.preferences.dataset import PreferenceRow, answer_in, answer_text
from rlaif_ray.preferences.files import RowDefaults, preference_in, verdict
from rlaif_ray.rows import number_in, open_rows, prompt_in, text_in

_KEY = "reward.pretraining.path"
_ALL_TO_TRAIN = RowDefaults("human", seed=0, held_out=0.0)


def read_pretraining_pairs(config: PretrainingConfig) -> list[PreferenceRow]:
    """A pair of every two answers to a prompt of which one stands above the other; of a preference file, its pairs.

    Raises UserError naming the file and the line, or the key.
    """
    pairs = []
    for where, row in itertools.islice(open_rows(config.path, _KEY), config.limit):
        if row.get("answers") is None:
            pairs.append(preference_in(row, where, _ALL_TO_TRAIN))
        else:
            pairs += _ranked_pairs(row, where)
    if not pairs:
        raise UserError(f"{_KEY}: {config.path} sets no answer above another; give rows that do, or leave it out")
    return [made for pair in pairs for made in binarised(pair)] if config.binarised else pairs


def binarised(row: PreferenceRow) -> list[PreferenceRow]:
    """A over B as GOOD: A over BAD: A, and BAD: B over GOOD: B, which asks of each answer alone whether it is good."""
    return [
        dataclasses.replace(
            row,
            pair_id=f"{row.pair_id}/{side}",
            chosen=answer_in(row.prompt, f"{better}: {answer_text(answer)}"),
            rejected=answer_in(row.prompt, f"{worse}: {answer_text(answer)}"),
            chosen_sample=None,
            rejected_sample=None,
        )
        for side, answer, better, worse in (
            ("chosen", row.chosen, "GOOD", "BAD"),
            ("rejected", row.rejected, "BAD", "GOOD"),
        )
    ]


def score_of_votes(votes: float, accepted: bool) -> int:
    """log2(1 + votes), rounded, and 1 more for the accepted answer; -1 where votes are negative."""
    return -1 if votes < 0 else round(math.log2(1 + votes)) + accepted


def _ranked_pairs(row: dict[str, Any], where: str) -> list[PreferenceRow]:
    prompt = prompt_in(row, "prompt", where)
    pairs = []
    for (a, of_a), (b, of_b) in itertools.combinations(_scored_answers(row["answers"], where), 2):
        if of_a == of_b:
            continue
        if a == b:
            raise UserError(f"{where}: answers: two that are the same have different scores; leave one out")
        pairs.append(verdict(prompt, *((a, b) if of_a > of_b else (b, a)), _ALL_TO_TRAIN))
    return pairs


def _scored_answers(answers: Any, where: str) -> list[tuple[str, float]]:
    """The answers' texts, each with a number that is higher for a better one."""
    where = f"{where}: answers"
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise UserError(f"{where}: must be a list of objects, each with a text and a rank, a score or votes")
    for measure in ("rank", "score", "votes"):
        if all(answer.get(measure) is not None for answer in answers):
            return [(text_in(answer, "text", where), _score(answer, measure, where)) for answer in answers]
    raise UserError(f"{where}: need a rank each, or a score each, or votes each")


def _score(answer: dict[str, Any], measure: str, where: str) -> float:
    value = number_in(answer, measure, where)
    if measure == "rank":
        return -value
    if measure == "score":
        return value
    accepted = answer.get("accepted")
    if not isinstance(accepted, (bool, NoneType)):
        raise UserError(f"{where}: accepted: must be true or false, not {reprlib.repr(accepted)}")
    return score_of_votes(value, bool(accepted))
