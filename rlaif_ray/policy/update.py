"""One iteration on one rank: from scored rollouts to an updated policy, and value model where there is one.

Every rank sees the whole batch, runs the models without gradient on its share of the rows, and exchanges the resulting
log-probabilities and values (a few floats a token). Advantages, statistics of groups and the minibatches are thereby
those of the whole batch, the same on every rank and for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlaif_ray import metrics
from rlaif_ray.config import PpoConfig
from rlaif_ray.engines.training import TrainingEngine
from rlaif_ray.microbatches import split_rows
from rlaif_ray.policy.algorithm import Algorithm, Experience, Targets
from rlaif_ray.policy.batching import RolloutBatch, assemble, minibatches
from rlaif_ray.policy.grpo import Grpo
from rlaif_ray.policy.logprobs import answer_logits, token_entropies, token_logprobs
from rlaif_ray.policy.losses import value_loss
from rlaif_ray.policy.measures import described
from rlaif_ray.policy.model import state_values
from rlaif_ray.policy.ppo import Ppo
from rlaif_ray.policy.rewards import answer_rewards
from rlaif_ray.policy.rloo import Rloo
from rlaif_ray.records import Rollouts, Scores

ALGORITHMS: Final[Mapping[str, Callable[[PpoConfig], Algorithm]]] = MappingProxyType(
    {"ppo": Ppo, "rloo": Rloo, "grpo": Grpo}
)


class NothingToLearn(RuntimeError):
    """Not one answer of an iteration can be learnt from."""


class PolicyUpdate:
    """An algorithm at work on a policy, with KL from a frozen reference, and on a value model where it has one."""

    def __init__(
        self,
        algorithm: Algorithm,
        policy: TrainingEngine,
        value: TrainingEngine | None,
        reference: nn.Module,
        config: PpoConfig,
        *,
        seed: int,
        temperature: float,
        pad_id: int,
    ) -> None:
        if algorithm.has_value_model != (value is not None):
            raise ValueError("a value model is for algorithms that have one, and for no others")
        self._algorithm = algorithm
        self._policy = policy
        self._value = value
        self._reference = reference
        self._config = config
        self._seed = seed
        self._temperature = temperature
        self._pad_id = pad_id

    def step(self, iteration: int, rollouts: Sequence[Rollouts], scores: Sequence[Scores]) -> dict[str, float]:
        """All epochs over one batch; `iteration` counts from 0. Every rank gives and gets the same.

        Raises NothingToLearn when no answer is valid or, where answers are compared, none has a valid sibling, and
        ValueError or FloatingPointError on inputs that cannot be trained on.
        """
        batch = assemble(rollouts, scores, self._pad_id)
        experience = self._experience(iteration, batch)
        targets = self._algorithm.targets(experience)
        if not targets.mask.any():
            raise NothingToLearn(f"iteration {iteration}: no prompt has two answers with a valid score")
        measured = self._optimise(iteration, batch, experience, targets)
        return {
            **measured,
            metrics.KL_COEFFICIENT: self._config.kl_coefficient,
            **targets.measures,
            **described(batch, experience, targets),
        }

    @torch.no_grad()
    def _experience(self, iteration: int, batch: RolloutBatch) -> Experience:
        config = self._config
        rewards = answer_rewards(
            torch.from_numpy(batch.scores.copy()),
            torch.from_numpy(batch.scored.copy()),
            torch.from_numpy(batch.truncated),
            clip=config.reward_clip,
            on_truncation=config.truncated,
            truncation_score=config.truncation_score,
        )
        if not rewards.valid.any():
            raise NothingToLearn(f"iteration {iteration}: none of {len(batch)} answers has a valid score")
        said = self._said(batch)
        mask = torch.from_numpy(batch.sequences.answer_mask)
        return Experience(
            scores=rewards.scores,
            valid=rewards.valid,
            groups=torch.from_numpy(batch.groups),
            mask=mask & rewards.valid[:, None],
            logprobs=said[0],
            reference_logprobs=said[1],
            entropies=said[2],
            values=said[3] if self._value is not None else None,
        )

    def _said(self, batch: RolloutBatch) -> Tensor:
        """Log-probabilities under the policy and the reference, entropies and, with a value model, values
        (3 or 4, B, A)."""
        engine = self._policy
        rows = np.arange(len(batch))
        own = -(-len(batch) // engine.world_size)
        # One buffer for all quantities, so that the ranks exchange them in one collective.
        quantities = 3 if self._value is None else 4
        found = torch.zeros(quantities, own, batch.sequences.answers.shape[1], device=engine.device)
        start = 0
        for micro in split_rows(rows, engine.rank, engine.world_size, self._config.micro_batch_size):
            inputs = batch.sequences.inputs(micro.rows, engine.device)
            logits = answer_logits(engine.module, inputs)
            place = found[:, start : start + len(micro.rows), : inputs.answer_width]
            place[0] = token_logprobs(logits, inputs.answer_ids, self._temperature)
            place[1] = token_logprobs(answer_logits(self._reference, inputs), inputs.answer_ids, self._temperature)
            place[2] = token_entropies(logits, self._temperature)
            if self._value is not None:
                place[3] = state_values(self._value.module, inputs)
            start += len(micro.rows)
        # Rank r holds rows r, r + world size, ...: interleave them again and drop the filler at the end.
        whole = torch.stack(engine.gather(found), dim=2).flatten(1, 2)[:, : len(batch)].cpu()
        mask = torch.from_numpy(batch.sequences.answer_mask)
        if not whole[:, mask].isfinite().all():
            raise FloatingPointError("a log-probability or a value of the rollouts is not finite")
        return whole

    def _optimise(
        self, iteration: int, batch: RolloutBatch, experience: Experience, targets: Targets
    ) -> dict[str, float]:
        config = self._config
        train_policy = self._value is None or iteration >= config.value_warmup_iterations
        learnt = np.flatnonzero(targets.mask.any(dim=1).numpy())
        # policy loss, value loss, clipped ratios, clipped values, KL (each summed over the steps' tokens)
        totals = torch.zeros(5, dtype=torch.float64, device=self._policy.device)
        policy_norms: list[float] = []
        value_norms: list[float] = []
        trained_tokens = 0
        for epoch in range(config.epochs):
            for rows in minibatches(learnt, config.minibatch_size, seed=self._seed, iteration=iteration, epoch=epoch):
                tokens = int(batch.sequences.answer_lengths[rows].sum())
                totals += tokens * self._accumulate(batch, rows, experience, targets, tokens, train_policy)
                trained_tokens += tokens
                if self._value is not None:
                    value_norms.append(self._value.step())
                if train_policy:
                    policy_norms.append(self._policy.step())
        sums = (self._policy.sum(totals) / trained_tokens).tolist()
        measured: dict[str, float] = {}
        if self._value is not None:
            measured |= {
                metrics.VALUE_LOSS: sums[1],
                metrics.VALUE_CLIP_FRACTION: sums[3],
                metrics.VALUE_GRADIENT_NORM: float(np.mean(value_norms)),
            }
        if train_policy:
            measured |= {
                metrics.POLICY_LOSS: sums[0],
                metrics.CLIP_FRACTION: sums[2],
                metrics.APPROXIMATE_KL: sums[4],
                metrics.POLICY_GRADIENT_NORM: float(np.mean(policy_norms)),
            }
        return measured

    def _accumulate(
        self,
        batch: RolloutBatch,
        rows: NDArray[np.int64],
        experience: Experience,
        targets: Targets,
        tokens: int,
        train_policy: bool,
    ) -> Tensor:
        """The gradients of one minibatch, and this rank's part of its five measures, per token of the minibatch."""
        device = self._policy.device
        measures = torch.zeros(5, dtype=torch.float64, device=device)
        micros = split_rows(rows, self._policy.rank, self._policy.world_size, self._config.micro_batch_size)
        for number, micro in enumerate(micros, start=1):
            inputs = batch.sequences.inputs(micro.rows, device)
            mask = targets.mask[micro.rows, : inputs.answer_width] & torch.from_numpy(micro.real)[:, None]
            mask = mask.to(device)

            def of_rows(
                tensor: Tensor, rows: NDArray[np.int64] = micro.rows, width: int = inputs.answer_width
            ) -> Tensor:
                return tensor[rows, :width].to(device)

            if self._value is not None and experience.values is not None and targets.returns is not None:
                valued = value_loss(
                    state_values(self._value.model, inputs),
                    of_rows(experience.values),
                    of_rows(targets.returns),
                    mask,
                    clip=self._config.value_clip,
                    tokens=tokens,
                )
                self._value.backward(valued.loss, last=number == len(micros))
                measures[1] += valued.loss.detach()
                measures[3] += valued.clipped / tokens
            if not train_policy:
                continue
            policed = self._algorithm.loss(
                token_logprobs(answer_logits(self._policy.model, inputs), inputs.answer_ids, self._temperature),
                of_rows(experience.logprobs),
                of_rows(experience.reference_logprobs),
                of_rows(targets.advantages),
                mask,
                tokens=tokens,
            )
            self._policy.backward(policed.loss, last=number == len(micros))
            measures[0] += policed.loss.detach()
            measures[2] += policed.clipped / tokens
            measures[4] += policed.kl / tokens
        return measures
