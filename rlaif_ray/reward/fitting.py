"""Fitting the reward model: pairs with soft labels in, a model directory with its normalisation out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlaif_ray.config import FitConfig, RewardConfig, RunConfig, UserError
from rlaif_ray.engines.training import StartEngine, TrainingEngine
from rlaif_ray.fitting import OnStep, optimizer_settings, optimizer_steps
from rlaif_ray.metrics import HELD_OUT_ACCURACY, HELD_OUT_LOSS, LOSS
from rlaif_ray.policy.model import save_model
from rlaif_ray.records import LabelledPair, RewardData, RewardFit, Weights
from rlaif_ray.reward.comparisons import ComparisonGroup, comparison_groups
from rlaif_ray.reward.initial import new_reward_model, reward_tokenizer
from rlaif_ray.reward.losses import PairObjective, preference_loss, ranks_alike
from rlaif_ray.reward.model import RewardNormalisation
from rlaif_ray.reward.scoring import score_sequences
from rlaif_ray.reward.training import EarlyStopping, training_steps
from rlaif_ray.rundir import directory_written_atomically

FIT_FILE = "reward_fit.json"


def read_fit(directory: Path) -> RewardFit | None:
    """How the model that lies in a directory was fitted; None where there is none."""
    path = directory / FIT_FILE
    if not path.exists():
        return None
    fit = json.loads(path.read_text())
    return RewardFit(
        **fit | {"held_out_ids": tuple(fit["held_out_ids"]), "held_out_margins": tuple(fit["held_out_margins"])}
    )


def fit_reward(
    config: RunConfig,
    fit: FitConfig,
    data: RewardData,
    start: Path | str,
    directory: Path,
    *,
    seed: int,
    start_engine: StartEngine,
    on_step: OnStep,
) -> RewardFit:
    """Fit with the objective of `config.reward`, as `fit` says, which is `config.reward` itself or its pretraining.

    Runs as one of the engine's ranks; rank 0 fills `directory`, whole or not at all. The weights that did best on the
    held-out pairs are kept; where there are none, the last. Raises UserError when there is no pair to fit, when `start`
    cannot be used or takes no sequence so long, or when the scores of the answers do not vary.
    """
    groups = comparison_groups(sorted(data.train, key=lambda pair: pair.id), by_prompt=config.reward.by_prompt)
    if not groups:
        raise UserError("no pair has a usable label, so there is nothing to fit a reward model on")
    policy = config.policy
    model = new_reward_model(start, dtype=policy.dtype, seed=seed, trust_remote_code=policy.trust_remote_code)
    _check_positions(model, start, max(len(sequence) for group in groups for sequence in group.sequences))
    steps = optimizer_steps(fit, len(groups))
    engine = start_engine(model, optimizer_settings(fit, policy.dtype, steps))
    measured = sorted(data.held_out, key=lambda pair: pair.id)
    best, weights = _train(engine, groups, measured, config.reward, fit, steps, seed, on_step)
    normalisation = measure_normalisation(engine, data.answers, config.reward.max_batch_tokens)
    if engine.rank == 0:
        tokenizer = reward_tokenizer(start, trust_remote_code=policy.trust_remote_code)
        with directory_written_atomically(directory) as unfinished:
            save_model(engine.module, weights, tokenizer, unfinished)
            normalisation.save(unfinished)
            (unfinished / FIT_FILE).write_text(json.dumps(asdict(best), indent=2) + "\n")
    return best


def _train(
    engine: TrainingEngine,
    groups: Sequence[ComparisonGroup],
    held_out: Sequence[LabelledPair],
    reward: RewardConfig,
    fit: FitConfig,
    steps: int,
    seed: int,
    on_step: OnStep,
) -> tuple[RewardFit, Weights]:
    """Take the steps, or as many as early stopping allows, and leave the best weights in the engine."""
    every = reward.evaluate_every if held_out else None
    stopping = EarlyStopping(reward.patience)
    best = None
    taken = training_steps(engine, groups, fit, PairObjective.of(reward), steps, seed=seed)
    for number, values in enumerate(taken, start=1):
        if number == steps or (every is not None and number % every == 0):
            margins = margins_of(engine, held_out, reward.max_batch_tokens)
            loss, accuracy = held_out_figures(margins, [pair.p for pair in held_out])
            if loss is not None and accuracy is not None:
                values |= {HELD_OUT_LOSS: loss, HELD_OUT_ACCURACY: accuracy}
            if loss is None or stopping.observe(loss):
                ids = tuple(pair.id for pair in held_out)
                best = RewardFit(number, number, values[LOSS], loss, accuracy, ids, tuple(margins.tolist()))
                weights = engine.gather_weights()
        on_step(number, number if stopping.exhausted else steps, values)
        if stopping.exhausted:
            break
    assert best is not None  # there is a step, and at the last it is measured
    if best.best_step < number:
        engine.load_weights(weights)
    return replace(best, steps=number, loss=values[LOSS]), weights


def _check_positions(model: Any, start: Path | str, longest: int) -> None:
    positions = getattr(model.config, "max_position_embeddings", longest)
    if longest > positions:
        raise UserError(
            f"a prompt with its answer has {longest} tokens and {start} takes {positions}; lower "
            "policy.max_prompt_tokens or policy.max_answer_tokens, or set reward.model to a model that takes more"
        )


def held_out_figures(margins: torch.Tensor, labels: Sequence[float]) -> tuple[float | None, float | None]:
    """Loss of the pairs with these margins (N,), in nats a pair, and accuracy on those whose label names an answer;
    None where there are none."""
    p, zeros = torch.tensor(labels, dtype=torch.float32), torch.zeros_like(margins)
    decided = p != 0.5
    loss = float(preference_loss(margins, zeros, p).mean()) if len(p) else None
    accuracy = float(ranks_alike(margins, zeros, p)[decided].float().mean()) if decided.any() else None
    return loss, accuracy


def margins_of(engine: TrainingEngine, pairs: Sequence[LabelledPair], max_batch_tokens: int) -> torch.Tensor:
    """r_a - r_b (N,) on the CPU, the same on every rank. Raises FloatingPointError when a score is not finite."""
    ids = [f"{pair.id}/{side}" for side in "ab" for pair in pairs]
    sequences = [(*p.prompt, *p.answer_a) for p in pairs] + [(*p.prompt, *p.answer_b) for p in pairs]
    # Under ZeRO-3 every forward is collective, so every rank measures.
    values, valid = score_sequences(engine.module, ids, sequences, max_batch_tokens=max_batch_tokens)
    if not valid.all():
        raise FloatingPointError(f"the reward model gives no finite score to {(~valid).sum()} held-out answers")
    scores_a, scores_b = np.split(values, 2)
    margins = torch.from_numpy(scores_a - scores_b).to(engine.device)
    return engine.gather(margins)[0].cpu()


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
