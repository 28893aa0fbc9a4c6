"""The reward pool: actors that hold the reward model. `RewardPool` is the loop's `RewardStage`.

A model is read once, where the driver runs, and reaches every node through the object store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.call_pool import cause_of
from actors.placement import ANYWHERE, Reserved
from actors.spawn import spawn
from rlaif_ray.config import RunConfig
from rlaif_ray.records import Prompt, Rollouts, Scores
from rlaif_ray.stages import Shards

if TYPE_CHECKING:
    from rlaif_ray.reward.package import ModelPackage


@dataclass(frozen=True, slots=True)
class _References:
    """What reward actors are made of, by reference: it reaches a node once, when an actor there asks for it."""

    model: Any  # a ModelPackage
    policy: Any  # a ModelPackage: the policy's tokenizer
    prompts: Any  # a mapping of ids to prompts


class RewardWorker:
    """One copy of the reward model, or of all models of an ensemble. Its scores of a shard depend on nothing else, so a
    call may be repeated. Each call says what the worker is made of: one that Ray has restarted has nothing else."""

    def __init__(self, config: RunConfig) -> None:
        self._policy = config.policy
        self._config = config.reward
        self._is_open = False

    def open(self, references: _References) -> None:
        """Load the model, once."""
        if self._is_open:
            return
        import torch

        from rlaif_ray.policy.model import load_tokenizer
        from rlaif_ray.reward.encoding import AnswerEncoder
        from rlaif_ray.reward.ensemble import RewardEnsemble
        from rlaif_ray.reward.initial import same_vocabulary
        from rlaif_ray.reward.package import unpacked

        trusted = self._policy.trust_remote_code
        model, policy = ray.get([references.model, references.policy])
        with unpacked(model) as directory, unpacked(policy) as policy_directory:
            self._ensemble = RewardEnsemble.load(
                directory,
                dtype=self._policy.dtype,
                trust_remote_code=trusted,
                device="cuda" if torch.cuda.is_available() else "cpu",
            )
            self._encoder = AnswerEncoder.load(directory, trust_remote_code=trusted)
            self._policy_tokenizer = load_tokenizer(policy_directory, trust_remote_code=trusted)
        self._prompts: Mapping[str, Prompt] | None = None
        if not same_vocabulary(self._encoder.tokenizer, self._policy_tokenizer):
            self._prompts = ray.get(references.prompts)
        self._is_open = True

    def member_scores(self, references: _References, rollouts: Rollouts) -> NDArray[np.float32]:
        """Each member's normalised score (B, k); NaN where it gives none."""
        from rlaif_ray.reward.ensemble import normalised
        from rlaif_ray.reward.scoring import rollout_sequences

        self.open(references)
        sequences = (
            rollout_sequences(rollouts)
            if self._prompts is None
            else self._encoder.encode_rollouts(rollouts, self._policy_tokenizer, self._prompts)
        )
        raw = self._ensemble.raw_scores(rollouts.sample_ids, sequences, max_batch_tokens=self._config.max_batch_tokens)
        return normalised(raw, self._ensemble.normalisations)

    def score(self, references: _References, rollouts: Rollouts) -> Scores:
        from rlaif_ray.reward.ensemble import ensemble_scores

        return ensemble_scores(
            rollouts.sample_ids,
            self.member_scores(references, rollouts),
            disagreement_penalty=self._config.disagreement_penalty,
        )


class RewardPool:
    """Handles of the reward actors. Shards go round them; Ray restarts a lost actor and repeats its calls."""

    def __init__(
        self,
        directory: Path,
        config: RunConfig,
        policy_directory: Path,
        prompts: Sequence[Prompt],
        reserved: Reserved = ANYWHERE,
    ) -> None:
        """`prompts` hold those of all rollouts to come, and `policy_directory` the tokenizer of their answers: where
        the reward model has another vocabulary, it reads the text."""
        self._reserved = reserved
        self._package = package_of(directory)
        policy = _on_this_node(_pack_tokenizer).remote(policy_directory)
        by_id = ray.put({prompt.id: prompt for prompt in prompts})
        self._references = _References(self._package[0], policy, by_id)
        self._workers: list[Any] = [
            spawn(
                RewardWorker,
                f"reward-{index}",
                config.reward.actors,
                args=(config,),
                restarts=True,
                slot=reserved.slot(index),
            )
            for index in range(config.reward.actors.count)
        ]

    async def ready(self) -> None:
        """Wait until every actor has loaded the model. Raises UserError where there is none."""
        await checked(*self._package)
        await asyncio.gather(*(worker.open.remote(self._references) for worker in self._workers))

    def score(self, rollouts: Shards[Rollouts]) -> Shards[Scores]:
        return self._on_each("score", rollouts)

    def member_scores(self, rollouts: Shards[Rollouts]) -> Shards[NDArray[np.float32]]:
        """Normalised scores (B, k) by each model of the ensemble; NaN where there is none."""
        return self._on_each("member_scores", rollouts)

    def close(self) -> None:
        for worker in self._workers:
            ray.kill(worker)
        self._reserved.release()

    def _on_each(self, method: str, rollouts: Shards[Rollouts]) -> Shards[Any]:
        return tuple(
            getattr(self._workers[index % len(self._workers)], method).remote(self._references, shard)
            for index, shard in enumerate(rollouts)
        )


def package_of(directory: Path) -> tuple[Any, Any]:
    """References to a reward model as a package, and to the same without its weights. `checked` says whether it is
    one."""
    whole, light = _on_this_node(_pack_reward_model, results=2).remote(directory)
    return whole, light


async def checked(whole: Any, light: Any) -> ModelPackage:
    """The package without its weights. Raises UserError where the directory held no reward model."""
    try:
        package: ModelPackage = await light
    except RayTaskError as error:
        await asyncio.gather(whole, return_exceptions=True)  # Ray would report it as an error that nobody saw
        raise cause_of(error) from None
    return package


def _on_this_node(function: Callable[..., Any], *, results: int = 1) -> Any:
    """A remote function that runs where its caller does, and sees the same disk."""
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(function).options(num_cpus=0, num_returns=results, scheduling_strategy=node)


def _pack_reward_model(directory: Path) -> tuple[ModelPackage, ModelPackage]:
    from rlaif_ray.reward.package import pack_reward_model

    package = pack_reward_model(directory)
    return package, package.without_weights()


def _pack_tokenizer(directory: Path) -> ModelPackage:
    from rlaif_ray.reward.package import pack_tokenizer

    return pack_tokenizer(directory)
