"""The reward pool: actors that hold the reward model. `RewardPool` is the loop's `RewardStage`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import ray

from actors.spawn import spawn
from rlaif_ray.config import PolicyConfig, RewardConfig
from rlaif_ray.records import Rollouts, Scores
from rlaif_ray.stages import Shards


class RewardWorker:
    """One copy of the reward model. Its scores of a shard depend on nothing else, so a call may be repeated."""

    def __init__(self, directory: Path, policy: PolicyConfig, max_batch_tokens: int) -> None:
        import torch

        from rlaif_ray.reward.model import RewardNormalisation, load_reward_model

        self._normalisation = RewardNormalisation.load(directory)
        model = load_reward_model(directory, dtype=policy.dtype, trust_remote_code=policy.trust_remote_code)
        self._model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        self._max_batch_tokens = max_batch_tokens

    def score(self, rollouts: Rollouts) -> Scores:
        from rlaif_ray.reward.scoring import score_rollouts

        return score_rollouts(self._model, self._normalisation, rollouts, max_batch_tokens=self._max_batch_tokens)


class RewardPool:
    """Handles of the reward actors. Shards go round them; Ray restarts a lost actor and repeats its calls."""

    def __init__(self, directory: Path, policy: PolicyConfig, reward: RewardConfig) -> None:
        self._workers: list[Any] = [
            spawn(
                RewardWorker,
                f"reward-{index}",
                reward.actors,
                args=(directory, policy, reward.max_batch_tokens),
                restarts=True,
            )
            for index in range(reward.actors.count)
        ]

    async def ready(self) -> None:
        """Wait until every actor has loaded the model."""
        await asyncio.gather(*(worker.__ray_ready__.remote() for worker in self._workers))

    def score(self, rollouts: Shards[Rollouts]) -> Shards[Scores]:
        return tuple(
            self._workers[index % len(self._workers)].score.remote(shard) for index, shard in enumerate(rollouts)
        )

    def close(self) -> None:
        for worker in self._workers:
            ray.kill(worker)
