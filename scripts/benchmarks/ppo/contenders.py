"""How the contenders are started."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from actors.spawn import process_environment
from rlaif_ray.config import ActorResources, RunConfig
from rlaif_ray.engines.training import Dtype
from scripts.benchmarks.ppo.turns import Contender
from scripts.benchmarks.ppo.workload import Lengths, Workload


def ours(directory: Path, name: str, config: RunConfig, *, block: int | None = None) -> Contender:
    """The loop as it is configured. Each actor sets its own threads."""
    path = directory / f"{name}.json"
    path.write_text(config.model_dump_json())
    command = [sys.executable, "-m", "scripts.benchmarks.ppo.ours_contender", str(directory), str(path)]
    if block is not None:
        command += ["--block", str(block)]
    # Ray has its workers yield to all other processes of the machine, which the peers do not.
    environment = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    return Contender(command, environment, directory / f"{name}.log")


def trl(python: Path, directory: Path, workload: Workload, lengths: Lengths, dtype: Dtype, threads: int) -> Contender:
    """TRL's trainer, in bfloat16 by the one way that it has: mixed precision in training alone."""
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "ACCELERATE_MIXED_PRECISION": {"float32": "no", "bfloat16": "bf16"}[dtype],
    }
    command = trl_command(python, directory, trl_settings(workload, lengths))
    return Contender(command, environment, directory / "trl.log")


def raw(kind: Literal["vllm", "torch"], directory: Path, config: RunConfig, threads: int) -> Contender:
    """A bare engine, or a plain loop, for what the config says, in the environment that an actor has."""
    path = directory / f"{kind}.json"
    path.write_text(config.model_dump_json())
    command = [sys.executable, "-m", "scripts.benchmarks.ppo.raw_contender", kind, str(directory), str(path)]
    return Contender(command, process_environment(ActorResources(threads=threads)), directory / f"{kind}.log")


def trl_settings(workload: Workload, lengths: Lengths) -> dict[str, Any]:
    return {
        "prompt_tokens": workload.prompt_tokens,
        "answer_tokens": workload.answer_tokens,
        "steps": workload.steps,
        "learning_rate": workload.learning_rate,
        "stops": lengths == "half",
    }


def trl_command(python: Path, directory: Path, settings: Mapping[str, Any]) -> list[str]:
    script = Path(__file__).with_name("trl_contender.py")
    return [str(python), str(script), str(directory), json.dumps(settings)]
