"""A rank of the learner: its models under DeepSpeed, and the checks that training does what it should.

It is handed references and fetches the batch from the object store itself; weights leave rank 0 the same way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from rlaif_ray.checkpoints import Checkpoints
from rlaif_ray.config import RunConfig
from rlaif_ray.metrics import ADVANTAGE_SIZE
from rlaif_ray.records import LearnerModels, Weights, WeightVersion
from rlaif_ray.rundir import directory_written_atomically
from rlaif_ray.weights import fingerprint_of, to_numpy

if TYPE_CHECKING:
    from torch import nn

    from rlaif_ray.engines.deepspeed_engine import DeepSpeedEngine

_CANARY_TOKENS = 16
_STATE_FILE = "learner.json"


class UnexpectedMovement(RuntimeError):
    """After the first updates a trainable tensor is where it was, or a frozen one is not."""


class LearnerRank:
    """One rank: the policy under DeepSpeed, the frozen reference, and the value model where the algorithm has one."""

    def __init__(self, config: RunConfig, models: LearnerModels, checkpoints: Path, rank: int) -> None:
        self._config = config
        self._models = models
        self._checkpoints = Checkpoints(checkpoints)
        self._rank = rank
        self._version = 0
        self._steps = 0
        self._watched: set[str] = set()

    def open(self) -> tuple[str, int]:
        """Where the other ranks find this one."""
        from rlaif_ray.engines.deepspeed_engine import Rendezvous

        self._rendezvous = Rendezvous(ray.util.get_node_ip_address(), self._config.learner.ranks)
        return self._rendezvous.address

    def start(self, address: tuple[str, int]) -> None:
        """Join the group and load the models. Every rank must be asked at once."""
        from rlaif_ray.engines.deepspeed_engine import DeepSpeedEngine, join_group
        from rlaif_ray.engines.training import OptimizerSettings
        from rlaif_ray.policy.model import load_policy, load_tokenizer
        from rlaif_ray.policy.update import ALGORITHMS, PolicyUpdate

        config = self._config
        policy, ppo = config.policy, config.ppo
        join_group(self._rank, config.learner.ranks, self._rendezvous if self._rank == 0 else address)
        self._tokenizer = load_tokenizer(self._models.policy, trust_remote_code=policy.trust_remote_code)

        def engine(model: nn.Module, learning_rate: float) -> DeepSpeedEngine:
            settings = OptimizerSettings(
                learning_rate=learning_rate,
                max_grad_norm=config.learner.max_grad_norm,
                zero_stage=config.learner.zero_stage,
                dtype=policy.dtype,
                epsilon=ppo.adam_epsilon,
            )
            return DeepSpeedEngine(model, settings)

        def causal_lm(directory: Path) -> Any:
            return load_policy(directory, dtype=policy.dtype, trust_remote_code=policy.trust_remote_code)

        algorithm = ALGORITHMS[policy.algorithm](ppo)
        self._policy = engine(causal_lm(self._models.policy), ppo.learning_rate)
        self._value = engine(self._value_model(), ppo.value_learning_rate) if algorithm.has_value_model else None
        self._reference = causal_lm(self._models.reference).requires_grad_(False).to(self._policy.device)
        self._update = PolicyUpdate(
            algorithm,
            self._policy,
            self._value,
            self._reference,
            ppo,
            seed=config.seed,
            temperature=config.rollout.temperature,
            pad_id=self._tokenizer.pad_token_id,
        )

    def step(self, iteration: int, rollouts: Sequence[Any], scores: Sequence[Any]) -> dict[str, float]:
        """One iteration on the shards behind these references. Every rank must be asked, with the same ones."""
        before = self._unwatched(iteration)
        metrics = self._update.step(iteration, ray.get(list(rollouts)), ray.get(list(scores)))
        self._check_movement(before, metrics)
        self._steps += 1
        return metrics

    def publish(self) -> WeightVersion | None:
        """The weights in the object store, from rank 0; None from the others. Every rank must be asked."""
        self._version += 1
        weights = self._policy.gather_weights()
        canary = self._canary()
        logprobs = self._canary_logprobs(canary)
        if self._rank != 0:
            return None
        return WeightVersion(
            number=self._version,
            fingerprint=fingerprint_of(weights),
            weights=ray.put(weights),
            canary_tokens=canary,
            canary_logprobs=logprobs,
        )

    def begin_checkpoint(self, iteration: int) -> None:
        self._checkpoints.begin(iteration)

    def save(self, iteration: int) -> None:
        """This rank's part of a checkpoint that has begun. Every rank must be asked."""
        directory = self._checkpoints.unfinished(iteration)
        for name, engine in self._engines().items():
            engine.save(directory / name)
        if self._rank == 0:
            state = {"iteration": iteration, "version": self._version}
            (directory / _STATE_FILE).write_text(json.dumps(state) + "\n")

    def finish_checkpoint(self, iteration: int) -> None:
        self._checkpoints.finish(iteration)

    def resume(self) -> int | None:
        """Restore the newest whole checkpoint, after its digests have been checked. Every rank must be asked."""
        iterations = self._checkpoints.iterations()
        if not iterations:
            return None
        directory = self._checkpoints.verified(iterations[-1])
        for name, engine in self._engines().items():
            engine.load(directory / name)
        self._version = json.loads((directory / _STATE_FILE).read_text())["version"]
        return iterations[-1]

    def save_policy(self, directory: Path) -> None:
        """Rank 0 writes the policy, whole or not at all. Every rank must be asked."""
        from rlaif_ray.policy.model import save_model

        weights = self._policy.gather_weights()
        if self._rank == 0:
            with directory_written_atomically(directory) as unfinished:
                save_model(self._policy.module, weights, self._tokenizer, unfinished)

    def _canary(self) -> tuple[int, ...]:
        """Ordinary tokens of the vocabulary, drawn by the run's seed."""
        special = set(self._tokenizer.all_special_ids)
        ordinary = [token for token in range(len(self._tokenizer)) if token not in special]
        drawn = np.random.default_rng(self._config.seed).choice(ordinary, _CANARY_TOKENS)
        return tuple(drawn.tolist())

    def _canary_logprobs(self, canary: tuple[int, ...]) -> tuple[float, ...]:
        import torch

        from rlaif_ray.policy.logprobs import token_logprobs

        tokens = torch.tensor([canary], device=self._policy.device)
        with torch.no_grad():
            logits = self._policy.module(input_ids=tokens, use_cache=False).logits
        return tuple(token_logprobs(logits[:, :-1], tokens[:, 1:], temperature=1.0)[0].tolist())

    def _value_model(self) -> nn.Module:
        """The reward model where it reads the policy's tokens, else the policy's body under a head that says 0."""
        from rlaif_ray.policy.model import load_tokenizer, value_model_from_policy, value_model_from_reward
        from rlaif_ray.reward.initial import same_vocabulary
        from rlaif_ray.reward.model import RewardNormalisation, members

        policy = self._config.policy
        if self._models.reward is not None:
            directory = members(self._models.reward)[0]
            tokenizer = load_tokenizer(directory, trust_remote_code=policy.trust_remote_code)
            if same_vocabulary(tokenizer, self._tokenizer):
                return value_model_from_reward(
                    directory,
                    RewardNormalisation.load(directory),
                    dtype=policy.dtype,
                    trust_remote_code=policy.trust_remote_code,
                )
        return value_model_from_policy(
            self._models.policy, dtype=policy.dtype, trust_remote_code=policy.trust_remote_code
        )

    def _engines(self) -> dict[str, DeepSpeedEngine]:
        """What is trained, by the names of its checkpoints."""
        return {"policy": self._policy} | ({} if self._value is None else {"value": self._value})

    def _unwatched(self, iteration: int) -> dict[str, Weights]:
        """The weights of the models that are about to be trained for the first time by this process."""
        training = self._engines()
        if self._value is not None and iteration < self._config.ppo.value_warmup_iterations:
            del training["policy"]
        if not self._steps:
            # Through a head of zeros no gradient reaches the body in the first update.
            training.pop("value", None)
        before = {name: engine.master_weights() for name, engine in training.items() if name not in self._watched}
        if before:
            before["reference"] = self._reference_weights()
        return before

    def _check_movement(self, before: Mapping[str, Weights], measured: Mapping[str, float]) -> None:
        for model, engine in self._engines().items():
            # Where every group is tied there is nothing to move by.
            if model in before and (model == "value" or measured[ADVANTAGE_SIZE] > 0):
                after = engine.master_weights()
                for name, tensor in before[model].items():
                    if np.array_equal(tensor, after[name]):
                        raise UnexpectedMovement(f"the {model}'s {name} is trainable, but updates did not move it")
                self._watched.add(model)
        if "reference" in before:
            after = self._reference_weights()
            for name, tensor in before["reference"].items():
                if not np.array_equal(tensor, after[name]):
                    raise UnexpectedMovement(f"the reference's {name} is frozen, but an update moved it")

    def _reference_weights(self) -> Weights:
        return {name: to_numpy(parameter) for name, parameter in self._reference.named_parameters()}
