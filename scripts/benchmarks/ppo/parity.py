"""The guard before timing: on the same answers both sides compute the same numbers, and end with the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from rlaif_ray.policy.batching import minibatches
from rlaif_ray.weights import read_weights
from scripts.benchmarks.ppo.contenders import trl_command, trl_settings
from scripts.benchmarks.ppo.layout import Layout
from scripts.benchmarks.ppo.workload import SPECIAL_TOKENS, Workload, prompt_tokens, run_config, write_workload

_TOLERANCES: Final[Mapping[str, float]] = {
    "logprobs": 1e-5,
    "reference_logprobs": 1e-5,
    "values": 1e-5,
    "scores": 1e-5,
    "advantages": 1e-4,
    "policy_loss": 1e-5,
    "value_loss": 1e-5,
    # In learning rates: AdamW moves a weight by about one a step, and by the sign of what may be rounding noise. So it
    # is the mean over all weights that must be small.
    "weights": 1e-3,
}


class NotTheSame(RuntimeError):
    """The two sides do not compute the same, and their times say nothing."""


@dataclass(frozen=True, slots=True)
class Gap:
    """The largest absolute difference of a quantity between the sides, and how large one may be."""

    quantity: str
    gap: float
    tolerance: float


def check_parity(directory: Path, workload: Workload, python: Path, threads: int) -> list[Gap]:
    """One update of each side, in float32, on the same random answers in the same order of minibatches.

    `directory` is empty at the start. Raises NotTheSame naming what differs by more than rounding.
    """
    write_workload(directory, workload, "fixed")
    config = run_config(directory, workload, dtype="float32", layout=Layout(1, 1, threads), old_logprobs="recompute")
    (directory / "config.json").write_text(config.model_dump_json())
    random = np.random.default_rng(0)
    prompts = np.array(prompt_tokens(directory))
    given: dict[str, Any] = {
        "prompts": prompts,
        "answers": random.integers(SPECIAL_TOKENS, workload.vocabulary, (workload.prompts, workload.answer_tokens)),
        "order": np.concatenate(
            minibatches(np.arange(workload.prompts), workload.minibatch, seed=config.seed, iteration=0, epoch=0)
        ),
    }
    answers = directory / "answers.npz"
    np.savez(answers, **given)
    command = trl_command(python, directory, trl_settings(workload, "fixed"))
    _run([*command, "--replay", str(answers)], threads)
    theirs = dict(np.load(directory / "replayed" / "computed.npz"))
    np.savez(answers, **given, sampled_logprobs=theirs["logprobs"])
    _run(
        [
            sys.executable,
            "-m",
            "scripts.benchmarks.ppo.our_replay",
            str(directory),
            str(directory / "config.json"),
            str(answers),
        ],
        threads,
    )
    ours = dict(np.load(directory / "ours" / "computed.npz"))
    found = {name: float(np.abs(ours[name] - theirs[name]).max()) for name in theirs}
    found["weights"] = _moved_apart(directory, workload)
    gaps = [Gap(name, found[name], tolerance) for name, tolerance in _TOLERANCES.items()]
    for gap in gaps:
        if not gap.gap <= gap.tolerance:
            raise NotTheSame(f"{gap.quantity} differ by {gap.gap:.2g} between the sides, more than {gap.tolerance:g}")
    return gaps


def _moved_apart(directory: Path, workload: Workload) -> float:
    """The mean distance between the sides' updated policies, in learning rates."""
    ours, theirs = (read_weights(directory / side / "policy") for side in ("ours", "replayed"))
    shared = sorted(ours.keys() & theirs.keys())
    apart = np.concatenate([np.abs(np.subtract(ours[name], theirs[name])).ravel() for name in shared])
    return float(apart.mean() / workload.learning_rate)


def _run(command: Sequence[str], threads: int) -> None:
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} ended with {done.returncode}: {done.stdout[-3000:]}")
