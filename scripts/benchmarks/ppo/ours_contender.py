"""Our side as a contender: the loop over real Ray actors.

`python -m scripts.benchmarks.ppo.ours_contender DIRECTORY CONFIG`: DIRECTORY holds the workload, CONFIG a RunConfig in
JSON. A line on stdin is a turn: one iteration, from loading the newest weights to publishing newer ones. With
`--block N` it is N iterations in the steady state of a run of their own, which may overlap, and the figures are those
of one of them on average.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from actors.learner import LearnerGroup
from actors.reward import RewardPool
from actors.rollout import RolloutPool
from rlaif_ray.config import RunConfig
from rlaif_ray.loop import OnlineStages, train_on_policy, train_overlapped
from rlaif_ray.metrics import ANSWER_LENGTH
from rlaif_ray.prompts import sample_requests
from rlaif_ray.records import Prompt, Rollouts, SampleRequest, Scores, WeightVersion
from rlaif_ray.stages import Shards
from scripts.benchmarks.ppo.learner_clock import peak_mib, read_clock, start_clock
from scripts.benchmarks.ppo.turns import tell
from scripts.benchmarks.ppo.workload import learner_models, prompt_tokens, read_prompts

_MOST_ITERATIONS = 10_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("config", type=Path)
    parser.add_argument("--block", type=int)
    arguments = parser.parse_args()
    config = RunConfig.model_validate_json(arguments.config.read_text())
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    try:
        asyncio.run(contend(arguments.directory, config, arguments.block))
    finally:
        ray.shutdown()


async def contend(directory: Path, config: RunConfig, block: int | None) -> None:
    prompts = read_prompts(directory)
    models = learner_models(directory)
    rollouts = RolloutPool(models.policy, config.policy, config.rollout)
    assert models.reward is not None
    reward = RewardPool(models.reward, config, models.policy, prompts)
    learner = LearnerGroup(config, models, config.run_dir / "checkpoints")
    await asyncio.gather(rollouts.ready(), reward.ready(), learner.ready())
    stages = OnlineStages(rollouts, reward, learner)
    await _actor_call("learner-0", start_clock)
    if block is None:
        await _one_at_a_time(stages, config, prompts, prompt_tokens(directory))
    else:
        await _in_blocks(stages, config, prompts, block)


async def _one_at_a_time(
    stages: OnlineStages, config: RunConfig, prompts: Sequence[Prompt], tokens_of_prompts: Sequence[Sequence[int]]
) -> None:
    clock = PhaseClock(stages.rollouts, stages.reward, stages.learner)

    def on_iteration(iteration: int, metrics: Mapping[str, float]) -> None:
        _check_prompts(ray.get(clock.drawn), tokens_of_prompts)
        learning = ray.get(_actor_call("learner-0", read_clock))
        parts = clock.parts() | {f"learn/{name}": seconds for name, seconds in learning.seconds.items()}
        tokens = round(metrics[ANSWER_LENGTH] * len(prompts))
        tell(clock.published - clock.begun, tokens, learning.steps, parts, _peaks(config))

    try:
        await train_on_policy(
            OnlineStages(clock, clock, clock),
            functools.partial(_requests, config, prompts),
            range(_MOST_ITERATIONS),
            checkpoint_every=_MOST_ITERATIONS,
            on_iteration=on_iteration,
        )
    except NoMoreTurns:
        return


async def _in_blocks(stages: OnlineStages, config: RunConfig, prompts: Sequence[Prompt], size: int) -> None:
    staleness = config.ppo.max_staleness
    loop = functools.partial(train_overlapped, max_staleness=staleness) if staleness else train_on_policy
    start = 0
    while await asyncio.to_thread(sys.stdin.readline):
        told: list[tuple[float, float]] = []

        def on_iteration(iteration: int, metrics: Mapping[str, float], told: list[tuple[float, float]] = told) -> None:
            told.append((time.perf_counter(), metrics[ANSWER_LENGTH] * len(prompts)))

        # The first iteration fills the pipeline; in the last ones it runs dry, and the very last is checkpointed.
        iterations = range(start, start + size + staleness + 2)
        await loop(
            stages,
            functools.partial(_requests, config, prompts),
            iterations,
            checkpoint_every=_MOST_ITERATIONS,
            on_iteration=on_iteration,
        )
        start = iterations.stop
        tokens = sum(tokens for _, tokens in told[1 : size + 1]) / size
        learning = ray.get(_actor_call("learner-0", read_clock))
        steps = learning.steps // len(iterations)
        tell((told[size][0] - told[0][0]) / size, round(tokens), steps, {}, _peaks(config))


class NoMoreTurns(Exception):
    """Nobody wants another one."""


@dataclass
class PhaseClock:
    """The stages as they are, but waiting for a turn before each iteration, and with the time of each phase's end."""

    rollouts: Any
    reward: Any
    learner: Any
    begun: float = 0.0
    loaded: float = 0.0
    stepped: float = 0.0
    published: float = 0.0
    ends: list[asyncio.Future[float]] = field(default_factory=list)
    drawn: list[Any] = field(default_factory=list)  # references to the newest rollouts

    async def load(self, version: WeightVersion) -> None:
        if not await asyncio.to_thread(sys.stdin.readline):
            raise NoMoreTurns
        self.begun = time.perf_counter()
        await self.rollouts.load(version)
        self.loaded = time.perf_counter()

    def generate(self, requests: Sequence[SampleRequest]) -> Shards[Rollouts]:
        shards: Shards[Rollouts] = self.rollouts.generate(requests)
        self.drawn = list(shards)
        self.ends = [asyncio.ensure_future(asyncio.to_thread(_end_of, shards))]
        return shards

    def score(self, rollouts: Shards[Rollouts]) -> Shards[Scores]:
        shards: Shards[Scores] = self.reward.score(rollouts)
        self.ends.append(asyncio.ensure_future(asyncio.to_thread(_end_of, shards)))
        return shards

    def close(self) -> None:
        """Nothing is held here."""

    async def step(self, iteration: int, rollouts: Shards[Rollouts], scores: Shards[Scores]) -> Mapping[str, float]:
        metrics: Mapping[str, float] = await self.learner.step(iteration, rollouts, scores)
        self.stepped = time.perf_counter()
        await asyncio.gather(*self.ends)
        return metrics

    async def publish(self) -> WeightVersion:
        version: WeightVersion = await self.learner.publish()
        self.published = time.perf_counter()
        return version

    async def checkpoint(self, iteration: int) -> None:
        """The run is kept by nobody."""

    def parts(self) -> dict[str, float]:
        """Seconds of each phase, one after the other."""
        generated, scored = (end.result() for end in self.ends)
        return {
            "load": self.loaded - self.begun,
            "generate": generated - self.loaded,
            "score": scored - generated,
            "learn": self.stepped - scored,
            "publish": self.published - self.stepped,
        }


def _check_prompts(drawn: Sequence[Rollouts], wanted: Sequence[Sequence[int]]) -> None:
    """Raises RuntimeError where the policy was shown other tokens than the peer is: it would have other work."""
    shown = [shard.prompt(row).tolist() for shard in drawn for row in range(len(shard))]
    if shown != list(wanted):
        raise RuntimeError("the policy's tokenizer makes other tokens of the workload's prompts than were written")


def _end_of(shards: Shards[Any]) -> float:
    """When the last of them was there."""
    references: list[Any] = list(shards)
    ray.wait(references, num_returns=len(references), fetch_local=False)
    return time.perf_counter()


def _requests(config: RunConfig, prompts: Sequence[Prompt], iteration: int) -> list[SampleRequest]:
    return sample_requests(prompts, 1, seed=config.seed, purpose=f"ppo-{iteration}", temperature=1.0)


def _actor_call(name: str, function: Callable[..., Any]) -> Any:
    """Run a function of the actor's instance in its process."""
    return ray.get_actor(name).__ray_call__.remote(function)


def _peaks(config: RunConfig) -> dict[str, float]:
    names = [f"rollout-{number}" for number in range(config.rollout.replicas)] + ["reward-0", "learner-0"]
    return {name: ray.get(_actor_call(name, peak_mib)) for name in names} | {"driver": peak_mib(None)}


if __name__ == "__main__":
    main()
