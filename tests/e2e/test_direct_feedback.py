"""Runs without a reward model, as a user starts them: stopped by a budget, killed, gone on with, finished."""

from __future__ import annotations

import json
import math
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from judge_server import BillLine, strict_server
from transformers import AutoModelForCausalLM

from rlaif_ray import metrics
from rlaif_ray.judge.ledger import Ledger
from rlaif_ray.metrics import MetricsRow
from tests.rlaif_command import Command, logged

RECIPE = Path(__file__).parents[2] / "scripts" / "configs" / "direct_feedback.yaml"
ITERATIONS = 6
SMALL = [
    *("prompts.limit=600", "prompts.held_out=60", "sft.limit=1500", "sft.epochs=1"),
    *(f"ppo.iterations={ITERATIONS}", "ppo.prompts_per_iteration=8", "ppo.answers_per_prompt=3"),
    *("ppo.minibatch_size=12", "ppo.learning_rate=3e-4"),
]


@dataclass(frozen=True)
class Run:
    """One run directory, the overrides of its command, and the Ray that it joins."""

    directory: Path
    overrides: tuple[str, ...]
    ray_address: str

    def start(self, log: str, *more: str) -> Command:
        overrides = (f"run_dir={self.directory}", *SMALL, *self.overrides, *more)
        return Command.start(
            "run", str(RECIPE), *overrides, log=self.directory.parent / log, ray_address=self.ray_address
        )

    def rows(self, stage: str) -> list[MetricsRow]:
        return logged(self.directory, stage)

    def iterations(self) -> list[int]:
        return [row.step for row in self.rows(metrics.PPO)]

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads((self.directory / "summary.json").read_text()))


@dataclass(frozen=True)
class Scored:
    """A run whose judge scores every answer, in three commands, and the server's bill after each."""

    run: Run
    codes: tuple[int, int, int]
    outputs: tuple[str, str, str]
    iterations: tuple[list[int], list[int]]  # logged when the first command had stopped and the second was killed
    bills: tuple[list[BillLine], list[BillLine], list[BillLine]]
    ambiguous: int


def charged(bill: Sequence[BillLine]) -> Counter[str]:
    """How often each question was charged."""
    return Counter(line.digest for line in bill if line.tokens)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> Iterator[Scored]:
    """The budget of the first command buys between one and five iterations of 24 answers, at about 200 tokens of a
    tenth of a cent each. Nothing is checkpointed but where a run is stopped, and at its end."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "key").write_text("sk-direct-feedback-2b8e")
    with strict_server(with_logprobs=False) as server:
        run = Run(
            folder / "run",
            (
                *("policy.algorithm=ppo", "reward.mix=[]", "reward.source=judge", "reward.watch=4"),
                *("judge.model=strict", f"judge.base_url={server.url}", f"judge.api_key_file={folder / 'key'}"),
                *("judge.mode=stated", "judge.template=quality", "judge.rationale_tokens=64"),
                *("judge.price={input: 1000, output: 1000}", "judge.max_concurrency=8", "judge.actors.cpus=0.1"),
                "ppo.checkpoint_every=1000",
            ),
            ray_address,
        )
        first = run.start("1.log", "judge.budget_usd=18")
        stopped = first.exit_code()
        stopped_at, first_bill = run.iterations(), server.bill()

        second = run.start("2.log", "judge.budget_usd=1000")
        second.wait_until(lambda: len(run.iterations()) > len(stopped_at))
        killed = second.end_by(signal.SIGKILL)
        killed_at, second_bill = run.iterations(), server.bill()

        third = run.start("3.log", "judge.budget_usd=1000")
        ended = third.exit_code()
        with closing(Ledger(run.directory / "ledger.sqlite", lock_patience_s=30)) as ledger:
            ambiguous = len(ledger.ambiguous())
        yield Scored(
            run,
            (stopped, killed, ended),
            (first.output, second.output, third.output),
            (stopped_at, killed_at),
            (first_bill, second_bill, server.bill()),
            ambiguous,
        )


def test_a_spent_budget_stops_the_run_with_its_last_whole_iteration_saved(scored: Scored) -> None:
    code, output = scored.codes[0], scored.outputs[0]
    assert code == 3, output
    (line,) = [line for line in output.splitlines() if line.startswith("rlaif: stopped:")]
    assert "of 24 answers are not judged" in line
    assert "judge.budget_usd" in line
    assert "Traceback" not in output
    stopped_at = scored.iterations[0]
    assert 1 <= len(stopped_at) < ITERATIONS
    assert f"going on after iteration {stopped_at[-1]}," in scored.outputs[1]


def test_the_same_command_with_a_larger_budget_goes_on_and_finishes(scored: Scored) -> None:
    assert scored.codes[1:] == (-signal.SIGKILL, 0), scored.outputs[2]
    assert f"going on after iteration {scored.iterations[0][-1]}," in scored.outputs[2]
    assert scored.run.iterations() == list(range(1, ITERATIONS + 1))
    AutoModelForCausalLM.from_pretrained(scored.run.directory / "models" / "policy")


def test_nothing_is_paid_twice_over_a_stop_and_a_kill(scored: Scored) -> None:
    """What was in flight when the run was killed may be, and is counted: no more than eight calls."""
    after_stop, _, in_all = map(charged, scored.bills)
    assert after_stop
    assert set(after_stop.values()) == {1}
    twice = sum(times - 1 for times in in_all.values())
    assert twice <= scored.ambiguous <= 8
    budgeted = sum(line.tokens for line in scored.bills[0]) * 1e-3
    assert budgeted <= 18


def test_there_is_no_reward_model_and_its_figures_are_not_invented(scored: Scored) -> None:
    directory, summary = scored.run.directory, scored.run.summary
    assert not (directory / "models" / "reward").exists()
    assert not list((directory / "preferences").glob("*.parquet"))
    assert summary["reward"]["accuracy"] is None
    assert summary["labeler"]["alignment"] is None
    assert summary["labeler"]["calls"] > 0
    assert summary["policy"]["win_rate"] is not None
    assert "collect" not in summary["stages"]
    assert (directory / "report.html").exists()


def test_the_judges_score_is_the_reward_and_a_value_model_learns_without_a_reward_model(scored: Scored) -> None:
    for row in scored.run.rows(metrics.PPO):
        assert row.values["reward/judge_score"] == pytest.approx(row.values[metrics.REWARD_MEAN], abs=1e-6)
        assert -1 <= row.values["reward/judge_score"] <= 1
        assert row.values["reward_valid/judge_score"] == 1.0
        assert row.values[metrics.VALUE_GRADIENT_NORM] > 0


def test_the_watch_sees_that_the_judge_agrees_with_itself(scored: Scored) -> None:
    rows = scored.run.rows(metrics.WATCH)
    assert rows
    for row in rows:
        assert row.values[metrics.WATCHED] == 4
        assert row.values[metrics.WATCHED_REWARD_MEAN] == pytest.approx(row.values[metrics.WATCHED_JUDGE_MEAN])
        correlation = row.values[metrics.WATCHED_CORRELATION]
        assert math.isnan(correlation) or correlation == pytest.approx(1.0)


def test_siblings_and_a_rule_add_up_in_the_toy_world(ray_address: str, tmp_path: Path) -> None:
    (tmp_path / "rules.py").write_text(
        "def brief(prompt, answer, reference):\n    return -0.1 * len(answer.split())\n"
        "def even(prompt, answer, reference):\n    return 1.0 if len(answer.split()) % 2 == 0 else None\n"
    )
    mix = (
        "[{kind: judge_pairs}, {kind: rule, function: 'rules.py:brief', weight: 0.5}, "
        "{kind: rule, function: 'rules.py:even', weight: 0}]"
    )
    run = Run(tmp_path / "run", (f"reward.mix={mix}", "ppo.iterations=2"), ray_address)
    run.start("log").finished()
    rows = run.rows(metrics.PPO)
    assert len(rows) == 2
    for row in rows:
        values = row.values
        assert values["reward/judge_pairs"] == pytest.approx(0, abs=1e-5)  # every group has mean 0
        assert values["reward_std/judge_pairs"] > 0.1
        assert values["reward/brief"] < 0
        assert values["reward_valid/judge_pairs"] == values["reward_valid/brief"] == values[metrics.VALID_FRACTION] == 1
        assert 0 < values["reward_valid/even"] < 1
        assert values[metrics.REWARD_MEAN] == pytest.approx(0.5 * values["reward/brief"], abs=1e-5)
        assert values[metrics.LONE_GROUP_FRACTION] == 0
        assert metrics.VALUE_LOSS not in values
    assert run.summary["policy"]["win_rate_judge"] == "gold"
