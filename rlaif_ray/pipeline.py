"""The whole recipe: SFT, collect, reward model, policy, evaluate, report.

Each stage leaves its results in the run directory, last of all a record that it is done, and is skipped where that
record is: to run a command again is to resume. This module knows stages, records and files; the runtime knows the
cluster, and nothing here asks where prompts came from or who the judge is.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from rlaif_ray.config import RunConfig, Stopped, UserError
from rlaif_ray.console import Console
from rlaif_ray.evaluation.held_out import HeldOutPair, write_held_out
from rlaif_ray.evaluation.run import (
    Verdicts,
    gold_verdicts,
    judge_verdicts,
    labeler_summary,
    policy_summary,
    reward_summary,
    write_comparisons,
)
from rlaif_ray.judge.hygiene import normalised
from rlaif_ray.judge.offline import prices_of
from rlaif_ray.labelling import over_budget_stop
from rlaif_ray.loop import OnlineStages, train_on_policy
from rlaif_ray.metrics import ANSWER_LENGTH, KL, PPO, REWARD, REWARD_MEAN, SFT, MetricsLog
from rlaif_ray.preferences.dataset import (
    PreferenceRow,
    preference_rows,
    read_preferences,
    write_judgements,
    write_preferences,
)
from rlaif_ray.preferences.pairing import Answer, AnsweredPrompt, draw_pairs
from rlaif_ray.prompts import (
    Gold,
    PromptSplit,
    encode_prompt,
    gold_of,
    read_demonstrations,
    read_prompts,
    sample_requests,
    take,
)
from rlaif_ray.records import LabelledPair, Pair, Preference, Prompt, Rollouts, SampleRequest
from rlaif_ray.report.html import write_report
from rlaif_ray.report.summary import (
    LabelerSummary,
    PolicySummary,
    RewardSummary,
    StageSummary,
    Summary,
    read_summary,
    training_judge,
    write_summary,
)
from rlaif_ray.rundir import RunDirectory
from rlaif_ray.samples import Sample, read_samples, rollouts_of, samples_of, write_samples
from rlaif_ray.stages import Runtime, Shards

T = TypeVar("T")
Record = TypeVar("Record", bound=BaseModel)

_POLL_S = 0.5
_DRAWN_AT_ONCE = 2_048


class Stage(StrEnum):
    """The recipe's stages, in order. Each is a command of its own."""

    SFT = "sft"
    COLLECT = "collect"
    REWARD = "fit-reward"
    TRAIN = "train"
    EVALUATE = "evaluate"
    REPORT = "report"


class Done(BaseModel):
    """What a finished stage records; stages that measure something add it."""

    model_config = ConfigDict(frozen=True)

    wall_s: float


class Collected(Done):
    labeler: LabelerSummary
    not_sent: int  # pairs that were drawn and were not worth a judgement


class Trained(Done):
    resumed_from: int | None  # the last iteration that a checkpoint held when training went on


class Evaluated(Done):
    reward: RewardSummary
    policy: PolicySummary
    spent_usd: float | None = None  # on the judge, up to here, where the judge decided


class Pipeline:
    """One run. The runtime starts what stages ask it for, so a stage that is done costs nothing."""

    def __init__(self, config: RunConfig, runtime: Runtime, console: Console) -> None:
        self._config = config
        self._runtime = runtime
        self._console = console
        self._run = RunDirectory(config.run_dir)
        self._metrics = MetricsLog(self._run.metrics)

    async def run(self, only: Stage | None = None) -> Summary | None:
        """Run the stages that are not done yet, or one alone. Returns the summary once there is one.

        Raises UserError when a stage alone lacks what an earlier one makes.
        """
        stages: dict[Stage, tuple[str, type[Done], Callable[[], Awaitable[Done]]]] = {
            Stage.SFT: ("the policy learns from demonstrations", Done, self._sft),
            Stage.COLLECT: ("the policy answers, the judge compares", Collected, self._collect),
            Stage.REWARD: ("a reward model learns the judge's preferences", Done, self._fit_reward),
            Stage.TRAIN: ("PPO against the reward model", Trained, self._train),
            Stage.EVALUATE: ("the new policy against SFT, on held-out prompts", Evaluated, self._evaluate),
            Stage.REPORT: ("summary.json and report.html", Done, self._report),
        }
        self._run.open(self._config)
        for stage, (what, kind, work) in stages.items():
            if self._run.result(stage, kind) is not None:
                if only in (None, stage):
                    self._console.skip(stage)
                continue
            if only not in (None, stage):
                if list(Stage).index(stage) < list(Stage).index(only):
                    raise UserError(f"{only} needs what `rlaif {stage}` makes, and {self._run.path} does not hold it")
                continue
            self._console.stage(stage, what)
            begun = time.monotonic()
            done = await work()
            self._run.finish(stage, done.model_copy(update={"wall_s": time.monotonic() - begun}))
        return read_summary(self._run.path) if self._run.summary.exists() else None

    @cached_property
    def _prompts(self) -> PromptSplit:
        """The source's prompts that are no longer than the policy takes."""
        from rlaif_ray.policy.model import load_tokenizer

        split = read_prompts(self._config.prompts, self._config.seed)
        tokenizer = load_tokenizer(self._run.model("sft"), trust_remote_code=self._config.policy.trust_remote_code)
        limit = self._config.policy.max_prompt_tokens

        def fitting(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
            return tuple(prompt for prompt in prompts if len(encode_prompt(tokenizer, prompt)) <= limit)

        kept = PromptSplit(train=fitting(split.train), held_out=fitting(split.held_out))
        if not kept.train or not kept.held_out:
            raise UserError(f"policy.max_prompt_tokens={limit}: too few prompts are so short; raise it")
        dropped = len(split.train) + len(split.held_out) - len(kept.train) - len(kept.held_out)
        if dropped:
            self._console.say(f"  {dropped} prompts exceed policy.max_prompt_tokens={limit} and are left out")
        return kept

    async def _sft(self) -> Done:
        config = self._config.sft
        demonstrations = read_demonstrations(config, self._config.seed) if config.demonstrations else []
        await self._fitted(SFT, self._runtime.fit_sft(demonstrations))
        return Done(wall_s=0)

    async def _collect(self) -> Collected:
        config = self._config.collect
        prompts = take(self._prompts.train, 0, min(config.prompts, len(self._prompts.train)), self._config.seed)
        requests = sample_requests(
            prompts,
            config.answers_per_prompt,
            seed=self._config.seed,
            purpose="collect",
            temperature=config.temperature,
        )
        _, samples = await self._draw("sft", 0, requests)
        write_samples(self._run.samples("collect"), samples)

        by_prompt: dict[str, list[Answer]] = {}
        for sample in samples:
            by_prompt.setdefault(sample.prompt_id, []).append(Answer(sample.sample_id, sample.answer))
        draw = draw_pairs(
            [AnsweredPrompt(prompt, tuple(by_prompt[prompt.id])) for prompt in prompts],
            "random",
            pairs_per_prompt=config.pairs_per_prompt,
            seed=self._config.seed,
            similarity_bound=self._config.judge.similarity_bound,
        )
        pairs = draw.pairs
        if not pairs:
            raise UserError(
                "the policy's answers to a prompt are always nearly the same, so there is nothing to compare; "
                "raise collect.temperature or collect.answers_per_prompt"
            )
        preferences = await self._labelled(pairs, "collect")
        rows = preference_rows(
            preferences,
            seed=self._config.seed,
            held_out=self._config.reward.held_out,
            on_inconsistent=self._config.judge.on_inconsistent or "keep_soft",
            tie_margin=self._config.judge.tie_margin,
        )
        if not rows:
            reason = preferences[0].reason.rstrip(".")
            raise UserError(
                f"none of {len(pairs)} pairs was scored ({reason}); "
                "check judge.base_url, judge.model and judge.template"
            )
        write_judgements(self._run.judgements, [judgement for one in preferences for judgement in one.judgements])
        write_preferences(self._run.preferences, rows)
        return Collected(
            wall_s=0,
            labeler=labeler_summary(
                preferences,
                await (await self._runtime.judges()).progress(),
                gold_of(self._config.prompts),
                spent_usd=await self._spent_usd(),
            ),
            not_sent=draw.not_sent.total(),
        )

    async def _fit_reward(self) -> Done:
        samples = {sample.sample_id: sample for sample in read_samples(self._run.samples("collect"))}
        rows = read_preferences(self._run.preferences)
        pairs = {
            split: [_labelled_pair(row, samples) for row in rows if row.split == split] for split in ("train", "test")
        }
        for split, name in (("train", "fit"), ("test", "measure")):
            if not pairs[split]:
                raise UserError(
                    f"reward.held_out={self._config.reward.held_out} leaves no scored pair of {len(rows)} to {name} "
                    "the reward model on; change it or raise collect.prompts"
                )
        answers = [sample.prompt_tokens + sample.answer_tokens for sample in samples.values()]
        await self._fitted(REWARD, self._runtime.fit_reward(pairs["train"], pairs["test"], answers))
        return Done(wall_s=0)

    async def _train(self) -> Trained:
        config = self._config.ppo
        prompts = self._prompts.train
        learner, rollouts, reward = await asyncio.gather(
            self._runtime.learner(), self._runtime.rollouts(), self._runtime.rewards()
        )
        resumed_from = await learner.resume()
        if resumed_from is not None:
            self._console.say(f"  going on after iteration {resumed_from + 1}, the last one checkpointed")

        def requests(iteration: int) -> list[SampleRequest]:
            batch = take(
                prompts, iteration * config.prompts_per_iteration, config.prompts_per_iteration, self._config.seed
            )
            return sample_requests(
                batch,
                config.answers_per_prompt,
                seed=self._config.seed,
                purpose=f"ppo-{iteration}",
                temperature=self._config.rollout.temperature,
            )

        def on_iteration(iteration: int, metrics: Mapping[str, float]) -> None:
            self._metrics.append(PPO, iteration + 1, config.iterations, metrics)
            note = f"reward {metrics[REWARD_MEAN]:.2f}, KL {metrics[KL]:.2f}, {metrics[ANSWER_LENGTH]:.1f} tokens"
            self._console.advance(iteration + 1, config.iterations, note)

        first = 0 if resumed_from is None else resumed_from + 1
        if first < config.iterations:
            await train_on_policy(
                OnlineStages(rollouts, reward, learner),
                requests,
                range(first, config.iterations),
                checkpoint_every=config.checkpoint_every,
                on_iteration=on_iteration,
            )
        await learner.save_policy(self._run.model("policy"))
        return Trained(wall_s=0, resumed_from=resumed_from)

    async def _evaluate(self) -> Evaluated:
        prompts = self._prompts.held_out
        gold = gold_of(self._config.prompts)
        samples = {}
        for number, model in enumerate(("sft", "policy")):
            requests = sample_requests(prompts, 1, seed=self._config.seed, purpose=f"evaluate-{model}", temperature=1.0)
            drawn, samples[model] = await self._draw(model, number, requests)
        # The loop ends with the policy's answers: how likely are they under SFT?
        rollouts = await self._runtime.rollouts()
        await rollouts.load(await self._runtime.directory_version(self._run.model("sft"), 0))
        reference_logprobs = np.concatenate(await self._runtime.fetch(rollouts.logprobs(drawn)))
        policy_logprobs = np.concatenate([shard.logprobs for shard in await self._runtime.fetch(drawn)])

        if self._config.evaluation.instrument == "gold":
            if gold is None:
                raise UserError("evaluation.instrument=gold: the prompts' source knows no gold; set it to judge")
            verdicts = gold_verdicts(prompts, samples["sft"], samples["policy"], gold)
            spent_usd = None
        else:
            verdicts = await self._judged(prompts, samples["sft"], samples["policy"])
            spent_usd = await self._spent_usd()
        policy = policy_summary(
            prompts,
            verdicts,
            samples["sft"],
            samples["policy"],
            policy_logprobs,
            reference_logprobs,
            seed=self._config.seed,
        )
        write_comparisons(self._run.samples("evaluation"), prompts, samples["sft"], samples["policy"], verdicts)
        return Evaluated(wall_s=0, reward=await self._reward_summary(gold), policy=policy, spent_usd=spent_usd)

    async def _judged(self, prompts: Sequence[Prompt], before: Sequence[Sample], after: Sequence[Sample]) -> Verdicts:
        """The judge compares each answer of the trained policy with SFT's; equal answers tie, and are not sent."""
        pairs = [
            Pair(
                id=f"{new.sample_id}~{old.sample_id}",
                prompt=prompt,
                response_a=new.answer,
                response_b=old.answer,
                sample_a=new.sample_id,
                sample_b=old.sample_id,
            )
            for prompt, old, new in zip(prompts, before, after, strict=True)
        ]
        asked = [pair for pair in pairs if normalised(pair.response_a) != normalised(pair.response_b)]
        judged = {one.pair.id: one for one in await self._labelled(asked, "evaluate")}
        return judge_verdicts([judged.get(pair.id) for pair in pairs], training_judge(self._config.judge.model))

    async def _reward_summary(self, gold: Gold | None) -> RewardSummary:
        """Scores the held-out pairs' answers with the reward actors, the road that training takes."""
        from rlaif_ray.reward.model import RewardNormalisation

        samples = {sample.sample_id: sample for sample in read_samples(self._run.samples("collect"))}
        rows = [row for row in read_preferences(self._run.preferences) if row.split == "test"]
        wanted = sorted({id for row in rows for id in (row.chosen_sample, row.rejected_sample) if id is not None})
        reward = await self._runtime.rewards()
        shards = reward.score((self._runtime.put(rollouts_of([samples[id] for id in wanted])),))
        scores = {
            id: float(value)
            for shard in await self._runtime.fetch(shards)
            for id, value, valid in zip(shard.sample_ids, shard.values, shard.valid, strict=True)
            if valid
        }
        prompts = {prompt.id: prompt for prompt in self._prompts.train}
        # Logits: what the reward actors' normalisation divided by is multiplied back.
        logits = RewardNormalisation.load(self._run.model("reward")).std
        pairs = []
        for row in rows:
            prompt, chosen, rejected = prompts[row.prompt_id], row.chosen_sample or "", row.rejected_sample or ""
            texts = samples[chosen].answer, samples[rejected].answer
            pairs.append(
                HeldOutPair(
                    pair_id=row.pair_id,
                    prompt_id=row.prompt_id,
                    p=row.p,
                    margins=(logits * (scores.get(chosen, math.nan) - scores.get(rejected, math.nan)),),
                    chosen_tokens=len(samples[chosen].answer_tokens),
                    rejected_tokens=len(samples[rejected].answer_tokens),
                    gold_margin=None if gold is None else gold(prompt, texts[0]) - gold(prompt, texts[1]),
                    label_source=row.label_source,
                    round=1,
                )
            )
        write_held_out(self._run.reward_held_out, pairs)
        return reward_summary(pairs)

    async def _report(self) -> Done:
        trained = self._recorded(Stage.TRAIN, Trained)
        evaluated = self._recorded(Stage.EVALUATE, Evaluated)
        labeler = self._recorded(Stage.COLLECT, Collected).labeler
        if evaluated.spent_usd is not None:
            labeler = labeler.model_copy(update={"cost_usd": evaluated.spent_usd})
        seconds = {stage: self._recorded(stage, Done).wall_s for stage in Stage if stage is not Stage.REPORT}
        write_summary(
            Summary(
                seed=self._config.seed,
                wall_s=sum(seconds.values()),
                stages={stage: StageSummary(wall_s=wall_s) for stage, wall_s in seconds.items()},
                labeler=labeler,
                reward=evaluated.reward,
                policy=evaluated.policy,
                resumed_from=None if trained.resumed_from is None else f"train, iteration {trained.resumed_from + 1}",
                run_dir=self._run.path,
            )
        )
        write_report(self._run.path)
        return Done(wall_s=0)

    async def _draw(
        self, model: str, number: int, requests: Sequence[SampleRequest]
    ) -> tuple[Shards[Rollouts], list[Sample]]:
        """One answer a request from a model of the run, as shards on the cluster and as rows to keep."""
        rollouts = await self._runtime.rollouts()
        await rollouts.load(await self._runtime.directory_version(self._run.model(model), number))
        shards: list[Any] = []
        samples: list[Sample] = []
        for start in range(0, len(requests), _DRAWN_AT_ONCE):
            chunk = rollouts.generate(requests[start : start + _DRAWN_AT_ONCE])
            for shard, texts in zip(
                await self._runtime.fetch(chunk), await self._runtime.fetch(rollouts.decode(chunk)), strict=True
            ):
                drawn = requests[len(samples) : len(samples) + len(shard)]
                samples += samples_of(shard, texts, [request.prompt for request in drawn])
            shards += chunk
            self._console.advance(len(samples), len(requests), f"answers of {model}")
        return tuple(shards), samples

    async def _labelled(self, pairs: Sequence[Pair], purpose: str) -> list[Preference]:
        judges = await self._runtime.judges()
        before = (await judges.progress()).pairs

        async def show() -> None:
            counts = await judges.progress()
            spent = f", ${counts.cost_usd:.2f}" if counts.cost_usd else ""
            note = f"{counts.actors} judge actors, {counts.abstained} abstained, {counts.failed} failed{spent}"
            self._console.advance(counts.pairs - before, len(pairs), note)

        preferences = await _shown(judges.label(pairs, purpose), show)
        stop = over_budget_stop(preferences, self._config.judge)
        if stop is not None:
            raise Stopped(stop)
        return preferences

    async def _spent_usd(self) -> float | None:
        """What the run and its resumptions paid the judge; None where calls have no price."""
        if not any(prices_of(self._config.judge)):
            return None
        return (await (await self._runtime.judges()).totals()).spent_usd

    async def _fitted(self, stage: str, fit: Awaitable[None]) -> None:
        """Wait for a batch trainer and show how far its metrics say it is."""

        async def show() -> None:
            rows = [row for row in self._metrics.read() if row.stage == stage] if self._run.metrics.exists() else []
            if rows:
                values = ", ".join(f"{name} {value:.3g}" for name, value in rows[-1].values.items())
                self._console.advance(rows[-1].step, rows[-1].total, values)

        await _shown(fit, show)

    def _recorded(self, stage: Stage, kind: type[Record]) -> Record:
        done = self._run.result(stage, kind)
        if done is None:
            raise RuntimeError(f"{stage} is not done")
        return done


def _labelled_pair(row: PreferenceRow, samples: Mapping[str, Sample]) -> LabelledPair:
    chosen, rejected = samples[row.chosen_sample or ""], samples[row.rejected_sample or ""]
    return LabelledPair(
        id=row.pair_id,
        prompt_id=row.prompt_id,
        prompt=chosen.prompt_tokens,
        answer_a=chosen.answer_tokens,
        answer_b=rejected.answer_tokens,
        p=row.p,
        weight=row.weight,
    )


async def _shown(work: Awaitable[T], show: Callable[[], Awaitable[None]]) -> T:
    """Wait for `work` and show its progress meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait([task], timeout=_POLL_S))[0]:
            await show()
        return task.result()
    finally:
        task.cancel()
