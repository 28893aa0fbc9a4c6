"""Sampled answers at rest: parquet, one row an answer, with the token ids that are its record and its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlaif_ray.records import FinishReason, Prompt, Rollouts, offsets_of
from rlaif_ray.rundir import file_written_atomically


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer to one prompt, as tokens and as people read it."""

    sample_id: str
    prompt_id: str
    prompt: str
    answer: str
    prompt_tokens: tuple[int, ...]
    answer_tokens: tuple[int, ...]
    finish_reason: str


_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("prompt_tokens", pa.list_(pa.int32())),
        ("answer_tokens", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
    ]
)


def samples_of(rollouts: Rollouts, texts: Sequence[str], prompts: Sequence[Prompt]) -> list[Sample]:
    """Rows for a batch of rollouts with their decoded texts and their prompts, in the same order."""
    return [
        Sample(
            sample_id=rollouts.sample_ids[row],
            prompt_id=prompts[row].id,
            prompt=prompts[row].text,
            answer=texts[row],
            prompt_tokens=tuple(rollouts.prompt(row).tolist()),
            answer_tokens=tuple(rollouts.answer(row).tolist()),
            finish_reason=rollouts.finish_reasons[row].value,
        )
        for row in range(len(rollouts))
    ]


def write_table(path: Path, table: pa.Table) -> None:
    """A parquet file, whole or not at all."""
    with file_written_atomically(path) as unfinished:
        pq.write_table(table, unfinished, compression="zstd")


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    write_table(path, pa.Table.from_pylist([asdict(sample) for sample in samples], schema=_SCHEMA))


def read_samples(path: Path) -> list[Sample]:
    return [
        Sample(**{**row, "prompt_tokens": tuple(row["prompt_tokens"]), "answer_tokens": tuple(row["answer_tokens"])})
        for row in pq.read_table(path).to_pylist()
    ]


def rollouts_of(samples: Sequence[Sample]) -> Rollouts:
    """Samples as a batch to score. Their log-probabilities are not kept at rest: they are NaN, no learner's food."""
    answer_lengths = [len(sample.answer_tokens) for sample in samples]
    return Rollouts(
        sample_ids=tuple(sample.sample_id for sample in samples),
        group_ids=tuple(sample.sample_id.rpartition("/")[0] for sample in samples),
        prompt_ids=tuple(sample.prompt_id for sample in samples),
        prompt_tokens=np.array([token for sample in samples for token in sample.prompt_tokens], dtype=np.int32),
        prompt_offsets=offsets_of([len(sample.prompt_tokens) for sample in samples]),
        answer_tokens=np.array([token for sample in samples for token in sample.answer_tokens], dtype=np.int32),
        answer_offsets=offsets_of(answer_lengths),
        logprobs=np.full(sum(answer_lengths), np.nan, dtype=np.float32),
        token_versions=np.full(sum(answer_lengths), -1, dtype=np.int32),
        finish_reasons=tuple(FinishReason(sample.finish_reason) for sample in samples),
        version=-1,
        fingerprint="",
    )
