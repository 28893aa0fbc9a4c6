"""The models of a learner's rank, as the config says: the policy and its value model in training, and the reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlaif_ray.config import RunConfig
from rlaif_ray.engines.deepspeed_engine import DeepSpeedEngine
from rlaif_ray.engines.partitioning import loading_for, partitioned_for_inference, whole_one_by_one
from rlaif_ray.engines.training import OptimizerSettings
from rlaif_ray.policy.experience import Reference
from rlaif_ray.policy.lora import add_adapters, without_adapters
from rlaif_ray.policy.model import (
    PolicyWithValue,
    load_policy,
    load_tokenizer,
    new_value_head,
    value_model_from_policy,
    value_model_from_reward,
)
from rlaif_ray.policy.movement import MovementWatch, snapshot, watch_engines
from rlaif_ray.policy.packing import PackedInputs, answer_logits
from rlaif_ray.policy.recomputation import recompute_activations
from rlaif_ray.policy.served import served_model
from rlaif_ray.records import LearnerModels
from rlaif_ray.reward.initial import same_vocabulary
from rlaif_ray.reward.model import RewardNormalisation, members


@dataclass(frozen=True, slots=True)
class TrainedModels:
    """On one rank. `value` is None where the algorithm has no value model, and where it is a head on the policy."""

    policy: DeepSpeedEngine
    value: DeepSpeedEngine | None
    reference: Reference
    reference_model: nn.Module | None  # None where the reference is the policy without its adapters
    tokenizer: Any

    @property
    def engines(self) -> dict[str, DeepSpeedEngine]:
        return {"policy": self.policy} | ({} if self.value is None else {"value": self.value})

    def watch(self) -> MovementWatch:
        if (reference := self.reference_model) is None:
            return watch_engines(self.engines)
        return watch_engines(self.engines, {"reference": lambda: snapshot(reference, whole_one_by_one(reference))})


def load_trained_models(config: RunConfig, models: LearnerModels) -> TrainedModels:
    """Every rank of the joined group must call it. Raises UserError for what the config asks of a model in vain.

    Under ZeRO-3 no rank ever holds a whole model.
    """
    return _Loading(config, models).trained_models()


class _Loading:
    def __init__(self, config: RunConfig, models: LearnerModels) -> None:
        self._config = config
        self._models = models
        self._tokenizer = load_tokenizer(models.policy, trust_remote_code=config.policy.trust_remote_code)

    def trained_models(self) -> TrainedModels:
        config, ppo = self._config, self._config.ppo
        partitioned = config.learner.zero_stage == 3
        with loading_for(config.learner.zero_stage, config.policy.dtype, config.learner.offload):
            policy = self._policy()
            on_trunk = isinstance(policy, PolicyWithValue)
            value = self._value_model() if config.has_value_model and not on_trunk else None
            adapters_off = config.policy.lora is not None and self._models.reference == self._models.policy
            reference = None if adapters_off else self._causal_lm(self._models.reference).requires_grad_(False)
        engine = self._engine(policy, ppo.learning_rate)
        if reference is not None and partitioned:
            reference = partitioned_for_inference(reference, config.policy.dtype, config.learner.offload)
        elif reference is not None:
            reference = reference.to(engine.device)
        return TrainedModels(
            policy=engine,
            value=None if value is None else self._engine(value, ppo.value_learning_rate),
            reference=_of_the_policy(engine) if reference is None else _of(reference),
            reference_model=reference,
            tokenizer=self._tokenizer,
        )

    def _policy(self) -> nn.Module:
        config = self._config
        model = self._causal_lm(self._models.policy)
        if config.policy.lora is not None:
            add_adapters(model, config.policy.lora, seed=config.seed)
        if config.has_value_model and config.ppo.value_model == "trunk":
            return PolicyWithValue(model, new_value_head(model, config.policy.dtype)).eval()
        policy: nn.Module = model
        return policy

    def _value_model(self) -> nn.Module:
        """The reward model where it is wanted and reads the policy's tokens, else the policy's body under a new
        head."""
        policy = self._config.policy
        if self._config.ppo.value_model == "reward" and self._models.reward is not None:
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

    def _causal_lm(self, directory: Path) -> Any:
        policy = self._config.policy
        return load_policy(directory, dtype=policy.dtype, trust_remote_code=policy.trust_remote_code)

    def _engine(self, model: nn.Module, learning_rate: float) -> DeepSpeedEngine:
        learner = self._config.learner
        if learner.gradient_checkpointing:
            recompute_activations(model)
        settings = OptimizerSettings(
            learning_rate=learning_rate,
            max_grad_norm=learner.max_grad_norm,
            zero_stage=learner.zero_stage,
            dtype=self._config.policy.dtype,
            epsilon=self._config.ppo.adam_epsilon,
            offload=learner.offload,
        )
        return DeepSpeedEngine(model, settings)


def _of(reference: nn.Module) -> Reference:
    return torch.no_grad()(lambda inputs: answer_logits(reference, inputs))


def _of_the_policy(engine: DeepSpeedEngine) -> Reference:
    model = served_model(engine.module)

    @torch.no_grad()
    def logits(inputs: PackedInputs) -> Tensor:
        with without_adapters(model):
            return answer_logits(model, inputs)

    return logits
