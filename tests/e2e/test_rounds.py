"""A run of two rounds as a user starts it: from people's labels, killed in the second round, gone on with, finished."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from rlaif_ray.metrics import PPO
from rlaif_ray.preferences.dataset import PreferenceRow, read_preferences
from rlaif_ray.report.summary import Summary, read_summary
from rlaif_ray.weights import read_weights
from tests.rlaif_command import Command, logged

# Two runs of two rounds each, and a machine may be slow.
pytestmark = pytest.mark.timeout(1500)

RECIPE = Path(__file__).parents[2] / "scripts" / "configs" / "human_then_ai.yaml"
ITERATIONS = 8  # enough that a kill in the second round finds most of them ahead
SMALL = [
    *("prompts.limit=600", "prompts.held_out=60", "sft.limit=1500", "sft.epochs=1"),
    *("collect.prompts=60", "collect.pairs_per_prompt=2", "reward.ensemble=2", "reward.epochs=1"),
    "reward.preferences=[{path: toyworld:headlines, limit: 300}]",
    *(f"ppo.iterations={ITERATIONS}", "ppo.prompts_per_iteration=16", "ppo.minibatch_size=16"),
    *("ppo.checkpoint_every=1", "ppo.value_warmup_iterations=1"),
]


def start(run_dir: Path, ray_address: str) -> Command:
    log = run_dir.parent / "log"
    return Command.start("run", str(RECIPE), f"run_dir={run_dir}", *SMALL, log=log, ray_address=ray_address)


def iterations_logged(run_dir: Path) -> list[int]:
    return [row.step for row in logged(run_dir, PPO)]


@dataclass(frozen=True)
class Run:
    directory: Path
    output: str  # of the command that finished it

    def preferences(self, number: int) -> list[PreferenceRow]:
        return read_preferences(self.round(number) / "preferences" / "preferences.parquet")

    def round(self, number: int) -> Path:
        return self.directory / "rounds" / "1" if number == 1 else self.directory

    @property
    def summary(self) -> Summary:
        return read_summary(self.directory)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> Run:
    """Killed in the second round's second iteration, and finished by the same command."""
    run_dir = tmp_path_factory.mktemp("rounds") / "run"
    command = start(run_dir, ray_address)
    command.wait_until(lambda: max(iterations_logged(run_dir), default=0) >= ITERATIONS + 2)
    command.end_by(signal.SIGKILL)
    return Run(run_dir, start(run_dir, ray_address).finished())


def test_a_killed_run_goes_on_in_its_round(killed: Run) -> None:
    for step in ("sft", "train, round 1", "evaluate, round 1", "collect, round 2", "fit-reward, round 2"):
        assert f"{step}: done before" in killed.output
    assert "train, round 2: the policy learns" in killed.output
    assert "going on after iteration" in killed.output
    assert iterations_logged(killed.directory) == list(range(1, 2 * ITERATIONS + 1))


def test_people_come_first_and_the_judge_adds_to_them(killed: Run) -> None:
    first, second = killed.preferences(1), killed.preferences(2)
    assert {row.label_source for row in first} == {"human"}
    assert second[: len(first)] == first
    added = second[len(first) :]
    assert {(row.label_source, row.round) for row in added} == {("ai", 2)}
    assert 60 < len(added) <= 120, "two pairs a prompt on average, less those that are not worth asking about"
    splits = {row.prompt_id: row.split for row in second}
    assert all(splits[row.prompt_id] == row.split for row in second), "no prompt stands on both sides"


def test_each_round_has_reward_models_and_a_policy_of_its_own(killed: Run) -> None:
    for number in (1, 2):
        for member in ("0", "1"):
            directory = killed.round(number) / "models" / "reward" / member
            model = AutoModelForSequenceClassification.from_pretrained(directory)
            assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    policies = [read_weights(killed.round(number) / "models" / "policy") for number in (1, 2)]
    assert any(not np.array_equal(policies[0][name], policies[1][name]) for name in policies[0])


def test_the_summary_tells_of_every_round(killed: Run) -> None:
    summary = killed.summary
    assert [one.round for one in summary.rounds] == [1, 2]
    first, second = summary.rounds
    assert first.labeler.calls is None, "nobody was asked in the first round"
    assert second.labeler.calls is not None
    assert second.labeler.calls > 0
    assert (second.reward, second.policy) == (summary.reward, summary.policy)
    assert first.reward.ensemble == second.reward.ensemble == 2
    assert first.policy.win_rate is not None
    assert (first.preferences, second.preferences) == (300, len(killed.preferences(2)))
    assert summary.resumed_from is not None
    assert summary.resumed_from.startswith("train, round 2, iteration ")
    assert list(json.loads((killed.directory / "summary.json").read_text())["stages"]) == [
        *("sft", "collect", "fit-reward", "train", "evaluate")
    ]


def test_it_ends_as_a_run_that_nothing_disturbed(killed: Run, ray_address: str, tmp_path: Path) -> None:
    undisturbed = Run(tmp_path / "run", start(tmp_path / "run", ray_address).finished())
    for number in (1, 2):
        assert undisturbed.preferences(number) == killed.preferences(number)
        for model in ("policy", "reward/0", "reward/1"):
            one, other = (read_weights(run.round(number) / "models" / model) for run in (undisturbed, killed))
            for name, tensor in one.items():
                np.testing.assert_array_equal(tensor, other[name], err_msg=f"{model}: {name}")
    assert [one.policy for one in undisturbed.summary.rounds] == [one.policy for one in killed.summary.rounds]
