"""Supervised fine-tuning: the policy learns to imitate demonstrations, by the loss on their answers' tokens alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlaif_ray.config import FitConfig, RunConfig, UserError
from rlaif_ray.engines.partitioning import loading_for
from rlaif_ray.engines.training import StartEngine, TrainingEngine
from rlaif_ray.fitting import OnStep, bucketed_batches, longest_first, optimizer_settings, optimizer_steps
from rlaif_ray.metrics import GRADIENT_NORM, LEARNING_RATE, LOSS
from rlaif_ray.microbatches import split_rows
from rlaif_ray.policy.given import load_given
from rlaif_ray.policy.likelihood import answer_logprobs
from rlaif_ray.policy.model import save_model, scratch_policy, scratch_tokenizer, stop_token
from rlaif_ray.policy.packing import Ragged
from rlaif_ray.policy.served import served_weights
from rlaif_ray.prompts import encode_answer, encode_prompt
from rlaif_ray.records import Demonstration
from rlaif_ray.rundir import directory_written_atomically


@dataclass(frozen=True, slots=True)
class SftResult:
    """`loss` is the last step's, in nats a token; None where nothing was trained. `left_out` counts demonstrations
    beyond the token limits."""

    steps: int
    loss: float | None
    left_out: int


def fit_sft(
    config: RunConfig,
    demonstrations: Sequence[Demonstration],
    directory: Path,
    start_engine: StartEngine,
    on_step: OnStep,
) -> SftResult:
    """Train, as one of the engine's ranks; rank 0 fills `directory`, whole or not at all.

    Without demonstrations the given model is written there as it is. Under ZeRO-3 a given model is never whole on a
    rank but where it is written. Raises UserError when every demonstration is
    beyond the token limits.
    """
    with loading_for(config.sft.zero_stage, config.policy.dtype):
        model, tokenizer = _start(config, demonstrations)
    stop = stop_token(model.generation_config, tokenizer)
    examples = [
        (
            encode_prompt(tokenizer, demonstration.prompt),
            encode_answer(tokenizer, demonstration.answer, stop),
        )
        for demonstration in demonstrations
    ]
    policy = config.policy
    kept = [
        (prompt, answer)
        for prompt, answer in examples
        if len(prompt) <= policy.max_prompt_tokens and len(answer) <= policy.max_answer_tokens
    ]
    if examples and not kept:
        raise UserError(
            f"every demonstration is longer than policy.max_prompt_tokens={policy.max_prompt_tokens} or "
            f"policy.max_answer_tokens={policy.max_answer_tokens}; raise them"
        )
    steps = optimizer_steps(config.sft, len(kept))
    engine = start_engine(model, optimizer_settings(config.sft, policy.dtype, steps))
    loss = None
    if kept:
        sequences = Ragged.of([np.array(prompt) for prompt, _ in kept], [np.array(answer) for _, answer in kept])
        loss = train_on_answers(engine, sequences, config.sft, steps, seed=config.seed, on_step=on_step)
    weights = served_weights(engine.module, config.learner.weight_bucket_mib * 2**20, kept=engine.rank == 0)
    if engine.rank == 0:
        with directory_written_atomically(directory) as unfinished:
            save_model(engine.module, weights, tokenizer, unfinished)
    return SftResult(steps, loss, len(examples) - len(kept))


def train_on_answers(
    engine: TrainingEngine, sequences: Ragged, config: FitConfig, steps: int, *, seed: int, on_step: OnStep
) -> float:
    """Take `steps` optimizer steps on batches of like length; return the last one's loss, in nats a token."""
    lengths = sequences.lengths
    loss = float("nan")
    for number, rows in enumerate(bucketed_batches(lengths, config.batch_size, steps, seed), start=1):
        tokens = int(sequences.answer_lengths[rows].sum())
        micros = split_rows(longest_first(rows, lengths), engine.rank, engine.world_size, config.micro_batch_size)
        total = torch.zeros((), device=engine.device)
        for micro in micros:
            logprobs = answer_logprobs(engine.model, sequences, micro.rows, engine.device)
            real = torch.from_numpy(micro.real).to(engine.device)
            part = -torch.where(real, logprobs, 0.0).sum() / tokens
            engine.backward(part, last=micro is micros[-1])
            total += part.detach()
        rate = engine.learning_rate
        norm = engine.step()
        loss = float(engine.sum(total))
        on_step(number, steps, {LOSS: loss, LEARNING_RATE: rate, GRADIENT_NORM: norm})
    return loss


def _start(config: RunConfig, demonstrations: Sequence[Demonstration]) -> tuple[Any, Any]:
    """The model to train and its tokenizer, the same on every rank."""
    policy = config.policy
    if policy.scratch is None:
        assert policy.model is not None  # the config sees to it
        return load_given(policy.model, "policy.model", policy)
    tokenizer = scratch_tokenizer(text for d in demonstrations for text in (d.prompt.text, d.answer))
    return (
        scratch_policy(
            policy.scratch, tokenizer, positions=policy.context_tokens, dtype=policy.dtype, seed=config.seed
        ),
        tokenizer,
    )
