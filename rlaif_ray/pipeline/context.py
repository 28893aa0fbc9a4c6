"""What the steps of a run share: its config, its cluster, its directory, and the few things that all of them do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rlaif_ray.config import JudgeConfig, PromptsConfig, RunConfig, Stopped, UserError
from rlaif_ray.console import Console
from rlaif_ray.judge.offline import prices_of
from rlaif_ray.labelling import over_budget_stop
from rlaif_ray.metrics import MetricsLog
from rlaif_ray.prompts import PromptSplit, encode_prompt, gold_of, read_prompts
from rlaif_ray.records import Pair, Preference, Prompt, Rollouts, SampleRequest
from rlaif_ray.rundir import RunDirectory
from rlaif_ray.samples import Sample, read_samples, samples_of
from rlaif_ray.stages import JudgeStage, RolloutPool, Runtime, Shards

T = TypeVar("T")

_POLL_S = 0.5
_DRAWN_AT_ONCE = 2_048


@dataclass(frozen=True, slots=True)
class Round:
    """One round: its number from 1, where it keeps what it makes, and the round before."""

    number: int
    directory: RunDirectory
    previous: Round | None

    def named(self, purpose: str) -> str:
        """A purpose that no other round has. The first round's is the purpose itself."""
        return purpose if self.number == 1 else f"{purpose}-{self.number}"

    def so_far(self) -> list[Round]:
        """The rounds up to this one, in order."""
        return [*(self.previous.so_far() if self.previous else []), self]


class RunContext:
    def __init__(self, config: RunConfig, runtime: Runtime, console: Console) -> None:
        """Raises UserError where gold is to decide and the prompts' source knows none."""
        self.config = config
        self.runtime = runtime
        self.console = console
        self.run = RunDirectory(config.run_dir)
        self.metrics = MetricsLog(self.run.metrics)
        self.gold = gold_of(config.prompts)
        if config.evaluation.instrument == "gold" and self.gold is None:
            raise UserError("evaluation.instrument=gold: the prompts' source knows no gold; set it to judge")

    def directory(self, number: int | None) -> RunDirectory:
        """Where a round keeps what it makes; the run's own directory for the last round, and for no round."""
        return (
            self.run if number in (None, self.config.rounds) else RunDirectory(self.run.path / "rounds" / str(number))
        )

    def round(self, number: int) -> Round:
        previous = self.round(number - 1) if number > 1 else None
        return Round(number, self.directory(number), previous)

    def policy_before(self, round: Round) -> Path:
        """The policy that a round starts from: SFT's, or the one that the round before made."""
        return self.run.model("sft") if round.previous is None else round.previous.directory.model("policy")

    @cached_property
    def tokenizer(self) -> Any:
        """The policy's."""
        from rlaif_ray.policy.model import load_tokenizer

        return load_tokenizer(self.run.model("sft"), trust_remote_code=self.config.policy.trust_remote_code)

    @cached_property
    def red_team(self) -> PromptSplit:
        """The constitution's red-team prompts that are no longer than the policy takes; none without a constitution."""
        constitution = self.config.constitution
        if constitution is None:
            return PromptSplit(train=(), held_out=())
        return self._fitting(constitution.prompts, "constitution.prompts")

    @cached_property
    def prompts(self) -> PromptSplit:
        """What the policy is trained and evaluated on: the source's prompts that are no longer than the policy takes,
        and the red-team prompts beside them."""
        split = self._fitting(self.config.prompts, "prompts")
        if self.config.constitution is not None:
            split = _joined(split, self.red_team, self.config.seed)
        validates = self.config.ppo.evaluate_every is not None
        return split.with_validation(self.config.evaluation.validation_prompts) if validates else split

    @property
    def compared_prompts(self) -> tuple[Prompt, ...]:
        """Those whose answers are compared to learn preferences: red-team prompts, where there is a constitution."""
        return self.prompts.train if self.config.constitution is None else self.red_team.train

    def _fitting(self, source: PromptsConfig, key: str) -> PromptSplit:
        """The source's prompts that are no longer than the policy takes."""
        split = read_prompts(source, self.config.seed, key)
        limit, tokenizer = self.config.policy.max_prompt_tokens, self._prompts_tokenizer

        def fitting(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
            return tuple(prompt for prompt in prompts if len(encode_prompt(tokenizer, prompt)) <= limit)

        kept = PromptSplit(train=fitting(split.train), held_out=fitting(split.held_out))
        if not kept.train or not kept.held_out:
            raise UserError(f"policy.max_prompt_tokens={limit}: too few of {key} are so short; raise it")
        dropped = len(split.train) + len(split.held_out) - len(kept.train) - len(kept.held_out)
        if dropped:
            self.console.say(f"  {dropped} of {key} exceed policy.max_prompt_tokens={limit} and are left out")
        return kept

    @property
    def _prompts_tokenizer(self) -> Any:
        """The policy's, before and after SFT."""
        from rlaif_ray.policy.model import load_tokenizer
        from rlaif_ray.toyworld.models import model_path

        if self.run.model("sft").exists():
            return self.tokenizer
        assert self.config.policy.model is not None  # one that is built from scratch has an SFT stage first
        return load_tokenizer(
            model_path(self.config.policy.model), trust_remote_code=self.config.policy.trust_remote_code
        )

    def collected_samples(self, rounds: Sequence[Round]) -> list[Sample]:
        """The answers that these rounds collected; rounds that collect nothing have none."""
        files = [round.directory.samples("collect") for round in rounds]
        return [sample for file in files if file.exists() for sample in read_samples(file)]

    async def draw(
        self, model: Path, number: int, requests: Sequence[SampleRequest]
    ) -> tuple[Shards[Rollouts], list[Sample]]:
        """One answer a request from a model of the run, with progress shown."""
        rollouts = await self.runtime.rollouts()
        await rollouts.load(await self.runtime.directory_version(model, number))
        return await self.answers(
            requests, lambda drawn: self.console.advance(drawn, len(requests), f"answers of {model.name}")
        )

    async def answers(
        self,
        requests: Sequence[SampleRequest],
        on_drawn: Callable[[int], None] = lambda drawn: None,
        *,
        pool: RolloutPool | None = None,
    ) -> tuple[Shards[Rollouts], list[Sample]]:
        """One answer a request from the weights that are loaded, as shards on the cluster and as rows to keep: those of
        the rollouts, or of another `pool`. `on_drawn` hears how many there are so far."""
        rollouts = pool or await self.runtime.rollouts()
        shards: list[Any] = []
        samples: list[Sample] = []
        for start in range(0, len(requests), _DRAWN_AT_ONCE):
            chunk = rollouts.generate(requests[start : start + _DRAWN_AT_ONCE])
            for shard, texts in zip(
                await self.runtime.fetch(chunk), await self.runtime.fetch(rollouts.decode(chunk)), strict=True
            ):
                drawn = requests[len(samples) : len(samples) + len(shard)]
                samples += samples_of(shard, texts, [request.prompt for request in drawn])
            shards += chunk
            on_drawn(len(samples))
        return tuple(shards), samples

    async def label(self, pairs: Sequence[Pair], purpose: str) -> list[Preference]:
        """What the judges that training learns from hold of the pairs, with their progress shown. Raises Stopped where
        a budget left some without a judgement and the config says to stop."""
        return await self._labelled(await self.runtime.judges(), "judge", self.config.judge, pairs, purpose)

    async def evaluation_label(self, pairs: Sequence[Pair], purpose: str, *, progress: bool) -> list[Preference]:
        """What the judges that evaluation asks hold of the pairs. Raises as `label` does."""
        own = self.config.evaluation.judge
        key, config = ("judge", self.config.judge) if own is None else ("evaluation.judge", own)
        return await self._labelled(
            await self.runtime.evaluation_judges(), key, config, pairs, purpose, progress=progress
        )

    async def _labelled(
        self,
        judges: JudgeStage,
        key: str,
        config: JudgeConfig,
        pairs: Sequence[Pair],
        purpose: str,
        *,
        progress: bool = True,
    ) -> list[Preference]:
        before = (await judges.progress()).pairs

        async def show() -> None:
            counts = await judges.progress()
            spent = f", ${counts.cost_usd:.2f}" if counts.cost_usd else ""
            note = f"{counts.actors} judge actors, {counts.abstained} abstained, {counts.failed} failed{spent}"
            self.console.advance(counts.pairs - before, len(pairs), note)

        labelling = judges.label(pairs, purpose)
        preferences = await (shown(labelling, show) if progress else labelling)
        stop = over_budget_stop(preferences, config, key=key)
        if stop is not None:
            raise Stopped(stop)
        return preferences

    async def spent_usd(self) -> float | None:
        """What the run and its resumptions paid the judges that training learns from; None where calls have no
        price."""
        if not any(prices_of(self.config.judge)):
            return None
        return (await (await self.runtime.judges()).totals()).spent_usd

    async def evaluation_spent_usd(self) -> float | None:
        """What they paid a judge of evaluation's own; None where it has none, or calls have no price."""
        evaluation = self.config.evaluation
        if evaluation.instrument == "gold" or evaluation.judge is None or not any(prices_of(evaluation.judge)):
            return None
        return (await (await self.runtime.evaluation_judges()).totals()).spent_usd

    async def fitted(self, directory: RunDirectory, stages: Sequence[str], fit: Awaitable[T]) -> T:
        """Wait for a batch trainer and show how far the metrics in `directory` say it is; stages of an ensemble's
        members begin with one of `stages`."""

        async def show() -> None:
            if not directory.metrics.exists():
                return
            rows = [row for row in MetricsLog(directory.metrics).read() if row.stage.startswith(tuple(stages))]
            if rows:
                newest = max(rows, key=lambda row: row.time)
                values = ", ".join(f"{name} {value:.3g}" for name, value in newest.values.items())
                note = values if newest.stage == stages[0] else f"{newest.stage}: {values}"
                self.console.advance(newest.step, newest.total, note)

        return await shown(fit, show)


def _joined(ordinary: PromptSplit, red_team: PromptSplit, seed: int) -> PromptSplit:
    """Both kinds of prompt, those held out in a drawn order, so that any first so many of them are of both kinds. What
    stands in both sources is a red-team prompt."""
    known = {prompt.content for prompt in (*red_team.train, *red_team.held_out)}

    def alone(prompts: Sequence[Prompt]) -> list[Prompt]:
        return [prompt for prompt in prompts if prompt.content not in known]

    held_out = [*alone(ordinary.held_out), *red_team.held_out]
    order = np.random.default_rng(seed).permutation(len(held_out))
    return PromptSplit(
        train=(*alone(ordinary.train), *red_team.train), held_out=tuple(held_out[index] for index in order)
    )


async def shown(work: Awaitable[T], show: Callable[[], Awaitable[None]]) -> T:
    """Wait for `work` and show its progress meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait([task], timeout=_POLL_S))[0]:
            await show()
        return task.result()
    finally:
        task.cancel()
