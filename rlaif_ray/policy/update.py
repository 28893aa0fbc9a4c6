"""One iteration on one rank: from scored rollouts to an updated policy, and value model where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import torch

from rlaif_ray import metrics
from rlaif_ray.config import RunConfig
from rlaif_ray.engines.training import TrainingEngine
from rlaif_ray.policy.a2c import A2c
from rlaif_ray.policy.algorithm import AlgorithmOf, Experience
from rlaif_ray.policy.batching import RolloutBatch, assemble
from rlaif_ray.policy.experience import Reference, opinions
from rlaif_ray.policy.grpo import Grpo
from rlaif_ray.policy.kl import adapted_coefficient
from rlaif_ray.policy.losses import importance_weights
from rlaif_ray.policy.measures import described
from rlaif_ray.policy.model import PolicyWithValue
from rlaif_ray.policy.optimising import Lesson, Optimisation
from rlaif_ray.policy.ppo import Ppo
from rlaif_ray.policy.reinforce import Reinforce
from rlaif_ray.policy.rewards import answer_rewards
from rlaif_ray.policy.rloo import Rloo
from rlaif_ray.policy.schedule import rate_share
from rlaif_ray.records import Rollouts, Scores

ALGORITHMS: Final[Mapping[str, AlgorithmOf]] = MappingProxyType(
    {"ppo": Ppo, "reinforce": Reinforce, "a2c": A2c, "rloo": Rloo, "grpo": Grpo}
)


class NothingToLearn(RuntimeError):
    """Not one answer of an iteration can be learnt from."""


class PolicyUpdate:
    """An algorithm at work on a policy, with KL from a frozen reference, and on a value model where it has one.

    `value` is None where the algorithm has no value model, and where the policy's module is a `PolicyWithValue`.
    `kl_coefficient` is what the next iteration starts with, and belongs in a checkpoint.
    """

    def __init__(
        self, policy: TrainingEngine, value: TrainingEngine | None, reference: Reference, config: RunConfig
    ) -> None:
        self._shares_a_trunk = isinstance(policy.module, PolicyWithValue)
        if config.has_value_model != (value is not None or self._shares_a_trunk):
            raise ValueError("a value model is for algorithms that have one, and for no others")
        self._algorithm = ALGORITHMS[config.policy.algorithm](config.ppo)
        self._policy = policy
        self._value = value
        self._reference = reference
        self._run = config
        self._config = config.ppo
        self.kl_coefficient = config.ppo.kl_coefficient

    def step(self, iteration: int, rollouts: Sequence[Rollouts], scores: Sequence[Scores]) -> dict[str, float]:
        """All epochs over one batch; `iteration` counts from 0. Every rank gives and gets the same.

        Where no answer is to be preferred to another nothing is updated. Raises NothingToLearn when no answer is valid,
        or none that is to be compared with siblings has a valid one, and ValueError or FloatingPointError on inputs
        that cannot be trained on.
        """
        config = self._config
        batch = assemble(rollouts, scores, staleness=config.max_staleness)
        share = rate_share(
            config.learning_rate_schedule, iteration, total=config.iterations, warmup=config.learning_rate_warmup
        )
        for engine in self._engines():
            engine.scale_learning_rate(share)
        experience = self._experience(iteration, batch)
        targets = self._algorithm.targets(experience)
        weights = importance_weights(
            experience.logprobs, experience.rollout_logprobs, experience.mask, cap=config.importance_cap
        )
        measured = {metrics.KL_COEFFICIENT: self.kl_coefficient, metrics.LEARNING_RATE: config.learning_rate * share}
        if targets.mask.any():
            lesson = Lesson(batch, experience, targets, weights, self.kl_coefficient)
            optimisation = Optimisation(self._algorithm, self._policy, self._value, lesson, self._run, iteration)
            measured |= optimisation.run()
        elif targets.measures.get(metrics.LONE_GROUP_FRACTION) == 1:
            raise NothingToLearn(f"iteration {iteration}: no prompt has two answers with a valid score")
        measured |= {metrics.SKIPPED_STEP: float(not targets.mask.any()), **targets.measures}
        measured |= described(batch, experience, targets, weights, self._run)
        if config.kl_target is not None:
            self.kl_coefficient = adapted_coefficient(
                self.kl_coefficient,
                kl=measured[metrics.KL],
                target=config.kl_target,
                answers=int(experience.valid.sum()),
                horizon=config.kl_horizon,
            )
        return measured

    def _engines(self) -> list[TrainingEngine]:
        return [self._policy] if self._value is None else [self._policy, self._value]

    def _experience(self, iteration: int, batch: RolloutBatch) -> Experience:
        config = self._config
        truncated = torch.from_numpy(batch.truncated)
        rewards = answer_rewards(
            torch.from_numpy(batch.scores.copy()),
            torch.from_numpy(batch.scored.copy()),
            truncated,
            clip=config.reward_clip,
            on_truncation=config.truncated,
            truncation_score=config.truncation_score,
        )
        if not rewards.valid.any():
            raise NothingToLearn(f"iteration {iteration}: none of {len(batch)} answers has a valid score")
        said = opinions(
            batch.sequences,
            self._policy,
            self._value,
            self._reference,
            recompute=self._run.recomputes_old_logprobs,
            temperature=self._run.rollout.temperature,
            max_tokens=config.micro_batch_tokens,
        )
        rollout_logprobs = torch.from_numpy(batch.rollout_logprobs)
        bootstrap = None
        if config.truncated == "bootstrap" and said.end_values is not None:
            bootstrap = torch.where(truncated, said.end_values, 0.0)
        return Experience(
            scores=rewards.scores,
            valid=rewards.valid,
            groups=torch.from_numpy(batch.groups),
            mask=torch.from_numpy(batch.sequences.answer_mask) & rewards.valid[:, None],
            logprobs=rollout_logprobs if said.logprobs is None else said.logprobs,
            rollout_logprobs=rollout_logprobs,
            reference_logprobs=said.reference_logprobs,
            reward_kl=self.kl_coefficient if self._run.kl == "reward" else 0.0,
            values=said.values,
            bootstrap=bootstrap,
        )
