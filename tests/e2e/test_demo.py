"""The demo as a newcomer runs it, in small: interrupted in PPO, resumed, finished."""

from __future__ import annotations

import json
import re
import signal
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlaif_ray.metrics import PPO
from rlaif_ray.toyworld import headlines
from tests.rlaif_command import Command, logged
from tests.vllm_server import vllm_server

ITERATIONS = 40  # enough that an interruption after five finds most of them ahead
SMALL = [
    *("prompts.limit=2000", "prompts.held_out=200", "sft.limit=2000", "sft.epochs=2", "collect.prompts=150"),
    *("reward.epochs=2", "reward.held_out=0.2", f"ppo.iterations={ITERATIONS}", "ppo.prompts_per_iteration=32"),
    *("ppo.minibatch_size=32", "ppo.checkpoint_every=2"),
]


@dataclass(frozen=True)
class Demo:
    run_dir: Path
    first_exit: int
    first_output: str
    second_exit: int
    second_output: str
    actors: set[str]


def start(run_dir: Path, log: str) -> Command:
    return Command.start("demo", f"run_dir={run_dir}", *SMALL, log=run_dir.parent / log)


def iterations_logged(run_dir: Path) -> list[int]:
    return [row.step for row in logged(run_dir, PPO)]


def actors_shown(output: str) -> set[str]:
    """The names of the living actors, as the dashboard's own API tells them."""
    address = re.search(r"Ray dashboard: (http://\S+)", output)
    assert address is not None, output
    with urllib.request.urlopen(f"{address.group(1)}/api/v0/actors?limit=1000", timeout=30) as answer:
        actors = json.load(answer)["data"]["result"]["result"]
    return {actor["name"] for actor in actors if actor["state"] == "ALIVE"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    run_dir = tmp_path_factory.mktemp("demo") / "run"
    first = start(run_dir, "first.log")
    first.wait_until(lambda: len(iterations_logged(run_dir)) >= 1)
    actors = actors_shown(first.output)
    first.wait_until(lambda: len(iterations_logged(run_dir)) >= 5)
    first_exit = first.end_by(signal.SIGINT)  # what a terminal does at ctrl-C
    second = start(run_dir, "second.log")
    return Demo(run_dir, first_exit, first.output, second.exit_code(), second.output, actors)


def test_ctrl_c_is_an_interruption_and_not_an_accident(demo: Demo) -> None:
    assert demo.first_exit == 130, demo.first_output
    assert "interrupted" in demo.first_output.splitlines()[-1]
    assert "Traceback" not in demo.first_output


def test_the_same_command_goes_on_where_it_was_interrupted(demo: Demo) -> None:
    assert demo.second_exit == 0, demo.second_output
    for stage in ("sft", "collect", "fit-reward"):
        assert f"{stage}: done before" in demo.second_output
    went_on = re.search(r"going on after iteration (\d+)", demo.second_output)
    assert went_on is not None, demo.second_output
    assert int(went_on.group(1)) >= 5, "every iteration that was told of is kept"
    lines = [json.loads(line) for line in (demo.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["stage"] == PPO] == list(range(1, ITERATIONS + 1)), "and told once"


def test_every_actor_has_a_readable_name(demo: Demo) -> None:
    assert {"rollout-0", "learner-0", "reward-0", "judge-pool"} <= demo.actors


def test_the_summary_has_every_figure(demo: Demo) -> None:
    summary = json.loads((demo.run_dir / "summary.json").read_text())
    assert summary["resumed_from"] is not None
    assert summary["policy"]["win_rate_judge"] == "gold"
    assert summary["reward"]["accuracy_against"] == "gold"
    nulls = {
        f"{section}.{key}"
        for section in ("labeler", "reward", "policy")
        for key, value in summary[section].items()
        if value is None
    }
    assert nulls == {
        "labeler.cost_usd",  # of a local labeler
        "reward.accuracy_on_human_labels",  # there is one source of labels
        "reward.accuracy_on_ai_labels",
        "reward.mean_disagreement",  # and one reward model
        "policy.judge_cost_usd",  # gold costs nothing
        "policy.taken_iteration",  # and the last policy is taken
        "policy.validation_win_rate",
        "policy.validation_win_rate_ci",
    }
    assert list(summary["stages"]) == ["sft", "collect", "fit-reward", "train", "evaluate"]
    low, high = summary["policy"]["win_rate_ci"]
    assert low < summary["policy"]["win_rate"] < high


def test_the_run_directory_holds_what_it_promises(demo: Demo) -> None:
    for name in (
        "config.yaml",
        "report.html",
        "metrics.jsonl",
        "ledger.sqlite",
        "preferences",
        "judgements",
        "samples",
    ):
        assert (demo.run_dir / name).exists(), name
    policy = AutoModelForCausalLM.from_pretrained(demo.run_dir / "models" / "policy")
    tokenizer = AutoTokenizer.from_pretrained(demo.run_dir / "models" / "policy")
    assert policy.config.vocab_size == len(tokenizer)
    reward = AutoModelForSequenceClassification.from_pretrained(demo.run_dir / "models" / "reward")
    assert (reward.config.num_labels, reward.config.problem_type) == (1, "regression")
    judgements = pq.read_table(demo.run_dir / "judgements" / "judgements.parquet").to_pylist()
    assert all("Better summary:" in row["judge_prompt"] for row in judgements)
    assert {row["order"] for row in judgements} == {"ab", "ba"}


def test_vllm_serves_the_policy(demo: Demo) -> None:
    with vllm_server(demo.run_dir / "models" / "policy", "policy", "sk-any") as url:
        client = OpenAI(base_url=url, api_key="sk-any", max_retries=0)
        completion = client.completions.create(
            model="policy", prompt="headlines storm vote strike briefs parade fair rain", max_tokens=8, temperature=0
        )
    assert completion.choices[0].text.split()
    assert set(completion.choices[0].text.split()) <= set(headlines.FACTS)
    assert completion.choices[0].finish_reason == "stop"
