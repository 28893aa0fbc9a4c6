"""What an iteration's answers cost to score and to learn from, in a plain PyTorch loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlaif_ray.config import RunConfig
from rlaif_ray.policy.logprobs import token_logprobs
from rlaif_ray.policy.model import load_policy, state_values, value_model_from_reward
from rlaif_ray.policy.packing import PackedInputs, Ragged, answer_logits
from rlaif_ray.reward.model import RewardNormalisation, load_reward_model
from rlaif_ray.reward.scoring import rewards_of
from scripts.benchmarks.ppo.workload import SPECIAL_TOKENS, prompt_tokens


@dataclass(frozen=True, slots=True)
class Known:
    """Of one minibatch before the update, (A,) each."""

    logprobs: Tensor
    values: Tensor


class PlainLoop:
    """Answers of full length and random tokens, a minibatch after the other. Advantages are random too."""

    def __init__(self, directory: Path, config: RunConfig) -> None:
        dtype, ppo = config.policy.dtype, config.ppo
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._clip = ppo.clip
        self._recomputes = config.recomputes_old_logprobs
        self._policy, self._reference = (
            load_policy(directory / name, dtype=dtype, trust_remote_code=False).to(self._device)
            for name in ("policy", "reference")
        )
        rewards = directory / "reward"
        self._reward = load_reward_model(rewards, dtype=dtype, trust_remote_code=False).to(self._device)
        self._value = value_model_from_reward(
            rewards, RewardNormalisation.load(rewards), dtype=dtype, trust_remote_code=False
        ).to(self._device)
        self._step_policy = adamw_step(list(self._policy.parameters()), ppo.learning_rate)
        self._step_value = adamw_step(list(self._value.parameters()), ppo.value_learning_rate)
        prompts = np.array(prompt_tokens(directory))
        size = (len(prompts), config.policy.max_answer_tokens)
        answers = np.random.default_rng(0).integers(SPECIAL_TOKENS, self._policy.config.vocab_size, size)
        sequences = Ragged.of(list(prompts), list(answers))
        minibatches = np.array_split(np.arange(len(prompts)), -(-len(prompts) // ppo.minibatch_size))
        self._packed = [sequences.pack(rows, self._device) for rows in minibatches]
        whole = np.concatenate([prompts, answers], axis=1)
        self._rows = [torch.from_numpy(whole[rows]).to(self._device) for rows in minibatches]
        self.tokens = answers.size
        self.steps = len(minibatches)

    def now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @torch.no_grad()
    def score(self) -> None:
        for rows in self._rows:
            rewards_of(self._reward, {"input_ids": rows, "attention_mask": torch.ones_like(rows)})

    @torch.no_grad()
    def experience(self) -> list[Known]:
        """What the models say before the update. The reference's log-probabilities stand for those of the rollouts."""
        known = []
        for inputs in self._packed:
            logprobs = self._logprobs(self._reference, inputs)
            if self._recomputes:
                logprobs = self._logprobs(self._policy, inputs)
            known.append(Known(logprobs, state_values(self._value, inputs)))
        return known

    def update(self, known: Sequence[Known]) -> None:
        """One epoch of PPO's clipped losses."""
        for inputs, before in zip(self._packed, known, strict=True):
            advantages = torch.randn_like(before.values)
            values = state_values(self._value, inputs)
            near = before.values + (values - before.values).clamp(-self._clip, self._clip)
            returns = before.values + advantages
            value_loss: Any = torch.maximum((values - returns).square(), (near - returns).square()).mean() / 2
            value_loss.backward()
            self._step_value()
            ratio = (self._logprobs(self._policy, inputs) - before.logprobs).exp()
            clipped = ratio.clamp(1 - self._clip, 1 + self._clip)
            policy_loss: Any = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
            policy_loss.backward()
            self._step_policy()

    def _logprobs(self, model: Any, inputs: PackedInputs) -> Tensor:
        return token_logprobs(answer_logits(model, inputs), inputs.answer_ids, 1.0)


def adamw_step(parameters: list[Any], learning_rate: float) -> Callable[[], None]:
    """Clips and steps by torch's own AdamW; where parameters are not float32, on copies of them that are."""
    copied = parameters[0].dtype != torch.float32
    masters = [parameter.detach().float().requires_grad_() for parameter in parameters] if copied else parameters
    optimizer = torch.optim.AdamW(masters, lr=learning_rate, weight_decay=0.0, fused=True)

    def step() -> None:
        if copied:
            for master, parameter in zip(masters, parameters, strict=True):
                master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if copied:
            with torch.no_grad():
                for master, parameter in zip(masters, parameters, strict=True):
                    parameter.copy_(master)

    return step
