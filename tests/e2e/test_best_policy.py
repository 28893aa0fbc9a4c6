"""A run that is evaluated while it trains, as a user starts it: spoilt on purpose, killed, gone on with, finished."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from rlaif_ray.evaluation.validation import ValidatedPolicies, Validation
from rlaif_ray.metrics import ANSWER_LENGTH, KL, PPO, REWARD_MEAN, VALIDATION, WIN_RATE
from rlaif_ray.report.summary import Summary, read_summary
from rlaif_ray.rundir import RunDirectory
from rlaif_ray.weights import read_weights
from tests.rlaif_command import Command, logged

pytestmark = pytest.mark.timeout(900)

DEMO = Path(__file__).parents[2] / "rlaif_ray" / "toyworld" / "demo.yaml"
ITERATIONS, EVERY, WARM_UP, VALIDATED, HELD_OUT = 8, 2, 2, 40, 100

# A reward that gold would not give, at a rate that leaves nothing of the policy: whatever it is taught makes it worse.
# The first evaluation comes after the iterations that train the value model alone, when it still is what SFT made.
RECIPE = {
    "base": str(DEMO),
    "prompts": {"limit": 600, "held_out": HELD_OUT},
    "sft": {"limit": 2000, "epochs": 1},
    "reward": {"mix": [{"kind": "rule", "function": "dullness.py:dullness"}]},
    "ppo": {
        "iterations": ITERATIONS,
        "prompts_per_iteration": 16,
        "minibatch_size": 16,
        "value_warmup_iterations": WARM_UP,
        "learning_rate": 0.05,
        "kl_coefficient": 0.0,
        "checkpoint_every": 3,
        "evaluate_every": EVERY,
    },
    "evaluation": {"instrument": "gold", "validation_prompts": VALIDATED},
}
DULLNESS = "def dullness(prompt, answer, reference):\n    return -float(len(set(answer.split())))\n"


@dataclass(frozen=True)
class Run:
    directory: RunDirectory
    output: str  # of the command that finished it

    @property
    def summary(self) -> Summary:
        return read_summary(self.directory.path)

    def logged(self, stage: str, *names: str) -> dict[int, list[float]]:
        return {row.step: [row.values[name] for name in names] for row in logged(self.directory.path, stage)}


def start(run_dir: Path, ray_address: str, *overrides: str) -> Command:
    (run_dir.parent / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (run_dir.parent / "dullness.py").write_text(DULLNESS)
    log = run_dir.parent / "log"
    return Command.start("run", "recipe.yaml", f"run_dir={run_dir}", *overrides, log=log, ray_address=ray_address)


def finished(run_dir: Path, ray_address: str, *overrides: str) -> Run:
    output = start(run_dir, ray_address, *overrides).finished()
    return Run(RunDirectory(run_dir), output)


def validations(run_dir: Path) -> tuple[Validation, ...]:
    return ValidatedPolicies(RunDirectory(run_dir).checkpoints("best")).validations()


@dataclass(frozen=True)
class Killed:
    known: tuple[Validation, ...]  # when it was killed
    run: Run


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> Killed:
    """Killed when the second evaluation was done, and finished by the same command."""
    run_dir = tmp_path_factory.mktemp("best") / "run"
    command = start(run_dir, ray_address)
    command.wait_until(lambda: len(validations(run_dir)) >= 2)
    command.end_by(signal.SIGKILL)
    known = validations(run_dir)
    return Killed(known, finished(run_dir, ray_address))


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> Run:
    """The same run without evaluations in between, and undisturbed."""
    return finished(tmp_path_factory.mktemp("unwatched") / "run", ray_address, "ppo.evaluate_every=null")


def same(one: Path, other: Path) -> bool:
    weights, others = read_weights(one), read_weights(other)
    assert weights.keys() == others.keys()
    return all(np.array_equal(tensor, others[name]) for name, tensor in weights.items())


def test_the_best_policy_is_taken_and_the_last_is_beside_it(killed: Killed) -> None:
    directory = killed.run.directory
    curve = {one.iteration: one.win_rate for one in validations(directory.path)}
    assert list(curve) == list(range(EVERY, ITERATIONS + 1, EVERY))
    assert max(curve, key=lambda iteration: curve[iteration] or 0.0) == WARM_UP
    assert same(directory.model("policy"), directory.model("sft")), "as it was before it was spoilt"
    assert not same(directory.model("last"), directory.model("sft"))


def test_what_was_found_before_the_kill_is_not_asked_again(killed: Killed) -> None:
    assert killed.known == validations(killed.run.directory.path)[: len(killed.known)]
    for one in validations(killed.run.directory.path):
        said = f"after iteration {one.iteration} the policy wins" in killed.run.output
        assert said == (one not in killed.known), f"iteration {one.iteration}"
    logged = killed.run.logged(VALIDATION, WIN_RATE)
    assert logged == {one.iteration: [one.win_rate] for one in validations(killed.run.directory.path)}


def test_the_summary_says_what_was_taken(killed: Killed) -> None:
    policy = killed.run.summary.policy
    best = next(one for one in validations(killed.run.directory.path) if one.iteration == WARM_UP)
    assert (policy.taken_iteration, policy.validation_win_rate) == (WARM_UP, best.win_rate)
    assert policy.validation_win_rate_ci == best.win_rate_ci
    assert policy.prompts == HELD_OUT - VALIDATED, "on prompts that chose nothing"
    assert policy.kl == pytest.approx(0.0, abs=1e-4)
    assert f"taken as it was after iteration {WARM_UP}" in killed.run.output


def test_training_is_to_the_bit_what_it_is_without_evaluations(killed: Killed, unwatched: Run) -> None:
    assert unwatched.summary.policy.taken_iteration is None
    assert not unwatched.directory.model("last").exists()
    assert same(killed.run.directory.model("last"), unwatched.directory.model("policy"))
    names = (REWARD_MEAN, KL, ANSWER_LENGTH)
    watched, plain = killed.run.logged(PPO, *names), unwatched.logged(PPO, *names)
    assert len(plain) == ITERATIONS
    for iteration, values in watched.items():
        assert values == plain[iteration], f"iteration {iteration}"
