"""The work that every contender does: models, prompts and settings of one PPO iteration, written to a directory.

All models are random. What ends an answer is set by hand: one channel of the residual stream is kept constant, and the
tied embedding of the stop token reads it, so that the token has the probability that it was given wherever it stands.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from rlaif_ray.config import RunConfig
from rlaif_ray.engines.training import Dtype
from rlaif_ray.prompts import encode_prompt
from rlaif_ray.records import LearnerModels, Prompt
from rlaif_ray.weights import read_weights
from scripts.benchmarks.ppo.layout import Layout

Lengths = Literal["fixed", "half"]
"""Every answer takes the limit; or answers end by themselves, at half the limit on average."""

# The residual stream's constant channel, beside others of about 0.02 to 0.1.
_CONSTANT: Final = 0.1
_NEVER: Final = -100.0
SPECIAL_TOKENS: Final = 5


@dataclass(frozen=True, slots=True)
class Workload:
    """A Llama with tied embeddings, and one iteration's answers."""

    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    vocabulary: int
    prompts: int
    prompt_tokens: int
    answer_tokens: int
    minibatch: int
    learning_rate: float = 1e-5

    @property
    def steps(self) -> int:
        """Optimizer steps of each model."""
        return -(-self.prompts // self.minibatch)


SMALL: Final = Workload(512, 8, 8, 1536, 4096, prompts=64, prompt_tokens=32, answer_tokens=64, minibatch=16)
"""29.4M parameters."""
TINY: Final = Workload(64, 2, 2, 128, 256, prompts=8, prompt_tokens=8, answer_tokens=8, minibatch=4)
"""To see that a benchmark works."""
WORKLOADS: Final = {"small": SMALL, "tiny": TINY}


def write_workload(directory: Path, workload: Workload, lengths: Lengths, seed: int = 0) -> None:
    """Fill `directory` with policy, reference, reward model and prompts."""
    import torch
    import transformers

    from rlaif_ray.policy.model import scratch_tokenizer
    from rlaif_ray.reward.model import RewardNormalisation

    logs: Any = transformers.utils.logging
    logs.disable_progress_bar()
    words = [f"w{number:05}" for number in range(workload.vocabulary - SPECIAL_TOKENS)]
    tokenizer = scratch_tokenizer(words)
    random = np.random.default_rng(seed)
    prompts = [
        Prompt(str(row), " ".join(random.choice(words, workload.prompt_tokens - 2))) for row in range(workload.prompts)
    ]
    rows = [
        {"id": prompt.id, "text": prompt.content, "input_ids": encode_prompt(tokenizer, prompt)} for prompt in prompts
    ]
    (directory / "prompts.json").write_text(json.dumps(rows))
    settings: Any = transformers.LlamaConfig
    config = settings(
        vocab_size=workload.vocabulary,
        hidden_size=workload.hidden_size,
        intermediate_size=workload.intermediate_size,
        num_hidden_layers=workload.layers,
        num_attention_heads=workload.heads,
        num_key_value_heads=workload.heads,
        max_position_embeddings=workload.prompt_tokens + workload.answer_tokens + 1,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        num_labels=1,
        problem_type="regression",
    )
    build_policy: Any = transformers.LlamaForCausalLM
    build_reward: Any = transformers.LlamaForSequenceClassification
    torch.manual_seed(seed)
    policy = build_policy(config).eval()
    chance = 0.0 if lengths == "fixed" else chance_of_ending(workload.answer_tokens)
    answers = torch.randint(SPECIAL_TOKENS, workload.vocabulary, (workload.prompts, workload.answer_tokens))
    sequences = torch.cat([torch.tensor(prompt_tokens(directory)), answers], 1)
    _end_with(policy, tokenizer.eos_token_id, tokenizer.pad_token_id, chance, sequences)
    reward = build_reward(config).eval()
    for name, model in (("policy", policy), ("reward", reward)):
        model.save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    with torch.no_grad():  # a little apart, so that there is a KL
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=1e-3)
    policy.save_pretrained(directory / "reference")
    tokenizer.save_pretrained(directory / "reference")
    RewardNormalisation(mean=0.0, std=1.0, count=1).save(directory / "reward")


def read_prompts(directory: Path) -> list[Prompt]:
    return [Prompt(row["id"], row["text"]) for row in json.loads((directory / "prompts.json").read_text())]


def prompt_tokens(directory: Path) -> list[list[int]]:
    return [row["input_ids"] for row in json.loads((directory / "prompts.json").read_text())]


def policy_bytes(directory: Path, dtype: Dtype) -> int:
    """Of the policy's weights, as they are published."""
    count = sum(array.size for array in read_weights(directory / "policy").values())
    return count * {"float32": 4, "bfloat16": 2}[dtype]


def learner_models(directory: Path) -> LearnerModels:
    return LearnerModels(directory / "policy", directory / "reference", directory / "reward")


def run_config(directory: Path, workload: Workload, *, dtype: Dtype, layout: Layout, **ppo: Any) -> RunConfig:
    """Of a run that does this work as the peer does: no clipping of gradients, AdamW without decay, a KL in the reward.
    `ppo` are further keys of that section."""
    # What a minibatch needs: on a CPU a larger one leaves the caches for nothing.
    batch_tokens = workload.minibatch * (workload.prompt_tokens + workload.answer_tokens)
    return RunConfig.model_validate(
        {
            "run_dir": str(directory / "run"),
            "prompts": {"path": "unused"},
            "policy": {
                "model": str(directory / "policy"),
                "dtype": dtype,
                "max_prompt_tokens": workload.prompt_tokens,
                "max_answer_tokens": workload.answer_tokens,
            },
            "judge": {"model": "unused"},
            "reward": {"max_batch_tokens": batch_tokens, "actors": {"threads": layout.threads}},
            "rollout": {
                "replicas": layout.replicas,
                "resources": {"threads": layout.rollout_threads},
                "enforce_eager": layout.enforce_eager,
            },
            "learner": {"resources": {"threads": layout.threads}, "max_grad_norm": 1e9},
            "ppo": {
                "prompts_per_iteration": workload.prompts,
                "minibatch_size": workload.minibatch,
                "epochs": 1,
                "micro_batch_tokens": batch_tokens,
                "learning_rate": workload.learning_rate,
                "value_learning_rate": workload.learning_rate,
                "adam_epsilon": 1e-8,
            }
            | ppo,
        }
    )


def chance_of_ending(limit: int) -> float:
    """The chance p, a token, by which answers of at most `limit` tokens have half of that on average:
    (1 - (1 - p)^limit) / p = limit / 2."""
    return _solve(lambda chance: -(1 - (1 - chance) ** limit) / chance, -limit / 2, 1e-9, 1.0)


def _end_with(policy: Any, stop: int, pad: int, chance: float, sequences: Any) -> None:
    """Have the policy draw `stop` with this probability on average over `sequences` (N, L), and never `pad`."""
    import torch

    embedding = policy.get_input_embeddings().weight
    with torch.no_grad():
        embedding[:, 0] = _CONSTANT
        embedding[[stop, pad]] = 0
        embedding[[stop, pad], 0] = _NEVER
        for layer in policy.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        if chance > 0:
            states = policy.model(sequences).last_hidden_state
            others = (states @ embedding.T).logsumexp(-1)

            def chance_at(level: float) -> float:
                return float((level * states[..., 0] - others).sigmoid().mean())

            embedding[stop, 0] = _solve(chance_at, chance, _NEVER, -_NEVER)


def _solve(rising: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Where a rising function has the value that is wanted, by bisection."""
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return low
