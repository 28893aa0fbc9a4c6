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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rlaif_ray.config import RunConfig
from scripts.benchmarks.ppo.learner_clock import peak_mib
from scripts.benchmarks.ppo.turns import tell
from scripts.benchmarks.ppo.workload import policy_bytes, prompt_tokens


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
    from scripts.benchmarks.ppo.plain_loop import PlainLoop

    loop = PlainLoop(directory, config)
    weights = np.zeros(policy_bytes(directory, config.policy.dtype), dtype=np.uint8)
    copy = np.ones_like(weights)

    def take() -> None:
        times = [loop.now()]
        loop.score()
        times.append(loop.now())
        known = loop.experience()
        times.append(loop.now())
        loop.update(known)
        times.append(loop.now())
        np.copyto(copy, weights)
        times.append(loop.now())
        parts = dict(zip(("score", "experience", "update", "copy"), np.diff(times).tolist(), strict=True))
        tell(times[3] - times[0], loop.tokens, loop.steps, parts, {"torch": peak_mib(None)})

    return take


if __name__ == "__main__":
    main()
