"""Fitting the reward model: pairs with soft labels in, a model directory with its normalisation out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlaif_ray.config import RewardConfig, RunConfig, UserError
from rlaif_ray.engines.training import StartEngine, TrainingEngine
from rlaif_ray.fitting import OnStep, bucketed_batches, optimizer_settings, optimizer_steps
from rlaif_ray.metrics import ACCURACY, GRADIENT_NORM, HELD_OUT_ACCURACY, HELD_OUT_LOSS, LEARNING_RATE, LOSS
from rlaif_ray.microbatches import split_rows
from rlaif_ray.policy.model import load_tokenizer, save_model
from rlaif_ray.records import LabelledPair
from rlaif_ray.reward.losses import centring_loss, preference_loss, ranks_alike
from rlaif_ray.reward.model import RewardNormalisation, new_reward_model
from rlaif_ray.reward.scoring import rewards_of, right_padded, score_sequences
from rlaif_ray.rundir import directory_written_atomically


@dataclass(frozen=True, slots=True)
class RewardFit:
    """How a reward model was fitted. `held_out_margins` are r_a - r_b of the held-out pairs, in the order of their
    ids; the held-out loss (nats a pair) and accuracy are against their labels, None where there are none."""

    steps: int
    loss: float
    held_out_loss: float | None
    held_out_accuracy: float | None
    held_out_margins: tuple[float, ...]
    normalisation: RewardNormalisation


def fit_reward(
    config: RunConfig,
    pairs: Sequence[LabelledPair],
    held_out: Sequence[LabelledPair],
    answers: Sequence[Sequence[int]],
    sft_directory: Path,
    directory: Path,
    start_engine: StartEngine,
    on_step: OnStep,
) -> RewardFit:
    """Fit, as one of the engine's ranks; rank 0 fills `directory`, whole or not at all.

    `answers` are the SFT model's, as token ids with their prompts: raw scores over them give the normalisation. Raises
    UserError when there is no pair to fit, or when the scores of `answers` do not vary.
    """
    if not pairs:
        raise UserError("no pair has a usable label, so there is nothing to fit a reward model on")
    policy = config.policy
    pairs = sorted(pairs, key=lambda pair: pair.id)
    steps = optimizer_steps(config.reward, len(pairs))
    model = new_reward_model(
        sft_directory, dtype=policy.dtype, seed=config.seed, trust_remote_code=policy.trust_remote_code
    )
    engine = start_engine(model, optimizer_settings(config.reward, policy.dtype, steps))
    last = train_on_pairs(engine, pairs, config.reward, steps, seed=config.seed, on_step=on_step)
    # Under ZeRO-3 every forward is collective, so every rank measures the same.
    margins, labels = margins_of(engine, sorted(held_out, key=lambda pair: pair.id), config.reward.max_batch_tokens)
    normalisation = measure_normalisation(engine, answers, config.reward.max_batch_tokens)
    weights = engine.gather_weights()
    if engine.rank == 0:
        tokenizer = load_tokenizer(sft_directory, trust_remote_code=policy.trust_remote_code)
        with directory_written_atomically(directory) as unfinished:
            save_model(engine.module, weights, tokenizer, unfinished)
            normalisation.save(unfinished)
    fit = RewardFit(steps, last[LOSS], *_held_out(margins, labels), tuple(margins.tolist()), normalisation)
    if fit.held_out_loss is not None and fit.held_out_accuracy is not None:
        on_step(steps, steps, {**last, HELD_OUT_LOSS: fit.held_out_loss, HELD_OUT_ACCURACY: fit.held_out_accuracy})
    return fit


def _held_out(margins: torch.Tensor, labels: torch.Tensor) -> tuple[float | None, float | None]:
    """Loss of the pairs, and accuracy on those whose label names an answer."""
    zeros = torch.zeros_like(margins)
    decided = labels != 0.5
    loss = float(preference_loss(margins, zeros, labels).mean()) if len(labels) else None
    accuracy = float(ranks_alike(margins, zeros, labels)[decided].float().mean()) if decided.any() else None
    return loss, accuracy


def train_on_pairs(
    engine: TrainingEngine,
    pairs: Sequence[LabelledPair],
    config: RewardConfig,
    steps: int,
    *,
    seed: int,
    on_step: OnStep,
) -> Mapping[str, float]:
    """Take `steps` optimizer steps; return the last one's metrics. A pair's answers share a forward."""
    lengths = np.array([len(p.prompt) + max(len(p.answer_a), len(p.answer_b)) for p in pairs])
    labels = torch.tensor([pair.p for pair in pairs], dtype=torch.float32)
    weights = torch.tensor([pair.weight for pair in pairs], dtype=torch.float32)
    model_config: Any = engine.module.config
    values: dict[str, float] = {}
    for number, rows in enumerate(bucketed_batches(lengths, config.batch_size, steps, seed), start=1):
        micros = split_rows(rows, engine.rank, engine.world_size, config.micro_batch_size)
        sums = torch.zeros(2, device=engine.device)
        for micro in micros:
            inputs = right_padded(
                [(*pairs[row].prompt, *pairs[row].answer_a) for row in micro.rows]
                + [(*pairs[row].prompt, *pairs[row].answer_b) for row in micro.rows],
                model_config.pad_token_id,
                engine.device,
            )
            scores_a, scores_b = rewards_of(engine.model, inputs).chunk(2)
            p = labels[micro.rows].to(engine.device)
            real = torch.from_numpy(micro.real).to(engine.device)
            losses = preference_loss(scores_a, scores_b, p) * weights[micro.rows].to(engine.device)
            losses = losses + config.centring * centring_loss(scores_a, scores_b)
            part = torch.where(real, losses, 0.0).sum() / len(rows)
            engine.backward(part, last=micro is micros[-1])
            sums[0] += part.detach()
            sums[1] += (ranks_alike(scores_a.detach(), scores_b.detach(), p) & real).sum() / len(rows)
        rate = engine.learning_rate
        norm = engine.step()
        loss, accuracy = engine.sum(sums).tolist()
        values = {LOSS: loss, ACCURACY: accuracy, LEARNING_RATE: rate, GRADIENT_NORM: norm}
        on_step(number, steps, values)
    return values


def margins_of(
    engine: TrainingEngine, pairs: Sequence[LabelledPair], max_batch_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """r_a - r_b (N,) and the labels (N,). Raises FloatingPointError when a score is not finite."""
    ids = [f"{pair.id}/{side}" for side in "ab" for pair in pairs]
    sequences = [(*p.prompt, *p.answer_a) for p in pairs] + [(*p.prompt, *p.answer_b) for p in pairs]
    values, valid = score_sequences(engine.module, ids, sequences, max_batch_tokens=max_batch_tokens)
    if not valid.all():
        raise FloatingPointError(f"the reward model gives no finite score to {(~valid).sum()} held-out answers")
    scores_a, scores_b = np.split(values, 2)
    return torch.from_numpy(scores_a - scores_b), torch.tensor([pair.p for pair in pairs], dtype=torch.float32)


def measure_normalisation(
    engine: TrainingEngine, answers: Sequence[Sequence[int]], max_batch_tokens: int
) -> RewardNormalisation:
    """Mean and standard deviation of the raw scores of `answers`. Raises UserError when they do not vary."""
    ids = [f"{number:09}" for number in range(len(answers))]
    values, valid = score_sequences(engine.module, ids, answers, max_batch_tokens=max_batch_tokens)
    scores = values[valid].astype(np.float64)
    if len(scores) < 2 or scores.std() < 1e-6:
        raise UserError(
            f"the reward model gives {len(scores)} of {len(answers)} answers a score, and these do not vary, so they "
            "cannot be normalised; check the preferences it was fitted on"
        )
    return RewardNormalisation(mean=float(scores.mean()), std=float(scores.std()), count=len(scores))
