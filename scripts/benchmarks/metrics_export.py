"""What it costs to export metrics, as a share of an iteration of PPO.

`python -m scripts.benchmarks.metrics_export [--pairs N]`. One loop over real actors, at the demo's size, where an
iteration is short and the share is at its largest. Blocks of iterations in which all metrics are told and blocks in
which none is take turns; what is reported is the difference within pairs of neighbours, in time and in CPU time of all
processes. The judge's pool is not in the loop: what it tells of one reply is timed in an actor.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray

from actors.exporting import Exporter, LogExport
from actors.learner import LearnerGroup
from actors.reward import RewardPool
from actors.rollout import RolloutPool
from rlaif_ray import metrics
from rlaif_ray.config import RunConfig
from rlaif_ray.loop import OnlineStages, train_on_policy
from rlaif_ray.metrics import MetricsLog
from rlaif_ray.metrics.following import followed
from rlaif_ray.prompts import sample_requests
from rlaif_ray.records import Prompt, SampleRequest
from rlaif_ray.rundir import RunDirectory
from scripts.benchmarks.ppo.layout import Layout
from scripts.benchmarks.ppo.turns import Spread
from scripts.benchmarks.ppo.workload import Workload, learner_models, read_prompts, run_config, write_workload

_DEMO = Workload(64, 2, 2, 176, 256, prompts=128, prompt_tokens=16, answer_tokens=8, minibatch=64)
_REPLIES = 20_000
_PASSED_ON_S = 3.0


@dataclass(frozen=True, slots=True)
class Block:
    """Of one iteration, on average."""

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Figures:
    iteration_s: Spread  # with nothing told
    share: Spread  # by which an iteration is longer with all told
    cpu_share: Spread
    reply_us: float  # of CPU, to tell of one reply of a judge, in an actor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=20, help="of a block")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    arguments = parser.parse_args()
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory() as place:
            figures = asyncio.run(measure(Path(place), arguments.pairs, arguments.iterations))
    finally:
        ray.shutdown()
    for name, value in asdict(figures).items():
        print(f"{name}: {getattr(figures, name) if isinstance(value, dict) else f'{value:.3g}'}")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(asdict(figures), indent=2))


async def measure(directory: Path, pairs: int, iterations: int) -> Figures:
    write_workload(directory, _DEMO, "half")
    config = run_config(directory, _DEMO, dtype="float32", layout=Layout(1, 1, 1))
    prompts, models = read_prompts(directory), learner_models(directory)
    assert models.reward is not None
    rollouts = RolloutPool(models.policy, config.policy, config.rollout)
    reward = RewardPool(models.reward, config, models.policy, prompts)
    learner = LearnerGroup(config, models, config.run_dir / "checkpoints")
    await asyncio.gather(rollouts.ready(), reward.ready(), learner.ready())
    run = partial(_block, OnlineStages(rollouts, reward, learner), config, prompts)
    await run(range(iterations), telling=True)
    silent: list[Block] = []
    telling: list[Block] = []
    for pair in range(pairs):
        first = range((2 * pair + 1) * iterations, (2 * pair + 2) * iterations)
        second = range(first.stop, first.stop + iterations)
        # Who begins changes, so that a drift favours nobody.
        for tells, block in ((bool(pair % 2), first), (not pair % 2, second)):
            (telling if tells else silent).append(await run(block, telling=tells))
        without, told = silent[-1], telling[-1]
        print(f"  {without.seconds:.4f} s, told {told.seconds:.4f} s", flush=True)
    teller = ray.remote(_Teller).options(num_cpus=0).remote()
    replies: list[float] = [await teller.reply_us.remote() for _ in range(5)]
    return Figures(
        Spread.of([block.seconds for block in silent]),
        Spread.of([b.seconds / a.seconds - 1 for a, b in zip(silent, telling, strict=True)]),
        Spread.of([b.cpu_seconds / a.cpu_seconds - 1 for a, b in zip(silent, telling, strict=True)]),
        statistics.median(replies),
    )


async def _block(
    stages: OnlineStages, config: RunConfig, prompts: list[Prompt], iterations: range, *, telling: bool
) -> Block:
    """The first iteration begins anew, and after the last comes a checkpoint: what lies between counts."""
    _tell_or_not(None, telling=telling)
    for actor in ray.util.list_named_actors():
        await ray.get_actor(actor).__ray_call__.remote(partial(_tell_or_not, telling=telling))
    log = MetricsLog(config.run_dir / "metrics.jsonl")
    ends: list[tuple[float, float]] = []

    def on_iteration(iteration: int, values: Mapping[str, float]) -> None:
        log.append(metrics.PPO, iteration + 1, iterations.stop, values)
        if iteration in (iterations[0], iterations[-1]):
            ends.append((time.perf_counter(), _cpu_s()))

    def requests(iteration: int) -> list[SampleRequest]:
        return sample_requests(prompts, 1, seed=config.seed, purpose=f"ppo-{iteration}", temperature=1.0)

    async with AsyncExitStack() as stack:
        if telling:
            await stack.enter_async_context(followed(config.run_dir, [LogExport(RunDirectory(config.run_dir))], print))
        await train_on_policy(
            stages, requests, iterations, checkpoint_every=iterations.stop + 1, on_iteration=on_iteration
        )
    log.close()
    (begun, cpu_begun), (ended, cpu_ended) = ends
    return Block((ended - begun) / (len(iterations) - 1), (cpu_ended - cpu_begun) / (len(iterations) - 1))


def _tell_or_not(actor: Any, *, telling: bool) -> None:
    """In the process of an actor, or here."""
    from actors.exporting import Exporter

    for name in ("set", "add", "observe"):
        kept: Any = vars(Exporter).get(f"_{name}", vars(Exporter)[name])
        setattr(Exporter, f"_{name}", kept)
        setattr(Exporter, name, kept if telling else _silence)


def _silence(*_: Any, **__: Any) -> None:
    """Instead of telling."""


class _Teller:
    def reply_us(self) -> float:
        """What a pool of calls tells of a reply and of its judgement, up to Ray's own counters."""
        export = Exporter(run="benchmark", judge="judge")
        begun = time.process_time()
        for _ in range(_REPLIES):
            export.add(metrics.JUDGE_CALLS)
            export.add(metrics.JUDGE_COST, 0.001)
            export.add(metrics.JUDGE_TOKENS, 200, direction="prompt")
            export.add(metrics.JUDGE_TOKENS, 1, direction="completion")
            export.observe(metrics.JUDGE_LATENCY, 0.3)
            export.add(metrics.JUDGEMENTS, outcome="scored")
        time.sleep(_PASSED_ON_S)
        return (time.process_time() - begun) / _REPLIES * 1e6


def _cpu_s() -> float:
    """Seconds that this process and all actors have computed."""
    spent = 0.0
    root = psutil.Process()
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        spent += float(times.user + times.system)
    return spent


if __name__ == "__main__":
    main()
