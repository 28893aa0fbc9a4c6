"""The stage that revises: what it draws, what it keeps, and what a second start does again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlaif_ray.config import RunConfig, UserError
from rlaif_ray.console import Console
from rlaif_ray.constitution.chain import RevisionChain
from rlaif_ray.constitution.storage import read_chains
from rlaif_ray.pipeline import constituting
from rlaif_ray.pipeline.context import RunContext
from rlaif_ray.pipeline.fitting import fit_sft
from rlaif_ray.prompts import PromptSplit
from rlaif_ray.records import Chain, Demonstration, FinishReason, Prompt, Rollouts, SampleRequest, offsets_of
from rlaif_ray.samples import read_samples

RED = tuple(Prompt(f"red-{number}", f"harmful {number}") for number in range(5))
HELD_OUT = (Prompt("held-red", "harmful too"), Prompt("held-plain", "harmless"))


class Crash(Exception):
    """Stands for a SIGKILL."""


@dataclass
class PlainRuntime:
    """Engines that answer `plain`, find fault with it and call it `better`. The pool of `crashes_at` chains dies."""

    crashes_at: int | None = None
    kept: list[tuple[str, str]] = field(default_factory=list)
    begun: list[list[tuple[str, bool]]] = field(default_factory=list)  # chains by call: id, and whether answered
    closed: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    demonstrations: Sequence[Demonstration] = ()

    async def keep_model(self, name: str, key: str, directory: Path) -> None:
        self.kept.append((name, key))
        directory.mkdir(parents=True)

    async def revisers(self, model: Path) -> PlainPool:
        return PlainPool(self, model.name)

    async def fetch(self, shards: Sequence[Any]) -> list[Any]:
        return list(shards)

    async def fit_sft(self, demonstrations: Sequence[Demonstration]) -> None:
        self.demonstrations = demonstrations


@dataclass
class PlainPool:
    runtime: PlainRuntime
    model: str

    def generate(self, requests: Sequence[SampleRequest]) -> tuple[Rollouts, ...]:
        self.runtime.answered += [request.prompt.id for request in requests]
        count = len(requests)
        return (
            Rollouts(
                sample_ids=tuple(request.sample_id for request in requests),
                group_ids=tuple(request.group_id for request in requests),
                prompt_ids=tuple(request.prompt.id for request in requests),
                prompt_tokens=np.zeros(count, dtype=np.int32),
                prompt_offsets=offsets_of([1] * count),
                answer_tokens=np.ones(count, dtype=np.int32),
                answer_offsets=offsets_of([1] * count),
                logprobs=np.zeros(count, dtype=np.float32),
                token_versions=np.zeros(count, dtype=np.int32),
                finish_reasons=(FinishReason.STOP,) * count,
                version=0,
                fingerprint="",
            ),
        )

    def decode(self, shards: Sequence[Rollouts]) -> tuple[list[str], ...]:
        return tuple([f"plain of {self.model}"] * len(shard) for shard in shards)

    def converse(self, chains: Sequence[RevisionChain]) -> tuple[list[Chain], ...]:
        if self.runtime.crashes_at == len(self.runtime.begun):
            raise Crash
        self.runtime.begun.append([(chain.id, _is_answered(chain)) for chain in chains])
        return ([_drawn(chain) for chain in chains],)

    def close(self) -> None:
        self.runtime.closed.append(self.model)


def _is_answered(chain: RevisionChain) -> bool:
    """Whether it goes on from an answer: then it asks for a critique, in a conversation."""
    turn = chain.next()
    assert turn is not None
    return not isinstance(turn.request.prompt.content, str)


def _drawn(chain: RevisionChain) -> Chain:
    said = iter(["the plain answer is at fault", "better"])
    if not _is_answered(chain):
        chain.hear("plain", FinishReason.STOP)
    while chain.next() is not None:
        chain.hear(next(said), FinishReason.STOP)
    return chain.record()


@pytest.fixture(autouse=True)
def _chat_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constituting, "has_chat_template", lambda directory, **_: True)


def context(run_dir: Path, runtime: PlainRuntime, **constitution: object) -> RunContext:
    config = RunConfig.model_validate(
        {
            "run_dir": str(run_dir),
            "prompts": {"path": "p.jsonl"},
            "policy": {"model": "given"},
            "judge": {"model": "j"},
            "constitution": {"prompts": {"path": "red.jsonl"}, "rounds": 1, **constitution},
        }
    )
    made = RunContext(config, runtime, Console(stages=1))  # type: ignore[arg-type]
    made.__dict__["red_team"] = PromptSplit(train=RED, held_out=HELD_OUT[:1])
    made.__dict__["prompts"] = PromptSplit(train=RED, held_out=HELD_OUT)
    return made


async def test_the_policy_answers_and_revises_by_itself(tmp_path: Path) -> None:
    runtime = PlainRuntime()
    run = context(tmp_path, runtime)
    done = await constituting.constitute(run)
    assert runtime.kept == [("given", "policy.model")]
    assert runtime.begun == [[(prompt.id, False) for prompt in RED]]
    assert runtime.closed == ["initial"]
    assert [(chain.answer, chain.revisions[-1].text) for chain in read_chains(run.run.chains)] == [
        ("plain", "better")
    ] * len(RED)
    assert (done.constitution.chains, done.constitution.rounds, done.constitution.revised) == (5, 1, 5)
    # What it says before any training, to prompts that nothing is trained on.
    assert [sample.prompt_id for sample in read_samples(run.run.samples("initial"))] == [one.id for one in HELD_OUT]


async def test_another_model_revises_what_the_policy_answers(tmp_path: Path) -> None:
    runtime = PlainRuntime()
    run = context(tmp_path, runtime, model="helper")
    await constituting.constitute(run)
    assert runtime.kept == [("given", "policy.model"), ("helper", "constitution.model")]
    assert runtime.begun == [[(prompt.id, True) for prompt in RED]]
    assert runtime.closed == ["initial", "reviser"], "one gives way to the other"
    assert {chain.answer for chain in read_chains(run.run.chains)} == {"plain of initial"}


@pytest.mark.parametrize("helper", [None, "helper"])
async def test_a_second_start_draws_only_what_is_missing(
    tmp_path: Path, helper: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constituting, "_CHAINS_A_FILE", 2)
    killed = PlainRuntime(crashes_at=2)
    with pytest.raises(Crash):
        await constituting.constitute(context(tmp_path / "killed", killed, model=helper))
    again, whole = PlainRuntime(), PlainRuntime()
    resumed = context(tmp_path / "killed", again, model=helper)
    await constituting.constitute(resumed)
    assert [[id for id, _ in call] for call in again.begun] == [["red-4"]]
    assert again.answered == [], "answers are kept too"
    assert again.kept == []
    undisturbed = context(tmp_path / "whole", whole, model=helper)
    await constituting.constitute(undisturbed)
    assert read_chains(resumed.run.chains) == read_chains(undisturbed.run.chains)


async def test_a_model_without_turns_cannot_be_asked_to_revise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constituting, "has_chat_template", lambda directory, **_: directory.name == "initial")
    runtime = PlainRuntime()
    with pytest.raises(UserError, match=r"constitution\.model=helper: its tokenizer has no chat template"):
        await constituting.constitute(context(tmp_path, runtime, model="helper"))
    assert runtime.begun == []


async def test_a_bad_constitution_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    runtime = PlainRuntime()
    bad = tmp_path / "bad.yaml"
    bad.write_text("- id: only\n  text: Prefer the first.\n")
    with pytest.raises(UserError, match="critique"):
        await constituting.constitute(context(tmp_path / "run", runtime, principles=str(bad)))
    assert runtime.kept == []


async def test_sft_learns_from_revisions_and_from_their_share_of_demonstrations(tmp_path: Path) -> None:
    rows = tmp_path / "helpful.jsonl"
    rows.write_text("".join(f'{{"prompt": "help {n}", "answer": "of course"}}\n' for n in range(9)))
    runtime = PlainRuntime()
    run = context(tmp_path / "run", runtime, helpful_per_revision=0.4)
    sft = run.config.sft.model_copy(update={"demonstrations": str(rows)})
    run.config = run.config.model_copy(update={"sft": sft})
    await constituting.constitute(run)
    await fit_sft(run)
    answers = [demonstration.answer for demonstration in runtime.demonstrations]
    assert answers == ["better"] * 5 + ["of course"] * 2


async def test_sft_says_so_where_nothing_came_through_a_revision(tmp_path: Path) -> None:
    run = context(tmp_path, PlainRuntime())
    run.run.chains.mkdir(parents=True)
    with pytest.raises(UserError, match="constitution: no answer came through a revision"):
        await fit_sft(run)
