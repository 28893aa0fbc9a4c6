"""Direct preference optimisation: the policy is trained on pairs of answers, with no reward model and no rollouts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlaif_ray.config import DpoConfig, RunConfig, UserError
from rlaif_ray.engines.partitioning import loading_for
from rlaif_ray.engines.training import StartEngine, TrainingEngine
from rlaif_ray.fitting import OnStep, bucketed_batches, longest_first, optimizer_settings, optimizer_steps
from rlaif_ray.metrics import (
    ACCURACY,
    GRADIENT_NORM,
    HELD_OUT_ACCURACY,
    HELD_OUT_LOSS,
    HELD_OUT_MARGIN,
    LEARNING_RATE,
    LOSS,
    MARGIN,
)
from rlaif_ray.microbatches import split_rows
from rlaif_ray.policy.dpo import DpoObjective
from rlaif_ray.policy.likelihood import answer_logprobs
from rlaif_ray.policy.lora import add_adapters
from rlaif_ray.policy.model import load_policy, load_tokenizer, save_model
from rlaif_ray.policy.packing import Ragged
from rlaif_ray.policy.served import served_weights
from rlaif_ray.records import LabelledPair
from rlaif_ray.rundir import directory_written_atomically


@dataclass(frozen=True, slots=True)
class DpoResult:
    """`loss` is the last step's, a pair; what is measured on held-out pairs is None where there are none."""

    steps: int
    loss: float
    held_out_loss: float | None
    held_out_accuracy: float | None


@dataclass(frozen=True, slots=True)
class AnswerPairs:
    """N pairs of answers as token ids: rows 2i and 2i + 1 of the sequences are answers a and b of pair i."""

    sequences: Ragged
    p: Tensor  # (N,) float32: the probability that a is the better one
    weights: Tensor  # (N,) float32: what the label counts for

    @classmethod
    def of(cls, pairs: Sequence[LabelledPair]) -> AnswerPairs:
        sides = [(pair.prompt, answer) for pair in pairs for answer in (pair.answer_a, pair.answer_b)]
        return cls(
            Ragged.of([np.array(prompt) for prompt, _ in sides], [np.array(answer) for _, answer in sides]),
            torch.tensor([pair.p for pair in pairs], dtype=torch.float32),
            torch.tensor([pair.weight for pair in pairs], dtype=torch.float32),
        )

    def __len__(self) -> int:
        return len(self.p)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N, 2): of the longer and the shorter sequence of each pair."""
        return -np.sort(-self.sequences.lengths.reshape(-1, 2), axis=1)

    @property
    def answer_lengths(self) -> Tensor:
        """(N, 2): tokens of answers a and b."""
        return torch.from_numpy(self.sequences.answer_lengths.reshape(-1, 2))

    def logprobs(self, model: nn.Module, rows: NDArray[np.int64], device: torch.device) -> Tensor:
        """log pi (M, 2) of both answers of these pairs, in one forward."""
        sides = (2 * rows[:, None] + np.arange(2)).ravel()
        return answer_logprobs(model, self.sequences, sides, device).reshape(-1, 2)


def fit_dpo(
    config: RunConfig,
    train: Sequence[LabelledPair],
    held_out: Sequence[LabelledPair],
    start: Path,
    directory: Path,
    start_engine: StartEngine,
    on_step: OnStep,
) -> DpoResult:
    """Train the policy in `start`, which is the reference too, as one of the engine's ranks; rank 0 fills `directory`,
    whole or not at all. Adapters are merged in.

    A pair of equal answers says nothing, and is left out. Raises UserError when none is left to train on.
    """
    kept = [pair for pair in train if pair.answer_a != pair.answer_b]
    if not kept:
        raise UserError("no pair has a usable label, so there is nothing to train the policy on")
    policy = config.policy
    with loading_for(config.dpo.zero_stage, policy.dtype):
        model = load_policy(start, dtype=policy.dtype, trust_remote_code=policy.trust_remote_code)
        if policy.lora is not None:
            add_adapters(model, policy.lora, seed=config.seed)
    steps = optimizer_steps(config.dpo, len(kept))
    engine = start_engine(model, optimizer_settings(config.dpo, policy.dtype, steps))
    result = train_on_pairs(
        engine,
        AnswerPairs.of(kept),
        AnswerPairs.of(held_out) if held_out else None,
        config.dpo,
        steps,
        seed=config.seed,
        on_step=on_step,
    )
    weights = served_weights(engine.module, config.learner.weight_bucket_mib * 2**20, kept=engine.rank == 0)
    if engine.rank == 0:
        tokenizer = load_tokenizer(start, trust_remote_code=policy.trust_remote_code)
        with directory_written_atomically(directory) as unfinished:
            save_model(engine.module, weights, tokenizer, unfinished)
    return result


def train_on_pairs(
    engine: TrainingEngine,
    pairs: AnswerPairs,
    held_out: AnswerPairs | None,
    config: DpoConfig,
    steps: int,
    *,
    seed: int,
    on_step: OnStep,
) -> DpoResult:
    """Take `steps` optimizer steps from the reference, which the engine's model is before the first.

    A step's loss is the mean over its pairs. Held-out pairs are measured at the end of every pass and of training.
    """
    objective = DpoObjective.of(config)
    reference = logprobs_of(engine, pairs, config.micro_batch_size)
    measured = None if held_out is None else _HeldOut.before_training(engine, held_out, objective, config)
    p, weights, answer_lengths = (part.to(engine.device) for part in (pairs.p, pairs.weights, pairs.answer_lengths))
    lengths, steps_of_a_pass = pairs.lengths, math.ceil(len(pairs) / config.batch_size)
    loss, figures = math.nan, {}
    for number, rows in enumerate(bucketed_batches(lengths, config.batch_size, steps, seed), start=1):
        micros = split_rows(longest_first(rows, lengths[:, 0]), engine.rank, engine.world_size, config.micro_batch_size)
        sums = torch.zeros(3, device=engine.device)
        for micro in micros:
            own = torch.from_numpy(micro.rows).to(engine.device)
            real = torch.from_numpy(micro.real).to(engine.device)
            log_ratios = pairs.logprobs(engine.model, micro.rows, engine.device) - reference[own]
            losses = objective(log_ratios, answer_lengths[own], p[own], weights[own])
            part = torch.where(real, losses, 0.0).sum() / len(rows)
            engine.backward(part, last=micro is micros[-1])
            leads = objective.leads(log_ratios.detach(), p[own])[real]
            sums += torch.stack([part.detach(), (leads > 0).sum() / len(rows), leads.sum() / len(rows)])
        rate = engine.learning_rate
        norm = engine.step()
        loss, accuracy, margin = engine.sum(sums).tolist()
        values = {LOSS: loss, ACCURACY: accuracy, MARGIN: margin, LEARNING_RATE: rate, GRADIENT_NORM: norm}
        if measured is not None and (number % steps_of_a_pass == 0 or number == steps):
            figures = measured.figures(engine)
            values |= figures
        on_step(number, steps, values)
    return DpoResult(steps, loss, figures.get(HELD_OUT_LOSS), figures.get(HELD_OUT_ACCURACY))


@torch.no_grad()
def logprobs_of(engine: TrainingEngine, pairs: AnswerPairs, micro_batch_size: int) -> Tensor:
    """log pi (N, 2) of the answers of all pairs, under the engine's model as it is: each rank computes its share, and
    all have the whole."""
    table = torch.zeros(len(pairs), 2, device=engine.device)
    rows = longest_first(np.arange(len(pairs)), pairs.lengths[:, 0])
    for micro in split_rows(rows, engine.rank, engine.world_size, micro_batch_size):
        logprobs = pairs.logprobs(engine.module, micro.rows, engine.device)
        table[micro.rows[micro.real]] = logprobs[torch.from_numpy(micro.real).to(engine.device)]
    return engine.sum(table)


@dataclass(frozen=True, slots=True)
class _HeldOut:
    """Pairs that measure and do not train, with what the reference says of them."""

    pairs: AnswerPairs
    reference: Tensor  # (N, 2)
    objective: DpoObjective
    micro_batch_size: int

    @classmethod
    def before_training(
        cls, engine: TrainingEngine, pairs: AnswerPairs, objective: DpoObjective, config: DpoConfig
    ) -> _HeldOut:
        return cls(pairs, logprobs_of(engine, pairs, config.micro_batch_size), objective, config.micro_batch_size)

    def figures(self, engine: TrainingEngine) -> dict[str, float]:
        """The mean loss, and, where a label prefers an answer, how often and by how much the policy does too."""
        log_ratios = (logprobs_of(engine, self.pairs, self.micro_batch_size) - self.reference).cpu()
        p = self.pairs.p
        losses = self.objective(log_ratios, self.pairs.answer_lengths, p, self.pairs.weights)
        figures = {HELD_OUT_LOSS: float(losses.mean())}
        leads = self.objective.leads(log_ratios, p)[p != 0.5]
        if len(leads):
            figures |= {HELD_OUT_ACCURACY: float((leads > 0).float().mean()), HELD_OUT_MARGIN: float(leads.mean())}
        return figures
