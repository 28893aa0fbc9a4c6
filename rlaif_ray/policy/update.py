"""One PPO iteration on one rank: from scored rollouts to updated policy and value model.

Every rank sees the whole batch, runs the models without gradient on its share of the rows, and exchanges the resulting
log-probabilities and values (a few floats a token). Advantages, their whitening and the minibatches are thereby those
of the whole batch, the same on every rank and for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlaif_ray import metrics
from rlaif_ray.config import PpoConfig
from rlaif_ray.engines.training import TrainingEngine
from rlaif_ray.microbatches import split_rows
from rlaif_ray.policy.advantages import generalized_advantages, whiten
from rlaif_ray.policy.batching import RolloutBatch, assemble, minibatches
from rlaif_ray.policy.logprobs import answer_logits, token_entropies, token_logprobs
from rlaif_ray.policy.model import state_values
from rlaif_ray.policy.ppo import (
    AnswerRewards,
    answer_rewards,
    explained_variance,
    policy_loss,
    token_rewards,
    value_loss,
)
from rlaif_ray.records import Rollouts, Scores


class NothingToLearn(RuntimeError):
    """Not one answer of an iteration was scored."""


@dataclass(frozen=True, slots=True)
class Experience:
    """What the models say of a batch before any update, (B, A) float32; defined on answer tokens alone."""

    logprobs: Tensor
    reference_logprobs: Tensor
    entropies: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class Targets:
    """What the updates aim at, (B, A) float32. `mask` marks the actions of valid answers."""

    advantages: Tensor
    returns: Tensor
    mask: Tensor


class PpoUpdate:
    """PPO on a policy and a value model, with KL in the reward against a frozen reference."""

    def __init__(
        self,
        policy: TrainingEngine,
        value: TrainingEngine,
        reference: nn.Module,
        config: PpoConfig,
        *,
        seed: int,
        temperature: float,
        pad_id: int,
    ) -> None:
        self._policy = policy
        self._value = value
        self._reference = reference
        self._config = config
        self._seed = seed
        self._temperature = temperature
        self._pad_id = pad_id

    def step(self, iteration: int, rollouts: Sequence[Rollouts], scores: Sequence[Scores]) -> dict[str, float]:
        """All epochs over one batch; `iteration` counts from 0. Every rank gives and gets the same.

        Raises NothingToLearn when no answer is valid, and ValueError or FloatingPointError on inputs that cannot be
        trained on.
        """
        batch = assemble(rollouts, scores, self._pad_id)
        rewards = self._answer_rewards(batch)
        if not rewards.valid.any():
            raise NothingToLearn(f"iteration {iteration}: none of {len(batch)} answers has a valid score")
        experience = self._experience(batch)
        targets = self._targets(batch, rewards, experience)
        measured = self._optimise(iteration, batch, rewards, experience, targets)
        return measured | self._describe(batch, rewards, experience, targets)

    def _answer_rewards(self, batch: RolloutBatch) -> AnswerRewards:
        config = self._config
        return answer_rewards(
            torch.from_numpy(batch.scores.copy()),
            torch.from_numpy(batch.scored.copy()),
            torch.from_numpy(batch.truncated),
            clip=config.reward_clip,
            on_truncation=config.truncated,
            truncation_score=config.truncation_score,
        )

    @torch.no_grad()
    def _experience(self, batch: RolloutBatch) -> Experience:
        engine = self._policy
        rows = np.arange(len(batch))
        own = -(-len(batch) // engine.world_size)
        # One buffer for the four quantities, so that the ranks exchange them in one collective.
        found = torch.zeros(4, own, batch.sequences.answers.shape[1], device=engine.device)
        start = 0
        for micro in split_rows(rows, engine.rank, engine.world_size, self._config.micro_batch_size):
            inputs = batch.sequences.inputs(micro.rows, engine.device)
            logits = answer_logits(engine.module, inputs)
            place = found[:, start : start + len(micro.rows), : inputs.answer_width]
            place[0] = token_logprobs(logits, inputs.answer_ids, self._temperature)
            place[1] = token_logprobs(answer_logits(self._reference, inputs), inputs.answer_ids, self._temperature)
            place[2] = token_entropies(logits, self._temperature)
            place[3] = state_values(self._value.module, inputs)
            start += len(micro.rows)
        # Rank r holds rows r, r + world size, ...: interleave them again and drop the filler at the end.
        whole = torch.stack(engine.gather(found), dim=2).flatten(1, 2)[:, : len(batch)].cpu()
        mask = torch.from_numpy(batch.sequences.answer_mask)
        if not whole[:, mask].isfinite().all():
            raise FloatingPointError("a log-probability or a value of the rollouts is not finite")
        return Experience(*whole.unbind(0))

    def _targets(self, batch: RolloutBatch, rewards: AnswerRewards, experience: Experience) -> Targets:
        config = self._config
        mask = torch.from_numpy(batch.sequences.answer_mask) & rewards.valid[:, None]
        per_token = token_rewards(
            rewards.scores,
            experience.logprobs,
            experience.reference_logprobs,
            mask,
            kl_coefficient=config.kl_coefficient,
        )
        raw = generalized_advantages(per_token, experience.values, mask, gamma=config.gamma, lam=config.lam)
        return Targets(whiten(raw.advantages, mask), raw.returns, mask)

    def _optimise(
        self, iteration: int, batch: RolloutBatch, rewards: AnswerRewards, experience: Experience, targets: Targets
    ) -> dict[str, float]:
        config = self._config
        train_policy = iteration >= config.value_warmup_iterations
        valid = np.flatnonzero(rewards.valid.numpy())
        # policy loss, value loss, clipped ratios, clipped values, KL (each summed over the steps' tokens)
        totals = torch.zeros(5, dtype=torch.float64, device=self._policy.device)
        policy_norms: list[float] = []
        value_norms: list[float] = []
        trained_tokens = 0
        for epoch in range(config.epochs):
            for rows in minibatches(valid, config.minibatch_size, seed=self._seed, iteration=iteration, epoch=epoch):
                tokens = int(batch.sequences.answer_lengths[rows].sum())
                totals += tokens * self._accumulate(batch, rows, experience, targets, tokens, train_policy)
                trained_tokens += tokens
                value_norms.append(self._value.step())
                if train_policy:
                    policy_norms.append(self._policy.step())
        sums = (self._policy.sum(totals) / trained_tokens).tolist()
        measured = {
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

            values = state_values(self._value.model, inputs)
            valued = value_loss(
                values,
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
            logprobs = token_logprobs(answer_logits(self._policy.model, inputs), inputs.answer_ids, self._temperature)
            policed = policy_loss(
                logprobs,
                of_rows(experience.logprobs),
                of_rows(targets.advantages),
                mask,
                clip=self._config.clip,
                tokens=tokens,
            )
            self._policy.backward(policed.loss, last=number == len(micros))
            measures[0] += policed.loss.detach()
            measures[2] += policed.clipped / tokens
            measures[4] += policed.kl / tokens
        return measures

    def _describe(
        self, batch: RolloutBatch, rewards: AnswerRewards, experience: Experience, targets: Targets
    ) -> dict[str, float]:
        mask = targets.mask
        kl = torch.where(mask, experience.logprobs - experience.reference_logprobs, 0.0).sum(1)[rewards.valid]
        gaps = (experience.logprobs - torch.from_numpy(batch.rollout_logprobs))[
            torch.from_numpy(batch.sequences.answer_mask)
        ]
        raw = batch.scores[batch.scored].astype(np.float64)
        return {
            metrics.REWARD_MEAN: float(raw.mean()),
            metrics.REWARD_STD: float(raw.std()),
            metrics.KL: float(kl.mean()),
            metrics.KL_COEFFICIENT: self._config.kl_coefficient,
            metrics.ENTROPY: float(experience.entropies[mask].mean()),
            metrics.EXPLAINED_VARIANCE: explained_variance(experience.values, targets.returns, mask),
            metrics.ANSWER_LENGTH: float(batch.sequences.answer_lengths.mean()),
            metrics.VALID_FRACTION: float(batch.scored.mean()),
            metrics.TRUNCATED_FRACTION: float(batch.truncated.mean()),
            metrics.LOGPROB_GAP: float(gaps.abs().mean()),
            metrics.LOGPROB_GAP_MAX: float(gaps.abs().max()),
        }
