"""The workload: prompts and answers of the lengths that are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlaif_ray.policy.model import load_tokenizer
from rlaif_ray.prompts import encode_prompt
from scripts.benchmarks.ppo.layout import Layout
from scripts.benchmarks.ppo.workload import (
    TINY,
    Lengths,
    chance_of_ending,
    policy_bytes,
    prompt_tokens,
    read_prompts,
    run_config,
    write_workload,
)


@pytest.fixture(scope="module", params=get_args(Lengths))
def workload(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lengths]:
    directory = tmp_path_factory.mktemp(request.param)
    write_workload(directory, TINY, request.param)
    return directory, request.param


def test_the_chance_of_ending_makes_answers_half_as_long() -> None:
    """With q = 1 - p, answers of at most 4 tokens have 1 + q + q^2 + q^3 on average: that is 2 where q is the inverse
    of the tribonacci constant, 0.543689."""
    assert chance_of_ending(4) == pytest.approx(1 - 0.543689, abs=1e-6)


def test_the_policy_ends_answers_as_often_as_it_should(workload: tuple[Path, Lengths]) -> None:
    directory, lengths = workload
    policy = AutoModelForCausalLM.from_pretrained(directory / "policy")
    tokenizer = AutoTokenizer.from_pretrained(directory / "policy")
    prompts = torch.tensor(prompt_tokens(directory))
    drawing = torch.Generator().manual_seed(0)
    answers = torch.randint(5, TINY.vocabulary, (TINY.prompts, TINY.answer_tokens), generator=drawing)
    with torch.no_grad():
        chances = policy(torch.cat([prompts, answers], 1)).logits.softmax(-1).mean(dim=(0, 1))
    wanted = 0.0 if lengths == "fixed" else chance_of_ending(TINY.answer_tokens)
    assert float(chances[tokenizer.eos_token_id]) == pytest.approx(wanted, rel=0.1)
    assert float(chances[tokenizer.pad_token_id]) == 0.0


def test_prompts_have_their_length(workload: tuple[Path, Lengths]) -> None:
    prompts = prompt_tokens(workload[0])
    assert [len(prompt) for prompt in prompts] == [TINY.prompt_tokens] * TINY.prompts


def test_actors_see_the_tokens_that_the_peer_sees(workload: tuple[Path, Lengths]) -> None:
    """Actors read the tokenizer from its directory, where the model's type may call for another class."""
    directory = workload[0]
    for model in ("policy", "reference", "reward"):
        tokenizer = load_tokenizer(directory / model, trust_remote_code=False)
        assert [encode_prompt(tokenizer, prompt) for prompt in read_prompts(directory)] == prompt_tokens(directory)


def test_the_config_says_what_the_peer_does(workload: tuple[Path, Lengths]) -> None:
    config = run_config(workload[0], TINY, dtype="bfloat16", layout=Layout(2, 1, 2), old_logprobs="recompute")
    assert config.recomputes_old_logprobs
    assert (config.rollout.replicas, config.rollout.resources.threads, config.learner.resources.threads) == (2, 1, 2)
    assert config.ppo.prompts_per_iteration == TINY.minibatch * TINY.steps


def test_published_weights_are_counted_once_where_they_are_tied(workload: tuple[Path, Lengths]) -> None:
    """A Llama layer of width h and inner width i: 4 h^2 of attention, 3 h i, and two norms of h; beside them the
    embedding and the last norm. Here 2 (16384 + 24576 + 128) + 16384 + 64 = 98624."""
    assert policy_bytes(workload[0], "float32") == 4 * 98_624
    assert policy_bytes(workload[0], "bfloat16") == 2 * 98_624
