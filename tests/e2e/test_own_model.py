"""A user's own model, prompts and judge: the whole recipe against vLLM's API server on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
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
from tests.vllm_server import vllm_server

ROOT = Path(__file__).parents[2]
KEY_VARIABLE = "RLAIF_OWN_MODEL_KEY"
KEY = "sk-own-model-51d3c07b"
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


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, judge_url: str, model: Path, prompts: Path
) -> tuple[Path, list[str]]:
    """A run's directory and the command that made it."""
    run_dir = tmp_path_factory.mktemp("runs") / "own"
    command = [
        *(sys.executable, "-m", "rlaif_ray", "run", str(ROOT / "scripts" / "configs" / "own_model.yaml")),
        *(f"policy.model={model}", f"prompts.path={prompts}", f"run_dir={run_dir}"),
        *(f"judge.base_url={judge_url}", "judge.model=toy-judge", f"judge.api_key_env={KEY_VARIABLE}"),
        *("judge.price.input=0.5", "judge.price.output=1.0"),
        *("judge.template=headlines", "judge.min_label_mass=0.01", "judge.actors.cpus=0.1"),
        *("policy.dtype=float32", "policy.max_prompt_tokens=40", "policy.max_answer_tokens=8"),
        *("collect.prompts=24", "collect.answers_per_prompt=3", "collect.pairs_per_prompt=2"),
        *("reward.batch_size=16", "reward.held_out=0.25", "reward.learning_rate=1e-3"),
        *("ppo.iterations=2", "ppo.prompts_per_iteration=16", "ppo.minibatch_size=8", "ppo.learning_rate=1e-4"),
    ]
    for pool in ("sft.resources", "reward.resources", "reward.actors", "rollout.resources", "learner.resources"):
        command.append(f"{pool}.cpus=0.1")
    done = subprocess.run(
        command,
        cwd=run_dir.parent,
        env=os.environ | {KEY_VARIABLE: KEY},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return run_dir, command


def test_the_summary_names_its_instrument_and_invents_nothing(finished: tuple[Path, list[str]]) -> None:
    summary = json.loads((finished[0] / "summary.json").read_text())
    assert summary["policy"]["win_rate_judge"] == "toy-judge (the judge that trained it)"
    assert 0 <= summary["policy"]["win_rate"] <= 1
    assert summary["labeler"]["alignment"] is None, "nobody knows gold here"
    assert summary["labeler"]["calls"] > 0
    spent = summary["labeler"]["cost_usd"]
    rows = pq.read_table(finished[0] / "judgements" / "judgements.parquet").to_pylist()
    collected = sum(row["cost_usd"] for row in rows if not row["cache_hit"])
    assert spent > collected > 0, "the evaluation's calls cost too"
    tokens = sum(row["prompt_tokens"] for row in rows if not row["cache_hit"])
    completions = sum(row["completion_tokens"] for row in rows if not row["cache_hit"])
    assert collected == pytest.approx(tokens * 0.5e-6 + completions * 1e-6)
    assert summary["reward"]["accuracy_against"] == "judge"


def test_prompts_keep_their_form_in_the_preferences(finished: tuple[Path, list[str]]) -> None:
    rows = pq.read_table(finished[0] / "preferences" / "preferences.parquet").to_pylist()
    assert rows
    assert {row["judge"] for row in rows} == {"toy-judge"}
    roles = {tuple(message["role"] for message in row["prompt"]) for row in rows}
    assert ("system", "user") in roles
    assert ("user", "assistant", "user") in roles
    assert all(row["chosen"][0]["role"] == "assistant" for row in rows)


def test_either_stop_token_ends_an_answer_and_is_part_of_it(finished: tuple[Path, list[str]]) -> None:
    rows = pq.read_table(finished[0] / "samples" / "collect.parquet").to_pylist()
    stopped = [row for row in rows if row["finish_reason"] == "stop"]
    assert {row["answer_tokens"][-1] for row in stopped} == {1, 2}
    assert all(not {1, 2} & set(row["answer_tokens"][:-1]) for row in rows)
    assert all("<" not in row["answer"] for row in rows)


def test_the_models_load_where_users_will_load_them(finished: tuple[Path, list[str]]) -> None:
    models_directory = finished[0] / "models"
    policy = AutoModelForCausalLM.from_pretrained(models_directory / "policy")
    assert policy.generation_config.eos_token_id == [1, 2]
    assert AutoTokenizer.from_pretrained(models_directory / "policy").chat_template == CHAT_TEMPLATE
    reward = AutoModelForSequenceClassification.from_pretrained(models_directory / "reward")
    assert (reward.config.num_labels, reward.config.problem_type) == (1, "regression")
    assert reward.config.pad_token_id is not None


def test_the_key_is_nowhere(finished: tuple[Path, list[str]]) -> None:
    for path in finished[0].rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def test_a_finished_run_only_shows_its_summary(finished: tuple[Path, list[str]]) -> None:
    run_dir, command = finished
    before = (run_dir / "summary.json").stat().st_mtime_ns
    again = subprocess.run(
        command, cwd=run_dir.parent, env=os.environ | {KEY_VARIABLE: KEY}, capture_output=True, text=True, check=True
    )
    assert "This run is finished. To start afresh" in again.stdout
    assert (run_dir / "summary.json").stat().st_mtime_ns == before


def test_a_missing_key_is_one_sentence(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    run_dir, command = finished
    arguments = [f"run_dir={tmp_path / 'other'}" if part.startswith("run_dir=") else part for part in command]
    environment = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
    done = subprocess.run(
        arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert KEY_VARIABLE in last
    assert "judge.api_key_env" in last
    assert "Traceback" not in done.stderr
    assert run_dir.exists()
