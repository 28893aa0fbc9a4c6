"""`rlaif serve-reward` as a user runs it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from rlaif_ray.policy.model import load_tokenizer
from rlaif_ray.prompts import encode_answer, encode_prompt
from rlaif_ray.records import FinishReason, Prompt, Rollouts, offsets_of
from rlaif_ray.reward.ensemble import RewardEnsemble, ensemble_scores, normalised
from rlaif_ray.reward.scoring import rollout_sequences
from tests.small_models import write_models

KEY_VARIABLE, KEY = "RLAIF_TEST_SERVER_KEY", "sk-serve-reward-3e90"
PATIENCE_S = 180


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


def start(directory: Path, ray_address: str, *overrides: str) -> subprocess.Popen[str]:
    """The command as the leader of a process group, as in a terminal; at the address "local" with a Ray of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "rlaif_ray", "serve-reward", str(directory), "actors.cpus=0.1", *overrides],
        env={**os.environ, KEY_VARIABLE: KEY, "RAY_ADDRESS": ray_address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextmanager
def serving(
    directory: Path, ray_address: str, *overrides: str
) -> Iterator[tuple[subprocess.Popen[str], httpx2.Client]]:
    process = start(directory, ray_address, "port=0", f"api_key_env={KEY_VARIABLE}", *overrides)
    try:
        assert process.stdout is not None
        # Before it serves it may say what it waits for.
        found = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+", line) for line in process.stdout)), None)
        assert found is not None, process.communicate(timeout=PATIENCE_S)[1]
        with httpx2.Client(base_url=found[0], headers={"Authorization": f"Bearer {KEY}"}, timeout=PATIENCE_S) as client:
            yield process, client
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def rollouts_of(tokenizer: Any, texts: list[tuple[str, str]]) -> Rollouts:
    """What a policy would have drawn, had it said so."""
    prompts = [encode_prompt(tokenizer, Prompt("p", prompt)) for prompt, _ in texts]
    answers = [encode_answer(tokenizer, answer, tokenizer.eos_token_id) for _, answer in texts]
    names = tuple(str(number) for number in range(len(texts)))
    return Rollouts(
        sample_ids=names,
        group_ids=names,
        prompt_ids=names,
        prompt_tokens=np.concatenate(prompts).astype(np.int32),
        prompt_offsets=offsets_of([len(prompt) for prompt in prompts]),
        answer_tokens=np.concatenate(answers).astype(np.int32),
        answer_offsets=offsets_of([len(answer) for answer in answers]),
        logprobs=np.zeros(sum(len(answer) for answer in answers), dtype=np.float32),
        token_versions=np.ones(sum(len(answer) for answer in answers), dtype=np.int32),
        finish_reasons=(FinishReason.STOP,) * len(texts),
        version=1,
        fingerprint="",
    )


def scores_in_a_run(sft: Path, reward: Path, texts: list[tuple[str, str]]) -> list[float]:
    """Of the token ids that a policy drew, as reward actors score them."""
    ensemble = RewardEnsemble.load(reward, dtype="float32", trust_remote_code=False, device="cpu")
    rollouts = rollouts_of(load_tokenizer(sft, trust_remote_code=False), texts)
    raw = ensemble.raw_scores(rollouts.sample_ids, rollout_sequences(rollouts), max_batch_tokens=8192)
    scores = ensemble_scores(rollouts.sample_ids, normalised(raw, ensemble.normalisations), disagreement_penalty=0.0)
    assert scores.valid.all()
    return scores.values.tolist()


def test_over_http_a_text_has_the_score_that_it_has_in_a_run(models: tuple[Path, Path], ray_address: str) -> None:
    texts = [("one two", "three"), ("four", "five six seven"), ("eight nine ten", "one")]
    with serving(models[1], ray_address) as (process, client):
        assert client.get("/healthz").json()["status"] == "ok"
        assert httpx2.get(f"{client.base_url}/docs").status_code == 200
        assert httpx2.get(f"{client.base_url}/v1/versions").status_code == 401
        reply = client.post("/v1/score", json={"items": [{"prompt": a, "answer": b} for a, b in texts]})
        items = reply.json()["items"]
        assert [item["outcome"] for item in items] == ["scored"] * 3
        np.testing.assert_allclose([item["score"] for item in items], scores_in_a_run(*models, texts), rtol=1e-4)
        refused = client.post("/v1/versions", json={"directory": str(models[0])})
        assert (refused.status_code, "reward_normalisation.json" in refused.json()["detail"]) == (422, True)
        os.killpg(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, "Traceback" in errors) == (0, False), errors


def test_ctrl_c_answers_what_is_under_way(models: tuple[Path, Path]) -> None:
    """With a Ray of its own, which the signal reaches as well. One answer a forward, so that the call takes a while."""
    call = {
        "items": [{"prompt": "one two", "answer": f"{word} three four"} for word in ("five", "six") for _ in range(400)]
    }
    with serving(models[1], "local", "max_batch_tokens=1") as (process, client), ThreadPoolExecutor(1) as thread:
        under_way = thread.submit(client.post, "/v1/score", json=call)
        deadline = time.monotonic() + PATIENCE_S
        while not httpx2.get(f"{client.base_url}/healthz").json()["waiting"]:
            assert time.monotonic() < deadline
            assert not under_way.done()
        os.killpg(process.pid, signal.SIGINT)
        reply = under_way.result(PATIENCE_S)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert reply.status_code == 200
    assert [item["outcome"] for item in reply.json()["items"]] == ["scored"] * 800
    assert (process.returncode, "Traceback" in errors) == (0, False), errors


def test_what_is_wrong_is_one_sentence(models: tuple[Path, Path], ray_address: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wrong = [
            (start(tmp_path, ray_address, "port=0"), f"{tmp_path} holds no reward model"),
            (start(models[1], ray_address, f"port={port}"), f"port={port}: cannot listen on 127.0.0.1"),
            (
                start(models[1], ray_address, "host=0.0.0.0", "api_key_env=RLAIF_NO_SUCH_KEY"),
                "RLAIF_NO_SUCH_KEY is not set",
            ),
        ]
        for process, sentence in wrong:
            _, errors = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 2
            (line,) = errors.splitlines()
            assert line.startswith("rlaif: ")
            assert sentence in line
