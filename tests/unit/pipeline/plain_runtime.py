"""A cluster of plain objects: a policy whose weights are how often it beats SFT, and stages that tell what they did."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlaif_ray.config import RunConfig
from rlaif_ray.console import Console
from rlaif_ray.judge.progress import JudgeProgress
from rlaif_ray.metrics import ANSWER_LENGTH, KL, REWARD_MEAN
from rlaif_ray.pipeline.context import Round, RunContext
from rlaif_ray.prompts import PromptSplit
from rlaif_ray.records import (
    FinishReason,
    Outcome,
    Pair,
    Preference,
    Prompt,
    Rollouts,
    SampleRequest,
    WeightVersion,
    offsets_of,
)
from rlaif_ray.rundir import write_atomically

HELD_OUT = 20
VALIDATED = 10
SFT_ANSWER, BETTER, WORSE = "0", "1", "-1"


class Crash(Exception):
    """Stands for a SIGKILL: what was not written by then is lost."""


@dataclass
class Faults:
    """Crashes at the call of this number."""

    at: int | None = None
    count: int = 0

    def pass_by(self) -> None:
        self.count += 1
        if self.count == self.at:
            raise Crash


@dataclass
class PlainRuntime:
    """`wins[iteration]` is the share of prompts on which the policy that it made beats SFT; before it, none."""

    run_dir: Path
    wins: Sequence[float]
    faults: Faults = field(default_factory=Faults)
    drawn: list[SampleRequest] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)  # of the judges of evaluation, by purpose
    judged: Outcome = Outcome.SCORED
    order: list[str] = field(default_factory=list)  # of draws and the learner's steps
    loaded: Any = None

    async def rollouts(self) -> PlainRuntime:
        return self

    async def load(self, version: WeightVersion) -> None:
        self.faults.pass_by()
        self.loaded = version.weights

    def generate(self, requests: Sequence[SampleRequest]) -> tuple[Rollouts, ...]:
        self.faults.pass_by()
        self.drawn += requests
        self.order.append("draw " + requests[0].sample_id.partition("/")[0])
        return (_rollouts(requests, self.loaded),)

    def decode(self, shards: tuple[Rollouts, ...]) -> tuple[list[str], ...]:
        return tuple([_TEXTS[int(shard.answer(row)[0])] for row in range(len(shard))] for shard in shards)

    def logprobs(self, shards: tuple[Rollouts, ...]) -> tuple[Any, ...]:
        return tuple(shard.logprobs for shard in shards)

    async def fetch(self, shards: tuple[Any, ...]) -> list[Any]:
        return list(shards)

    async def directory_version(self, directory: Path, number: int) -> WeightVersion:
        weights = "sft" if directory.name == "sft" else float((directory / "weights").read_text())
        return WeightVersion(number, "", weights, (), ())

    async def learner(self, models: Any, checkpoints: Path) -> PlainLearner:
        return PlainLearner(self.wins, checkpoints / "iteration", self.faults, self.order)

    async def rewards(self, directory: Path, prompts: Sequence[Prompt]) -> PlainReward:
        return PlainReward()

    async def watch(self, prompts: Sequence[Prompt]) -> None:
        return None

    async def judges(self) -> PlainRuntime:
        raise AssertionError("training's judge has nothing to say here")

    async def evaluation_judges(self) -> PlainRuntime:
        return self

    async def progress(self) -> JudgeProgress:
        return JudgeProgress(*[0] * 11)

    async def label(self, pairs: Sequence[Pair], purpose: str) -> list[Preference]:
        self.faults.pass_by()
        self.asked.append(purpose)
        return [_preference(pair, self.judged) for pair in pairs]


@dataclass
class PlainReward:
    def score(self, rollouts: Any) -> Any:
        return rollouts

    def close(self) -> None:
        pass


@dataclass
class PlainLearner:
    wins: Sequence[float]
    file: Path
    faults: Faults
    order: list[str]
    iteration: int = -1

    async def step(self, iteration: int, rollouts: Any, scores: Any) -> Mapping[str, float]:
        self.faults.pass_by()
        assert iteration == self.iteration + 1, "no iteration is left out or taken twice"
        self.iteration = iteration
        self.order.append(f"step {iteration}")
        await asyncio.sleep(0)  # a step takes time, in which an interruption may come
        return {REWARD_MEAN: 0.0, KL: 0.0, ANSWER_LENGTH: 1.0}

    async def publish(self) -> WeightVersion:
        self.faults.pass_by()
        return WeightVersion(self.iteration + 1, "", self._weights, (), ())

    async def checkpoint(self, iteration: int) -> None:
        self.faults.pass_by()
        write_atomically(self.file, str(iteration))
        self.faults.pass_by()

    async def resume(self) -> int | None:
        if not self.file.exists():
            return None
        self.iteration = int(self.file.read_text())
        return self.iteration

    async def save_policy(self, directory: Path) -> None:
        self.faults.pass_by()
        write_atomically(directory / "weights", str(self._weights))
        self.faults.pass_by()

    def close(self) -> None:
        pass

    @property
    def _weights(self) -> float:
        return 0.0 if self.iteration < 0 else self.wins[self.iteration]


_TEXTS = (WORSE, SFT_ANSWER, BETTER)


def _rollouts(requests: Sequence[SampleRequest], weights: Any) -> Rollouts:
    """One token an answer. The policy wins on the first prompts, loses on the others."""
    count = len(requests)
    wins = 0 if weights == "sft" else round(weights * count)
    tokens = np.ones(count) if weights == "sft" else np.where(np.arange(count) < wins, 2, 0)
    return Rollouts(
        sample_ids=tuple(request.sample_id for request in requests),
        group_ids=tuple(request.group_id for request in requests),
        prompt_ids=tuple(request.prompt.id for request in requests),
        prompt_tokens=np.zeros(count, dtype=np.int32),
        prompt_offsets=offsets_of([1] * count),
        answer_tokens=tokens.astype(np.int32),
        answer_offsets=offsets_of([1] * count),
        logprobs=np.full(count, -1.0, dtype=np.float32),
        token_versions=np.zeros(count, dtype=np.int32),
        finish_reasons=(FinishReason.STOP,) * count,
        version=0,
        fingerprint="",
    )


def _preference(pair: Pair, outcome: Outcome) -> Preference:
    p = float(float(pair.response_a) > float(pair.response_b)) if outcome is Outcome.SCORED else None
    return Preference(pair, outcome, "" if p is not None else "no reply", p, None, ())


def plain_context(runtime: PlainRuntime, **ppo: Any) -> RunContext:
    """Of one round; a judge that training does not use decides."""
    tree = {
        "run_dir": str(runtime.run_dir),
        "prompts": {"path": "p.jsonl"},
        "policy": {"model": "m"},
        "judge": {"model": "trainer"},
        "ppo": {"iterations": len(runtime.wins), "prompts_per_iteration": 3, "checkpoint_every": 3, **ppo},
        "evaluation": {"judge": {"model": "outsider"}, "validation_prompts": VALIDATED},
    }
    config = RunConfig.model_validate(tree)
    context = RunContext(config, runtime, Console(stages=1, stream=io.StringIO()))  # type: ignore[arg-type]
    # What a tokenizer would have let through.
    prompts = PromptSplit(
        train=tuple(Prompt(f"train-{number}", "text") for number in range(30)),
        held_out=tuple(Prompt(f"held-out-{number}", "text") for number in range(HELD_OUT)),
    )
    validates = config.ppo.evaluate_every is not None
    context.__dict__["prompts"] = prompts.with_validation(VALIDATED) if validates else prompts
    return context


def only_round(context: RunContext) -> Round:
    return context.round(1)
