"""The same work by the same kernels, with nothing around them: what an iteration costs at least.

`python -m scripts.benchmarks.ppo.raw_contender KIND DIRECTORY CONFIG`, a turn for each line on stdin. `vllm` is a bare
`LLM.generate` of the workload's answers. `torch` is a plain loop that scores answers of full length, says what policy,
reference and value model hold of them, and takes the optimizer's steps, on the learner's packed inputs and with AdamW
of torch's own, on float32 copies where weights are bfloat16.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlaif_ray.config import RunConfig
from scripts.benchmarks.ppo.learner_clock import peak_mib
from scripts.benchmarks.ppo.turns import tell
from scripts.benchmarks.ppo.workload import SPECIAL_TOKENS, prompt_tokens


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("vllm", "torch"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("config", type=Path)
    arguments = parser.parse_args()
    config = RunConfig.model_validate_json(arguments.config.read_text())
    take = {"vllm": _vllm, "torch": _torch}[arguments.kind](arguments.directory, config)
    for _ in sys.stdin:
        take()


def _vllm(directory: Path, config: RunConfig) -> Callable[[], None]:
    from rlaif_ray.engines.vllm_setup import base_arguments, prepare_environment

    rollout = config.rollout
    prepare_environment(rollout.resources.threads, enforce_eager=rollout.enforce_eager)
    from vllm import LLM, SamplingParams

    engine = LLM(
        **base_arguments(
            str(directory / "policy"),
            dtype=config.policy.dtype,
            max_model_len=config.policy.context_tokens,
            gpu_memory_utilization=rollout.gpu_memory_utilization,
            enforce_eager=rollout.enforce_eager,
            trust_remote_code=False,
        )
    )
    sampling = SamplingParams(temperature=1.0, max_tokens=config.policy.max_answer_tokens, logprobs=0, detokenize=False)
    prompts: Any = [{"prompt_token_ids": tokens} for tokens in prompt_tokens(directory)]

    def take() -> None:
        begun = time.perf_counter()
        outputs = engine.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - begun
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        engine.reset_prefix_cache()
        tell(seconds, tokens, 0, {}, {"vllm": peak_mib(None)})

    return take


def _torch(directory: Path, config: RunConfig) -> Callable[[], None]:
    import torch

    from rlaif_ray.policy.logprobs import token_logprobs
    from rlaif_ray.policy.model import load_policy, state_values, value_model_from_reward
    from rlaif_ray.policy.packing import PackedInputs, Ragged, answer_logits
    from rlaif_ray.reward.model import RewardNormalisation, load_reward_model
    from rlaif_ray.reward.scoring import rewards_of

    dtype = config.policy.dtype
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy, reference = (
        load_policy(directory / name, dtype=dtype, trust_remote_code=False).to(device)
        for name in ("policy", "reference")
    )
    value: torch.nn.Module = value_model_from_reward(
        directory / "reward", RewardNormalisation.load(directory / "reward"), dtype=dtype, trust_remote_code=False
    ).to(device)
    reward = load_reward_model(directory / "reward", dtype=dtype, trust_remote_code=False).to(device)
    policy_step, value_step = (_adamw(list(model.parameters()), config.ppo.learning_rate) for model in (policy, value))
    random = np.random.default_rng(0)
    prompts = np.array(prompt_tokens(directory))
    size = (len(prompts), config.policy.max_answer_tokens)
    answers = random.integers(SPECIAL_TOKENS, policy.config.vocab_size, size)
    whole = torch.from_numpy(np.concatenate([prompts, answers], axis=1)).to(device)
    sequences = Ragged.of(list(prompts), list(answers))
    rows = np.array_split(np.arange(len(prompts)), -(-len(prompts) // config.ppo.minibatch_size))
    packs = [sequences.pack(part, device) for part in rows]

    @torch.no_grad()
    def score() -> None:
        for part in rows:
            inputs = whole[torch.from_numpy(part)]
            rewards_of(reward, {"input_ids": inputs, "attention_mask": torch.ones_like(inputs)})

    @torch.no_grad()
    def said(model: Any, inputs: PackedInputs) -> torch.Tensor:
        return token_logprobs(answer_logits(model, inputs), inputs.answer_ids, 1.0)

    @torch.no_grad()
    def experience() -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Log-probabilities of the policy (the reference's stand for those of the rollouts) and values."""
        for_kl = [said(reference, inputs) for inputs in packs]
        old = [said(policy, inputs) for inputs in packs] if config.recomputes_old_logprobs else for_kl
        return list(zip(old, [state_values(value, inputs) for inputs in packs], strict=True))

    def update(known: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        clip = config.ppo.clip
        for inputs, (old_logprobs, old_values) in zip(packs, known, strict=True):
            advantages = torch.randn_like(old_values)
            values = state_values(value, inputs)
            near = old_values + (values - old_values).clamp(-clip, clip)
            target = old_values + advantages
            value_loss: Any = torch.maximum((values - target).square(), (near - target).square()).mean() / 2
            value_loss.backward()
            value_step()
            logprobs = token_logprobs(answer_logits(policy, inputs), inputs.answer_ids, 1.0)
            ratio = (logprobs - old_logprobs).exp()
            clipped = ratio.clamp(1 - clip, 1 + clip)
            policy_loss: Any = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
            policy_loss.backward()
            policy_step()

    weights = np.zeros(sum(tensor.numel() * tensor.element_size() for tensor in policy.parameters()), dtype=np.uint8)
    copy = np.ones_like(weights)

    def take() -> None:
        times = [time.perf_counter()]
        score()
        times.append(time.perf_counter())
        known = experience()
        times.append(time.perf_counter())
        update(known)
        times.append(time.perf_counter())
        np.copyto(copy, weights)
        times.append(time.perf_counter())
        parts = dict(zip(("score", "experience", "update", "copy"), np.diff(times).tolist(), strict=True))
        tell(times[3] - times[0], answers.size, len(packs), parts, {"torch": peak_mib(None)})

    return take


def _adamw(parameters: list[Any], learning_rate: float) -> Callable[[], None]:
    """Clip and step on float32 weights; those of another type are copies of them."""
    import torch

    masters = [parameter.detach().float().requires_grad_() for parameter in parameters]
    same = parameters[0].dtype == torch.float32
    stepped: list[Any] = parameters if same else masters
    optimizer = torch.optim.AdamW(stepped, lr=learning_rate, weight_decay=0.0, fused=True)

    def step() -> None:
        if not same:
            for master, parameter in zip(masters, parameters, strict=True):
                master.grad = parameter.grad.float()
                parameter.grad = None
        torch.nn.utils.clip_grad_norm_(stepped, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if not same:
            with torch.no_grad():
                for master, parameter in zip(masters, parameters, strict=True):
                    parameter.copy_(master)

    return step


if __name__ == "__main__":
    main()
