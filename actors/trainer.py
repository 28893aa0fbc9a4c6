"""The batch trainers (SFT, reward model, DPO) under Ray Train: it places the workers and starts lost ones again.

What they make is kept by their own atomic writes; nothing is reported to Ray Train as a checkpoint.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import ray

from actors.spawn import process_environment
from rlaif_ray.config import FitConfig, RunConfig, UserError
from rlaif_ray.metrics import DPO, REWARD, REWARD_PRETRAINING, SFT, MetricsLog
from rlaif_ray.records import Demonstration, LabelledPair, RewardData, RewardFit

if TYPE_CHECKING:
    from rlaif_ray.dpo import DpoResult
    from rlaif_ray.fitting import OnStep
    from rlaif_ray.sft import SftResult

Result = TypeVar("Result")

_RESTARTS = 2

# Ray Train's own settings, where the environment has none.
_SETTINGS = {
    # How soon it sees that workers are done. Its own 2 s are as long as a small fit.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # A process for every fit, which tells training of nodes that will be taken away: ours begins anew all the same.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


async def fit_sft(
    config: RunConfig, demonstrations: Sequence[Demonstration], directory: Path, *, checkpoints: Path, metrics: Path
) -> SftResult:
    """Fill `directory` with the SFT model. Every step's metrics are appended to the file `metrics`.

    Raises UserError when the demonstrations cannot be used.
    """
    data = ray.put(list(demonstrations))

    def work(on_step: OnStep) -> SftResult:
        from rlaif_ray import sft
        from rlaif_ray.policy.watched_engine import WatchedEngine

        return sft.fit_sft(config, ray.get(data), directory, WatchedEngine, on_step)

    return await _train(work, SFT, config.sft, checkpoints, metrics)


async def fit_reward(
    config: RunConfig, data: RewardData, *, start: Path | str, directory: Path, checkpoints: Path, metrics: Path
) -> list[RewardFit]:
    """Fill `directory` with the reward model, or with the members of an ensemble, from `start`.

    What pretraining makes is kept in `checkpoints`. Models that lie there and in `directory` from before are kept as
    they are. Raises UserError when `start`, the pairs or the answers cannot be used.
    """
    from rlaif_ray.reward.fitting import read_fit

    pretraining = config.reward.pretraining
    first = ray.put(RewardData(data.pretraining, (), (), data.answers))
    then = ray.put(data)

    async def fitted(fit: FitConfig, given: Any, start: Path | str, into: Path, number: int, stage: str) -> RewardFit:
        def work(on_step: OnStep) -> RewardFit:
            from rlaif_ray.engines.deepspeed_engine import DeepSpeedEngine
            from rlaif_ray.reward import fitting

            seed = _member_seed(config.seed, number)
            return fitting.fit_reward(
                config, fit, ray.get(given), start, into, seed=seed, start_engine=DeepSpeedEngine, on_step=on_step
            )

        before = read_fit(into)
        if before is not None:
            return before
        return await _train(work, f"{stage}-{number}" if number else stage, fit, checkpoints, metrics)

    fits = []
    for number in range(config.reward.ensemble):
        origin = start
        if pretraining is not None:
            origin = checkpoints.resolve() / "pretrained" / str(number)
            await fitted(pretraining, first, start, origin, number, REWARD_PRETRAINING)
        into = directory if config.reward.ensemble == 1 else directory / str(number)
        fits.append(await fitted(config.reward, then, origin, into, number, REWARD))
    return fits


async def fit_dpo(
    config: RunConfig,
    train: Sequence[LabelledPair],
    held_out: Sequence[LabelledPair],
    *,
    start: Path,
    directory: Path,
    checkpoints: Path,
    metrics: Path,
) -> DpoResult:
    """Fill `directory` with the policy that preferences made of the one in `start`.

    Raises UserError when the pairs cannot be used.
    """
    data = ray.put((tuple(train), tuple(held_out)))

    def work(on_step: OnStep) -> DpoResult:
        from rlaif_ray import dpo
        from rlaif_ray.policy.watched_engine import WatchedEngine

        pairs, measured = ray.get(data)
        return dpo.fit_dpo(config, pairs, measured, start, directory, WatchedEngine, on_step)

    return await _train(work, DPO, config.dpo, checkpoints, metrics)


def _member_seed(seed: int, number: int) -> int:
    """The first member of an ensemble is what a single model would be."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) if number else seed


@dataclass(frozen=True, slots=True)
class _Job:
    """What a worker runs. Only rank 0 logs, and its result is the trainer's."""

    work: Callable[[OnStep], Any]
    stage: str
    metrics: Path


async def _train(
    work: Callable[[OnStep], Result], stage: str, config: FitConfig, checkpoints: Path, metrics: Path
) -> Result:
    # fit() blocks until training is over, in a thread that nothing waits for: where a run is interrupted, it ends with
    # the Ray session.
    thread = ThreadPoolExecutor(max_workers=1)
    job = _Job(work, stage, metrics.resolve())
    result = await asyncio.get_running_loop().run_in_executor(thread, _fit, job, config, checkpoints.resolve())
    value: Result = result
    return value


def _fit(job: _Job, config: FitConfig, checkpoints: Path) -> Any:
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as TrainRunConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    resources = config.resources
    # Not TorchTrainer: its controller, and this process, would load torch for nothing but to tell the workers to meet.
    trainer = DataParallelTrainer(
        _run,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=resources.gpus > 0,
            resources_per_worker={"CPU": resources.cpus, "GPU": resources.gpus, **resources.custom},
        ),
        run_config=TrainRunConfig(
            name=job.stage,
            storage_path=str(checkpoints),
            # A lost worker costs one more start: training is the same from its beginning, and short.
            failure_config=FailureConfig(max_failures=_RESTARTS),
            worker_runtime_env={"env_vars": process_environment(resources)},
        ),
    )
    value = trainer.fit().return_value
    if isinstance(value, Exception):
        raise value
    return value


def _run(train_loop_config: dict[str, _Job]) -> Any:
    """On every worker."""
    from ray.train import get_context

    from rlaif_ray.policy.movement import UnexpectedMovement

    job = train_loop_config["job"]
    log = MetricsLog(job.metrics)
    rank, ranks = get_context().get_world_rank(), get_context().get_world_size()
    _join(rank, ranks)

    def on_step(step: int, total: int, values: Mapping[str, float]) -> None:
        if rank == 0:
            log.append(job.stage, step, total, values)

    try:
        return job.work(on_step)
    except (UserError, UnexpectedMovement) as error:
        # Returned, not raised: to start again would not mend it.
        return error
    finally:
        log.close()


def _join(rank: int, ranks: int) -> None:
    """Meet the other workers in one process group."""
    from ray.train.collective import broadcast_from_rank_zero

    from rlaif_ray.engines.deepspeed_engine import Rendezvous, join_group

    opened = Rendezvous(ray.util.get_node_ip_address(), ranks) if rank == 0 else None
    address = broadcast_from_rank_zero(opened and opened.address)
    join_group(rank, ranks, opened or address)
