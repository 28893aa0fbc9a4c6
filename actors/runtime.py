"""The cluster as the pipeline's `Runtime`: rollouts and judges are started when asked for, and kept until the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from actors import trainer
from actors.activity import activity_since, call_of
from actors.call_pool import cause_of
from actors.judge import Judges, start_judges
from actors.learner import LearnerGroup
from actors.placement import Placement
from actors.reward import RewardPool
from actors.reward_mix import RewardMix, RewardWatch
from actors.rollout import RolloutPool
from rlaif_ray.config import JudgeConfig, RunConfig
from rlaif_ray.records import Demonstration, LabelledPair, LearnerModels, Prompt, RewardData, RewardFit, WeightVersion
from rlaif_ray.rundir import RunDirectory
from rlaif_ray.stages import Ref, Shards
from rlaif_ray.timeline.trace import Activity
from rlaif_ray.weights import fingerprint_of, read_weights

T = TypeVar("T")

_PATIENCE_S = 30.0


class RayRuntime:
    """Inside a `ray_session`. `say` is told what is waited for."""

    def __init__(self, config: RunConfig, *, say: Callable[[str], None]) -> None:
        self._config = config
        self._say = say
        self._run = RunDirectory(config.run_dir)
        self._placement = Placement(config, say)
        self._rollouts: RolloutPool | None = None
        self._judges: dict[str, asyncio.Task[Judges]] = {}

    async def fit_sft(self, demonstrations: Sequence[Demonstration]) -> None:
        await self._placement.room_for("sft-worker")
        await trainer.fit_sft(
            self._config,
            demonstrations,
            self._run.model("sft"),
            checkpoints=self._run.checkpoints("sft"),
            metrics=self._run.metrics,
        )

    async def fit_reward(self, data: RewardData, directory: RunDirectory) -> list[RewardFit]:
        for workers in ("reward-pretraining-worker", "reward-worker"):
            await self._placement.room_for(workers)
        return await trainer.fit_reward(
            self._config,
            data,
            start=self._config.reward.model or self._run.model("sft"),
            directory=directory.model("reward"),
            checkpoints=directory.checkpoints("reward"),
            metrics=directory.metrics,
        )

    async def fit_dpo(
        self, train: Sequence[LabelledPair], held_out: Sequence[LabelledPair], directory: RunDirectory
    ) -> None:
        await self._placement.room_for("dpo-worker")
        await trainer.fit_dpo(
            self._config,
            train,
            held_out,
            start=self._run.model("sft"),
            directory=directory.model("policy"),
            checkpoints=directory.checkpoints("dpo"),
            metrics=directory.metrics,
        )

    async def keep_model(self, name: str, key: str, directory: Path) -> None:
        from rlaif_ray.policy.given import keep_given

        # Loading a large model is work for the cluster, not for the driver.
        task = ray.remote(keep_given).options(num_cpus=0)
        try:
            await task.remote(name, key, self._config.policy, directory)
        except RayTaskError as error:
            raise cause_of(error) from None

    async def revisers(self, model: Path) -> RolloutPool:
        from rlaif_ray.policy.given import conversation_tokens

        config, constitution = self._config, self._config.constitution
        assert constitution is not None
        longest = conversation_tokens(model, constitution.max_context_tokens)
        policy = config.policy.model_copy(update={"max_prompt_tokens": longest - config.policy.max_answer_tokens - 1})
        pool = RolloutPool(
            model,
            policy,
            config.rollout,
            name="reviser",
            reserved=await self._placement.reserve("reviser"),
            run=self._run.id,
        )
        await self._up("reviser", pool.ready())
        await pool.load(await self.directory_version(model, 0))
        return pool

    async def rollouts(self) -> RolloutPool:
        if self._rollouts is None:
            config = self._config
            self._rollouts = RolloutPool(
                self._run.model("sft"),
                config.policy,
                config.rollout,
                config.learner.weight_transfer,
                shares_gpus=config.placement.share_gpus,
                reserved=await self._placement.reserve("rollout"),
                run=self._run.id,
            )
            await self._up("rollout", self._rollouts.ready())
        return self._rollouts

    async def judges(self) -> Judges:
        return await self._started(self._config.judge, self._run.id, "judge")

    async def evaluation_judges(self) -> Judges:
        config = self._config.evaluation.judge
        if config is None:
            return await self.judges()
        # Its spending is bounded by its own budget, and its calls under way are no business of the other pool's.
        return await self._started(config, f"{self._run.id}-evaluation", "evaluation-judge")

    async def _started(self, config: JudgeConfig, run: str, name: str) -> Judges:
        if name not in self._judges:  # whoever asks meanwhile waits for the same ones
            path = self._config.judge.ledger or self._run.ledger
            self._judges[name] = asyncio.create_task(
                start_judges(config, seed=self._config.seed, run=run, ledger_path=path, name=name)
            )
        return await self._judges[name]

    async def reward_models(self, directory: Path, prompts: Sequence[Prompt]) -> RewardPool:
        reserved = await self._placement.reserve("reward")
        pool = RewardPool(directory, self._config, self._run.model("sft"), prompts, reserved)
        await self._up("reward", pool.ready())
        return pool

    async def rewards(self, directory: Path, prompts: Sequence[Prompt]) -> RewardPool | RewardMix:
        config = self._config.reward
        models = await self.reward_models(directory, prompts) if config.fits_a_model else None
        if models is not None and not config.is_mixed:
            return models
        mix = RewardMix(
            self._config,
            models=models,
            judges=await self.judges() if config.asks_the_judge else None,
            prompts=prompts,
            policy_directory=self._run.model("sft"),
        )
        await mix.ready()
        return mix

    async def watch(self, prompts: Sequence[Prompt]) -> RewardWatch | None:
        if not self._config.reward.watch:
            return None
        watch = RewardWatch(
            self._config, judges=await self.judges(), prompts=prompts, policy_directory=self._run.model("sft")
        )
        await watch.ready()
        return watch

    async def learner(self, models: LearnerModels, checkpoints: Path) -> LearnerGroup:
        learner = LearnerGroup(self._config, models, checkpoints, await self._placement.reserve("learner"))
        await self._up("learner", learner.ready())
        return learner

    async def _up(self, name: str, ready: Awaitable[None]) -> None:
        """Wait for actors that have their places, aloud."""
        waiting = asyncio.ensure_future(ready)
        while not (await asyncio.wait([waiting], timeout=_PATIENCE_S))[0]:
            self._say(f"  waiting for the {name} actors, which have their places and load their models")
        await waiting

    async def directory_version(self, directory: Path, number: int) -> WeightVersion:
        # Reading a large model to fingerprint it is work for the cluster, not for the driver.
        fingerprint: str = await ray.remote(_fingerprint).options(num_cpus=0).remote(directory)
        return WeightVersion(number, fingerprint, directory, (), ())

    async def fetch(self, shards: Shards[T]) -> list[T]:
        references: tuple[Any, ...] = shards
        return list(await asyncio.gather(*references))

    def put(self, value: T) -> Ref[T]:
        return ray.put(value)

    def call_of(self, reference: Ref[Any]) -> str:
        return call_of(reference)

    async def activity(self, since: float) -> Activity:
        return await activity_since(since)


def _fingerprint(directory: Path) -> str:
    return fingerprint_of(read_weights(directory))
