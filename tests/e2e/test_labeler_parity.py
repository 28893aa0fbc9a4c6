"""One model gives the same probabilities through vLLM's API server and as a local labeler."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import ray
from small_chat_model import write_chat_model
from vllm_server import vllm_server

from actors.spawn import process_environment
from rlaif_ray.config import ActorResources, EndpointConfig
from rlaif_ray.engines.vllm_labeler import VllmLabeler
from rlaif_ray.judge.asking.ladder import read_choice, read_confined
from rlaif_ray.judge.asking.replies import Completion, read_completion
from rlaif_ray.judge.client import JudgeClient
from rlaif_ray.judge.request import Form, Reply, Request
from rlaif_ray.judge.templates import load_template
from rlaif_ray.records import Order, Pair, Prompt

NAME, KEY = "small", "sk-parity-19c2"
TEMPLATE = load_template("quality")
PAIRS = [
    Pair(f"pair-{number}", Prompt(f"prompt-{number}", f"Say {number}."), "One, two. " * (number + 1), "Three; four?")
    for number in range(4)
]
QUESTIONS = [TEMPLATE.question(pair, order) for pair in PAIRS for order in (Order.AB, Order.BA)]

CHOICES = [Request(question.choose(), top_logprobs=20) for question in QUESTIONS]
CONFINED = [replace(request, form=Form.CHOICE, choices=TEMPLATE.labels) for request in CHOICES]
PREFILLED = [replace(request, prefill="My verdict:\n\n") for request in CHOICES]
TEXTS = [Request(question.reason(), max_tokens=12) for question in QUESTIONS[:4]]
BOUND = [
    Request(question.state(Form.SCHEMA), max_tokens=24, form=Form.SCHEMA, schema=TEMPLATE.verdict_schema)
    for question in QUESTIONS[:2]
]
ASKED = [*CHOICES, *CONFINED, *PREFILLED, *TEXTS, *BOUND]

Both = dict[Request, tuple[Completion, Completion]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, local_ray: None, monkeypatch_module: pytest.MonkeyPatch) -> Both:
    """What the server and the labeler reply to each request, and that both count its tokens alike."""
    model = write_chat_model(tmp_path_factory.mktemp("model"))
    monkeypatch_module.setenv("RLAIF_PARITY_KEY", KEY)
    with vllm_server(model, NAME, KEY) as url:
        served = asyncio.run(_ask_server(url))
    labeler = (
        ray.remote(VllmLabeler)
        .options(runtime_env={"env_vars": process_environment(ActorResources(cpus=1))})
        .remote(str(model), threads=1, max_context_tokens=4096, gpu_memory_utilization=0.5, trust_remote_code=False)
    )
    local = ray.get(labeler.complete.remote(ASKED))
    ray.kill(labeler)
    for mine, theirs in zip(local, served, strict=True):
        assert isinstance(mine, Reply), mine
        assert (mine.prompt_tokens, mine.completion_tokens) == (theirs.prompt_tokens, theirs.completion_tokens)
    return {
        request: (read_completion(theirs.text), read_completion(mine.text))
        for request, theirs, mine in zip(ASKED, served, local, strict=True)
    }


async def _ask_server(url: str) -> list[Reply]:
    client = JudgeClient(EndpointConfig(model=NAME, base_url=url, api_key_env="RLAIF_PARITY_KEY"))
    completions = [await client.complete(request, "key") for request in ASKED]
    await client.close()
    return [completion.reply for completion in completions]


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def p_first(completion: Completion, request: Request) -> float:
    reading = (
        read_confined(completion, TEMPLATE.labels)
        if request.form is Form.CHOICE
        else read_choice(completion, TEMPLATE.labels, 0.0)
    )
    assert reading is not None
    assert reading.p_first is not None, reading.reason
    assert reading.logprob_first is not None
    return reading.p_first


@pytest.mark.parametrize("requests", [CHOICES, CONFINED, PREFILLED], ids=["choice", "confined", "prefilled"])
def test_probabilities_are_the_same(both: Both, requests: list[Request]) -> None:
    values = []
    for request in requests:
        served, local = (p_first(completion, request) for completion in both[request])
        assert local == pytest.approx(served, abs=1e-3)
        values.append(served)
    # Not one number for all: the model reads.
    assert max(values) - min(values) > 0.01
    assert all(math.isfinite(value) for value in values)


def test_a_mask_leaves_the_ratio_of_the_labels_as_it_was(both: Both) -> None:
    for choice, confined in zip(CHOICES, CONFINED, strict=True):
        _, free = both[choice]
        _, masked = both[confined]
        assert p_first(masked, confined) == pytest.approx(p_first(free, choice), abs=1e-3)
        assert sum(math.exp(entry.logprob) for entry in masked.top_tokens(0) if entry.token in TEMPLATE.labels) == (
            pytest.approx(1.0, abs=1e-3)
        )


@pytest.mark.parametrize("requests", [TEXTS, BOUND], ids=["text", "bound"])
def test_words_are_the_same(both: Both, requests: list[Request]) -> None:
    for request in requests:
        served, local = both[request]
        assert local.text == served.text != ""
        assert local.finish_reason == served.finish_reason


def test_a_schema_binds_both(both: Both) -> None:
    for request in BOUND:
        assert all(completion.text.lstrip().startswith("{") for completion in both[request])
