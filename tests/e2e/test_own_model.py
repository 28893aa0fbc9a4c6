"""A user's own model, prompts and judge: the whole recipe against vLLM's API server on loopback."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from rlaif_ray.toyworld.models import model_path
from tests.rlaif_command import Command
from tests.vllm_server import vllm_server

ROOT = Path(__file__).parents[2]
KEY_VARIABLE = "RLAIF_OWN_MODEL_KEY"
KEY = os.environ[KEY_VARIABLE]
WORDS = ["storm", "vote", "strike", "parade", "fair", "rain", "bridge", "trial"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def judge_url() -> Iterator[str]:
    """The toy judge behind vLLM's own server, which wants a key."""
    with vllm_server(model_path("toyworld:judge"), "toy-judge", KEY) as url:
        yield url


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model with two stop tokens, as many real ones have, and no pad token, as some have."""
    directory = tmp_path_factory.mktemp("model")
    special = ["<unk>", "<eos>", "<end>", "<system>", "<user>", "<assistant>"]
    words = {word: number for number, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    chat = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", extra_special_tokens=special[2:]
    )
    chat.chat_template = CHAT_TEMPLATE
    chat.save_pretrained(directory)
    torch.manual_seed(0)
    policy = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=128,
            eos_token_id=1,
            bos_token_id=None,
        )
    )
    policy.generation_config.eos_token_id = [words["<eos>"], words["<end>"]]
    policy.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts and conversations of several turns, some with a system message."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows: list[dict[str, object]] = []
    for number in range(40):
        text = " ".join(WORDS[(number * step + step) % len(WORDS)] for step in range(1, 4)) + f" {number}"
        turns = [{"role": "user", "content": text}]
        if number % 4 == 1:
            turns = [{"role": "system", "content": "storm"}, *turns]
        if number % 4 == 2:
            turns = [{"role": "user", "content": "vote"}, {"role": "assistant", "content": "rain"}, *turns]
        rows.append({"prompt": text} if number % 4 == 0 else {"prompt": turns})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass(frozen=True)
class Run:
    directory: Path
    arguments: tuple[str, ...]  # of the command that made it
    ray_address: str

    def start(self, log: Path, *more: str) -> Command:
        return Command.start(*self.arguments, *more, log=log, ray_address=self.ray_address)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, ray_address: str, judge_url: str, model: Path, prompts: Path
) -> Run:
    run_dir = tmp_path_factory.mktemp("runs") / "own"
    arguments = [
        *("run", str(ROOT / "scripts" / "configs" / "own_model.yaml")),
        *(f"policy.model={model}", f"prompts.path={prompts}", f"run_dir={run_dir}"),
        *(f"judge.base_url={judge_url}", "judge.model=toy-judge", f"judge.api_key_env={KEY_VARIABLE}"),
        *("judge.price.input=0.5", "judge.price.output=1.0"),
        *("judge.template=headlines", "judge.min_label_mass=0.01", "judge.actors.cpus=0.1"),
        *("policy.dtype=float32", "policy.max_prompt_tokens=40", "policy.max_answer_tokens=8"),
        *("collect.prompts=24", "collect.answers_per_prompt=3", "collect.pairs_per_prompt=2"),
        *("reward.batch_size=16", "reward.held_out=0.25", "reward.learning_rate=1e-3"),
        *("ppo.iterations=2", "ppo.prompts_per_iteration=16", "ppo.minibatch_size=8", "ppo.learning_rate=1e-4"),
        "ppo.timeline_of=1",
    ]
    for pool in ("sft.resources", "reward.resources", "reward.actors", "rollout.resources", "learner.resources"):
        arguments.append(f"{pool}.cpus=0.1")
    run = Run(run_dir, tuple(arguments), ray_address)
    run.start(run_dir.parent / "log").finished()
    return run


def test_the_summary_names_its_instrument_and_invents_nothing(finished: Run) -> None:
    summary = json.loads((finished.directory / "summary.json").read_text())
    assert summary["policy"]["win_rate_judge"] == "toy-judge (the judge that trained it)"
    assert 0 <= summary["policy"]["win_rate"] <= 1
    assert summary["labeler"]["alignment"] is None, "nobody knows gold here"
    assert summary["labeler"]["calls"] > 0
    spent = summary["labeler"]["cost_usd"]
    rows = pq.read_table(finished.directory / "judgements" / "judgements.parquet").to_pylist()
    collected = sum(row["cost_usd"] for row in rows if not row["cache_hit"])
    assert spent > collected > 0, "the evaluation's calls cost too"
    tokens = sum(row["prompt_tokens"] for row in rows if not row["cache_hit"])
    completions = sum(row["completion_tokens"] for row in rows if not row["cache_hit"])
    assert collected == pytest.approx(tokens * 0.5e-6 + completions * 1e-6)
    assert summary["reward"]["accuracy_against"] == "judge"


def test_prompts_keep_their_form_in_the_preferences(finished: Run) -> None:
    rows = pq.read_table(finished.directory / "preferences" / "preferences.parquet").to_pylist()
    assert rows
    assert {row["judge"] for row in rows} == {"toy-judge"}
    roles = {tuple(message["role"] for message in row["prompt"]) for row in rows}
    assert ("system", "user") in roles
    assert ("user", "assistant", "user") in roles
    assert all(row["chosen"][0]["role"] == "assistant" for row in rows)


def test_either_stop_token_ends_an_answer_and_is_part_of_it(finished: Run) -> None:
    rows = pq.read_table(finished.directory / "samples" / "collect.parquet").to_pylist()
    stopped = [row for row in rows if row["finish_reason"] == "stop"]
    assert {row["answer_tokens"][-1] for row in stopped} == {1, 2}
    assert all(not {1, 2} & set(row["answer_tokens"][:-1]) for row in rows)
    assert all("<" not in row["answer"] for row in rows)


def test_the_models_load_where_users_will_load_them(finished: Run) -> None:
    models_directory = finished.directory / "models"
    policy = AutoModelForCausalLM.from_pretrained(models_directory / "policy")
    assert policy.generation_config.eos_token_id == [1, 2]
    assert AutoTokenizer.from_pretrained(models_directory / "policy").chat_template == CHAT_TEMPLATE
    reward = AutoModelForSequenceClassification.from_pretrained(models_directory / "reward")
    assert (reward.config.num_labels, reward.config.problem_type) == (1, "regression")
    assert reward.config.pad_token_id is not None


def test_a_timeline_of_the_asked_iteration_shows_its_stages_and_actors(finished: Run) -> None:
    (file,) = (finished.directory / "timeline").iterdir()
    assert file.name == "iteration-0000001.json"
    events = json.loads(file.read_text())["traceEvents"]
    rows = {event["tid"]: event["args"]["name"] for event in events if event["name"].endswith("_name")}
    spans = {(rows[event["tid"]], event["name"]) for event in events if event["ph"] == "X"}
    assert spans >= {
        *(("iteration", "iteration 1"), ("load", "load version 1"), ("generate", "generate 1")),
        *(("score", "score 1"), ("learn", "learn 1"), ("publish", "publish version 2")),
        *(("rollout-dispatcher", "call"), ("rollout-0", "load"), ("rollout-0", "generate")),
        *(("reward-0", "score"), ("learner-0", "step"), ("learner-0", "publish")),
    }
    assert "judge-pool" in rows.values(), "an actor that has nothing to do is shown too"


def test_the_key_is_nowhere(finished: Run) -> None:
    for path in finished.directory.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def test_a_finished_run_only_shows_its_summary(finished: Run, tmp_path: Path) -> None:
    before = (finished.directory / "summary.json").stat().st_mtime_ns
    assert "This run is finished. To start afresh" in finished.start(tmp_path / "log").finished()
    assert (finished.directory / "summary.json").stat().st_mtime_ns == before


def test_a_missing_key_is_one_sentence(finished: Run, tmp_path: Path) -> None:
    other = ("judge.api_key_env=RLAIF_NO_SUCH_KEY", f"run_dir={tmp_path / 'other'}")
    command = finished.start(tmp_path / "log", *other)
    assert command.exit_code() == 2
    last = command.output.strip().splitlines()[-1]
    assert "RLAIF_NO_SUCH_KEY" in last
    assert "judge.api_key_env" in last
    assert "Traceback" not in command.output
