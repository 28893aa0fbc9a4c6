"""What the loop's driver has to do as actors and batches grow: engines and a learner that answer at once, many raylets.

`python -m scripts.benchmarks.growth [--actors 1 8 32] [--answers-per-actor 4 16] [--answer-tokens 64 1024]`, from the
repository's root. For each number of actors a Ray of its own, of a head and four raylets, bears so many rollout actors,
as many judge actors and one learner's rank. Loop, stages, placement, dispatcher and judges are those of a run whose
`reward.source` is `judge`; in place of the two classes that hold a model stand two that answer at once, and the judge's
API is a process that answers at once. Shards go by reference, and are opened by the reader of answers and by the rank.

The driver's time is the CPU time of all threads of its process. Its bytes are those that the kernel counts on its TCP
connections, both ways, Ray's own framing and heartbeats included: all remote calls go there, and so do results of less
than 100 KiB, which Ray keeps with whoever asked for them and hands on from there. Larger ones stay in the object
stores. Requests of more than 100 KiB a call would leave through shared memory and not be seen; here they are smaller.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import math
import os
import pickle
import socket
import statistics
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import ray
from aiohttp import web
from ray.cluster_utils import Cluster
from rich.console import Console
from rich.table import Table

from actors.judge import start_judges
from actors.runtime import RayRuntime
from actors.spawn import spawn
from rlaif_ray import metrics
from rlaif_ray.config import ActorResources, JudgeConfig, RunConfig
from rlaif_ray.loop import OnlineStages, train_on_policy
from rlaif_ray.prompts import sample_requests, take
from rlaif_ray.records import (
    AnswerToScore,
    FinishReason,
    LearnerModels,
    Prompt,
    Rollouts,
    SampleRequest,
    Scores,
    WeightVersion,
    offsets_of,
)
from rlaif_ray.rundir import RunDirectory
from scripts.benchmarks.ppo.turns import Meter, Spread

_RAYLETS = 4
_WARM_UP = 3
_REST_S = 5.0
_TICK_S = 0.05
_PATIENCE_S = 600.0

_WORDS = 1_000
_FIRST_WORD = 5  # token ids before it are special
_PROMPT_TOKENS = 16
_WEIGHT_BYTES = 2**18

# Beyond so many calls a pool wants another actor.
_CALLS_OF_AN_ACTOR = 32

# Those that stand between the driver and the pools, on its node.
_BETWEEN = {
    "rollout-dispatcher": "dispatcher",
    "reward-mix": "reader",
    "judge-pool": "judge pool",
    "ledger": "ledger",
    "limiter": "limiter",
}

# Where `tcpi_bytes_received` and `tcpi_bytes_sent` lie in the kernel's `struct tcp_info`, each in eight bytes.
_TCP_BYTES_AT = (128, 200)


@dataclass(frozen=True, slots=True)
class Size:
    """Of one iteration's batch."""

    answers_per_actor: int
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class Iterations:
    """Of one size, by iteration after the warm-up."""

    actors: int  # rollout actors; there are as many judge actors
    size: Size
    seconds: Spread
    driver_ms: Spread
    python_ms: float  # of it in the thread that runs the loop
    driver_kib: Spread
    requests_kib: float  # of these, what the driver asks for: prompts, seeds and names
    batch_kib: float  # what reaches the learner
    between_ms: Mapping[str, float]  # CPU of who stands between the driver and the pools, on average
    objects: Spread  # in all object stores, copies not counted
    references: Spread  # that the driver holds
    foreign: float  # share of the machine that others took

    @property
    def driver_ms_an_actor(self) -> float:
        return self.driver_ms.median / (2 * self.actors)


@dataclass(frozen=True, slots=True)
class Placing:
    """Of one number of actors. Times in seconds."""

    actors: int
    raylets: tuple[int, ...]  # actors on each
    rollouts_s: float  # from the reservation until all serve
    judges_s: float  # from the first question until all are up
    to_all_s: float  # from a backlog for all judges, where none is, until all are up
    to_none_s: float  # from the last answer until none is
    rest_ms: float  # CPU of a driver that does nothing, a second
    rest_kib: float  # and its bytes


@dataclass(frozen=True, slots=True)
class Growth:
    iterations: int  # of each size
    cores: int
    load_average: float  # at the end
    placings: Sequence[Placing]
    rows: Sequence[Iterations]


class InstantReplica:
    """In the place of `RolloutWorker`: draws random words."""

    def __init__(self, model: str, *_settings: Any) -> None:
        self._answer_tokens = 1

    async def live(self) -> None:
        await asyncio.Event().wait()

    async def load(self, version: WeightVersion) -> None:
        assert not isinstance(version.weights, Path)
        await asyncio.gather(*version.weights)

    async def answer_with(self, tokens: int) -> None:
        self._answer_tokens = tokens

    async def generate(self, requests: Sequence[SampleRequest], version: WeightVersion) -> Rollouts:
        count, tokens = len(requests), self._answer_tokens
        drawn = [
            np.random.default_rng(one.seed).integers(_FIRST_WORD, _FIRST_WORD + _WORDS, tokens) for one in requests
        ]
        return Rollouts(
            sample_ids=tuple(one.sample_id for one in requests),
            group_ids=tuple(one.group_id for one in requests),
            prompt_ids=tuple(one.prompt.id for one in requests),
            prompt_tokens=np.zeros(count * _PROMPT_TOKENS, np.int32),
            prompt_offsets=offsets_of([_PROMPT_TOKENS] * count),
            answer_tokens=np.concatenate(drawn).astype(np.int32),
            answer_offsets=offsets_of([tokens] * count),
            logprobs=np.zeros(count * tokens, np.float32),
            token_versions=np.full(count * tokens, version.number, np.int32),
            finish_reasons=(FinishReason.LENGTH,) * count,
            version=version.number,
            fingerprint=version.fingerprint,
        )


class InstantRank:
    """In the place of `LearnerRank`: fetches the batch, and publishes other weights each time."""

    def __init__(self, *_settings: Any) -> None:
        self._version = 0

    def open(self) -> str:
        return ""

    def start(self, address: str) -> None:
        """There is nobody to meet."""

    def step(self, iteration: int, rollouts: Sequence[Any], scores: Sequence[Any]) -> dict[str, float]:
        drawn: list[Rollouts] = ray.get(list(rollouts))
        scored: list[Scores] = ray.get(list(scores))
        return {
            metrics.REWARD_MEAN: float(np.concatenate([one.values for one in scored]).mean()),
            "batch_bytes": float(sum(len(pickle.dumps(one, protocol=5)) for one in (*drawn, *scored))),
        }

    def publish(self) -> WeightVersion:
        self._version += 1
        weights = (ray.put(np.full(_WEIGHT_BYTES, self._version % 128, np.int8)),)
        return WeightVersion(self._version, str(self._version), weights, (), ())

    def begin_checkpoint(self, iteration: int) -> None:
        """Nothing is kept."""

    save = finish_checkpoint = begin_checkpoint


class Endpoint:
    """The judge's API, in a process of its own: every score is 5. While it holds, nobody is answered."""

    def __init__(self) -> None:
        self._answers = asyncio.Event()
        self._answers.set()

    async def open(self) -> str:
        application = web.Application()
        application.router.add_post("/v1/chat/completions", self._complete)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def hold(self) -> None:
        self._answers.clear()

    async def let_go(self) -> None:
        self._answers.set()

    async def _complete(self, request: web.Request) -> web.Response:
        await request.read()
        await self._answers.wait()
        top = [{"token": "5", "logprob": math.log(0.9)}, {"token": "6", "logprob": math.log(0.05)}]
        choice = {
            "index": 0,
            "finish_reason": "length",
            "message": {"role": "assistant", "content": "5"},
            "logprobs": {"content": [{**top[0], "top_logprobs": top}]},
        }
        usage = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
        return web.json_response({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage})


class TcpBytes:
    """What the kernel has counted on this process's TCP connections, both ways."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}  # by the socket's inode
        self.since_last()

    def since_last(self) -> int:
        """Since the last time that this was asked. A connection that has ended meanwhile does not count."""
        before, self._seen = self._seen, dict(_tcp_bytes())
        return sum(total - before.get(inode, 0) for inode, total in self._seen.items())


def _tcp_bytes() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not os.readlink(entry).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as one:
                if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                    info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    total = sum(struct.unpack_from("@Q", info, at)[0] for at in _TCP_BYTES_AT)
                    yield os.fstat(one.fileno()).st_ino, total
        except OSError:  # closed meanwhile
            continue


@dataclass(frozen=True, slots=True)
class _Cpu:
    """Seconds, up to a time."""

    process: float
    thread: float

    @classmethod
    def now(cls) -> _Cpu:
        return cls(time.process_time(), time.thread_time())


@dataclass(frozen=True, slots=True)
class _Iteration:
    """As measured, in the units of `Iterations`."""

    seconds: float
    driver_ms: float
    python_ms: float
    driver_kib: float
    batch_kib: float
    between_ms: Mapping[str, float]
    objects: int
    references: int


class _Iterated:
    """Hears of every iteration. What it does itself lies between two of them, and is in neither."""

    def __init__(self, between: Mapping[str, int]) -> None:
        """`between` are processes' ids."""
        self._between = {name: psutil.Process(pid) for name, pid in between.items()}
        self._bytes = TcpBytes()
        self._meter = Meter(os.getpid())
        self._spent = self._spent_s()
        self._begun = _Cpu.now()
        self.iterations: list[_Iteration] = []
        self.foreign = 0.0

    def __call__(self, iteration: int, values: Mapping[str, float]) -> None:
        ended = _Cpu.now()
        spent = self._spent_s()
        self.iterations.append(
            _Iteration(
                values[metrics.ITERATION_SECONDS],
                (ended.process - self._begun.process) * 1e3,
                (ended.thread - self._begun.thread) * 1e3,
                self._bytes.since_last() / 1024,
                values["batch_bytes"] / 1024,
                {name: (seconds - self._spent[name]) * 1e3 for name, seconds in spent.items()},
                _objects(),
                len(ray._private.worker.global_worker.core_worker.get_all_reference_counts()),
            )
        )
        self.foreign = self._meter.foreign()
        if len(self.iterations) == _WARM_UP:
            self._meter = Meter(os.getpid())
        self._bytes.since_last()
        self._spent = self._spent_s()
        self._begun = _Cpu.now()

    def _spent_s(self) -> dict[str, float]:
        return {name: sum(process.cpu_times()[:2]) for name, process in self._between.items()}


def _objects() -> int:
    """In the object stores of all raylets, each counted once."""
    from ray._private.internal_api import node_stats

    stores = [
        node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False).store_stats
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sum(store.num_object_store_primary_copies for store in stores)


async def measure(
    actors: int, sizes: Sequence[Size], iterations: int, directory: Path
) -> tuple[Placing, list[Iterations]]:
    """Inside a cluster. `directory` is empty."""
    endpoint = spawn(Endpoint, "endpoint", ActorResources(cpus=0), node=ray.get_runtime_context().get_node_id())
    largest = max(size.answers_per_actor for size in sizes) * actors
    config = _config(actors, largest, directory, await endpoint.open.remote())
    policy = RunDirectory(config.run_dir).model("sft")
    await ray.remote(_write_tokenizer).options(num_cpus=0).remote(policy)
    prompts = [Prompt(str(number), f"Say something of number {number}, and be brief.") for number in range(largest)]
    runtime = RayRuntime(config, say=print)

    with patch("actors.rollout.RolloutWorker", InstantReplica), patch("actors.learner.LearnerRank", InstantRank):
        begun = time.monotonic()
        rollouts = await runtime.rollouts()
        rollouts_s = time.monotonic() - begun
        learner = await runtime.learner(LearnerModels(policy, policy, None), directory / "checkpoints")
    judges, reward = await runtime.judges(), await runtime.rewards(directory, prompts)
    begun = time.monotonic()
    await judges.score([AnswerToScore("first", prompts[0], "So be it.")], "reward")
    await _judges_are("judge-pool", actors)
    judges_s = time.monotonic() - begun
    rest_ms, rest_kib = await _at_rest()
    raylets = await _raylets(actors)

    stages = OnlineStages(rollouts, reward, learner)
    rows = []
    for size in sizes:
        rows.append(_summary(actors, size, *await _trained(stages, actors, size, iterations, prompts)))
        _say(rows[-1])
    await judges.stop()
    to_all_s, to_none_s = await _scaled(actors, config.judge, endpoint, directory / "scaling.sqlite")
    return Placing(actors, raylets, rollouts_s, judges_s, to_all_s, to_none_s, rest_ms, rest_kib), rows


async def _trained(
    stages: OnlineStages, actors: int, size: Size, iterations: int, prompts: Sequence[Prompt]
) -> tuple[_Iterated, float]:
    """What was seen of the iterations, and the KiB of one's requests."""
    replicas = [ray.get_actor(f"rollout-{number}") for number in range(actors)]
    await asyncio.gather(*(replica.answer_with.remote(size.answer_tokens) for replica in replicas))
    each = size.answers_per_actor

    def requests(iteration: int) -> list[SampleRequest]:
        batch = take(prompts, iteration * actors * each, actors * each, 0)
        return sample_requests(batch, 1, seed=0, purpose=f"{each}x{size.answer_tokens}-{iteration}", temperature=1.0)

    count = _WARM_UP + iterations
    iterated = _Iterated(await _pids())
    await train_on_policy(stages, requests, range(count), checkpoint_every=count, on_iteration=iterated)
    batch = requests(0)
    shares = [pickle.dumps(batch[first : first + each], protocol=5) for first in range(0, len(batch), each)]
    return iterated, sum(map(len, shares)) / 1024


def _summary(actors: int, size: Size, iterated: _Iterated, requests_kib: float) -> Iterations:
    measured = iterated.iterations[_WARM_UP:]
    names = measured[0].between_ms
    return Iterations(
        actors=actors,
        size=size,
        seconds=Spread.of([one.seconds for one in measured]),
        driver_ms=Spread.of([one.driver_ms for one in measured]),
        python_ms=statistics.median(one.python_ms for one in measured),
        driver_kib=Spread.of([one.driver_kib for one in measured]),
        requests_kib=requests_kib,
        batch_kib=statistics.median(one.batch_kib for one in measured),
        between_ms={name: statistics.fmean(one.between_ms[name] for one in measured) for name in names},
        objects=Spread.of([one.objects for one in measured]),
        references=Spread.of([one.references for one in measured]),
        foreign=iterated.foreign,
    )


async def _scaled(actors: int, judge: JudgeConfig, endpoint: Any, ledger: Path) -> tuple[float, float]:
    """Seconds from a backlog for all judges to the last of them, and from the last answer to none."""
    from_none = judge.model_copy(update={"actors": judge.actors.model_copy(update={"min": 0})})
    judges = await start_judges(from_none, seed=0, run="scaling", ledger_path=ledger, name="scaling")
    prompt = Prompt("scaling", "Say a number.")
    backlog = [AnswerToScore(str(number), prompt, f"{number}.") for number in range(actors * _CALLS_OF_AN_ACTOR)]
    await endpoint.hold.remote()
    begun = time.monotonic()
    scores = asyncio.ensure_future(judges.score(backlog, "reward"))
    await _judges_are("scaling-pool", actors)
    to_all_s = time.monotonic() - begun
    await endpoint.let_go.remote()
    await scores
    begun = time.monotonic()
    await _judges_are("scaling-pool", 0)
    to_none_s = time.monotonic() - begun
    await judges.stop()
    return to_all_s, to_none_s


async def _judges_are(name: str, wanted: int) -> None:
    """Wait until so many of a pool's actors are up. Raises TimeoutError where they never are."""
    pool = ray.get_actor(name)
    async with asyncio.timeout(_PATIENCE_S):
        while await pool.__ray_call__.remote(_up) != wanted:  # noqa: ASYNC110 (a pool tells nobody)
            await asyncio.sleep(_TICK_S)


def _up(pool: Any) -> int:
    """In the process of a `JudgePool`."""
    return sum(worker.up for calls in pool._pools for worker in calls._workers)


async def _at_rest() -> tuple[float, float]:
    """A driver that has nothing to do: milliseconds of CPU and KiB on its connections, a second."""
    connections, begun = TcpBytes(), time.process_time()
    await asyncio.sleep(_REST_S)
    return (time.process_time() - begun) * 1e3 / _REST_S, connections.since_last() / 1024 / _REST_S


async def _raylets(actors: int) -> tuple[int, ...]:
    """Actors on each raylet that bears any, the most first."""
    names = ["learner-0", *(f"{kind}-{number}" for kind in ("rollout", "judge") for number in range(actors))]
    nodes = await asyncio.gather(*(ray.get_actor(name).__ray_call__.remote(_node) for name in names))
    return tuple(count for _, count in Counter(nodes).most_common())


def _node(_: Any) -> str:
    return str(ray.get_runtime_context().get_node_id())


async def _pids() -> dict[str, int]:
    """Of who stands between the driver and the pools."""
    found = {}
    for actor in ray.util.list_named_actors(all_namespaces=True):
        for prefix, name in _BETWEEN.items():
            if actor["name"].startswith(prefix):
                handle = ray.get_actor(actor["name"], actor["namespace"])
                found[name] = int(await handle.__ray_call__.remote(_pid))
    return found


def _pid(_: Any) -> int:
    return os.getpid()


def _write_tokenizer(directory: Path) -> None:
    """In a process of its own, as it brings torch with it."""
    from rlaif_ray.policy.model import scratch_tokenizer

    scratch_tokenizer([f"w{number:05}" for number in range(_WORDS)]).save_pretrained(directory)


def _config(actors: int, answers: int, directory: Path, url: str) -> RunConfig:
    """A core, by name, for every rollout actor, judge and rank, so that they need all raylets."""
    return RunConfig.model_validate(
        {
            "run_dir": str(directory / "run"),
            "prompts": {"path": "unused"},
            "policy": {"model": "unused"},
            "judge": {
                "model": "instant",
                "base_url": url,
                "mode": "choice",
                "max_concurrency": actors * _CALLS_OF_AN_ACTOR,
                "timeout_s": _PATIENCE_S,
                "actors": {"min": actors, "max": actors, "cpus": 1},
            },
            "reward": {"source": "judge"},
            "rollout": {"replicas": actors, "resources": {"cpus": 1}},
            "learner": {"resources": {"cpus": 1}},
            "ppo": {"prompts_per_iteration": answers},
        }
    )


@contextmanager
def _raylets_for(actors: int) -> Iterator[None]:
    """A head that bears no run's actor, and raylets that have just room for all."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(_RAYLETS):
            cluster.add_node(num_cpus=math.ceil((2 * actors + 1) / _RAYLETS))
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.WARNING)
        cluster.wait_for_nodes()
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def _say(row: Iterations) -> None:
    print(
        f"  {row.actors} actors of each kind, {row.size.answers_per_actor} answers of {row.size.answer_tokens} tokens: "
        f"iteration {row.seconds} s, driver {row.driver_ms_an_actor:.2f} ms an actor, {_whole(row.driver_kib)} KiB",
        flush=True,
    )


def _whole(spread: Spread) -> str:
    """In whole numbers."""
    return f"{spread.median:,.0f} [{spread.least:,.0f} to {spread.most:,.0f}]"


def _tables(growth: Growth) -> list[Table]:
    placed = Table(
        "actors", "on raylets", "rollouts s", "judges s", "none to all s", "all to none s", "rest ms/s", "KiB/s"
    )
    for one in growth.placings:
        figures = (one.rollouts_s, one.judges_s, one.to_all_s, one.to_none_s, one.rest_ms, one.rest_kib)
        placed.add_row(str(one.actors), " ".join(map(str, one.raylets)), *(f"{value:.1f}" for value in figures))
    between = list(growth.rows[0].between_ms)
    driver = Table("actors", "answers", "tokens", "s", "driver ms", "in Python", "an actor", "times", "foreign")
    through = Table("actors", "answers", "tokens", "driver KiB", "times", "asked KiB", "batch KiB", "objects", "held")
    others = Table("actors", "answers", "tokens", *(f"{name} ms" for name in between))
    for row in growth.rows:
        first = next(one for one in growth.rows if one.actors == row.actors)
        key = (str(row.actors), str(row.size.answers_per_actor), str(row.size.answer_tokens))
        slower = row.driver_ms.median / first.driver_ms.median
        more = row.driver_kib.median / first.driver_kib.median
        driver.add_row(
            *key,
            str(row.seconds),
            str(row.driver_ms),
            f"{row.python_ms:.1f}",
            f"{row.driver_ms_an_actor:.2f}",
            f"{slower:.2f}",
            f"{row.foreign:.0%}",
        )
        through.add_row(
            *key,
            _whole(row.driver_kib),
            f"{more:.2f}",
            f"{row.requests_kib:.0f}",
            f"{row.batch_kib:,.0f}",
            _whole(row.objects),
            _whole(row.references),
        )
        others.add_row(*key, *(f"{row.between_ms[name]:.0f}" for name in between))
    return [placed, driver, through, others]


def _draw(growth: Growth, path: Path) -> None:
    from plotly.subplots import make_subplots

    titles = ["CPU of the driver an actor and iteration", "through the driver an iteration"]
    figure: Any = make_subplots(rows=2, shared_xaxes=True, subplot_titles=titles)
    for size in dict.fromkeys(row.size for row in growth.rows):
        rows = [row for row in growth.rows if row.size == size]
        actors = [row.actors for row in rows]
        name = f"{size.answers_per_actor} answers of {size.answer_tokens} tokens"
        figure.add_scatter(x=actors, y=[row.driver_ms_an_actor for row in rows], name=name, row=1, col=1)
        figure.add_scatter(x=actors, y=[row.driver_kib.median for row in rows], name=name, row=2, col=1)
    figure.update_xaxes(title="rollout actors, and as many judge actors", row=2, col=1)
    figure.update_yaxes(title="ms", row=1, col=1)
    figure.update_yaxes(title="KiB", row=2, col=1)
    figure.update_layout(title="What the driver does as actors and batches grow", height=700)
    figure.write_html(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--answers-per-actor", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--answer-tokens", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--iterations", type=int, default=20, help="of each size, after the warm-up")
    parser.add_argument("--out", type=Path, default=Path("runs/growth"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    sizes = [Size(*size) for size in itertools.product(arguments.answers_per_actor, arguments.answer_tokens)]
    placings: list[Placing] = []
    rows: list[Iterations] = []
    for actors in arguments.actors:
        with tempfile.TemporaryDirectory() as directory, _raylets_for(actors):
            placing, measured = asyncio.run(measure(actors, sizes, arguments.iterations, Path(directory)))
        placings.append(placing)
        rows.extend(measured)
    growth = Growth(arguments.iterations, os.cpu_count() or 1, os.getloadavg()[0], placings, rows)
    (arguments.out / "growth.json").write_text(json.dumps(asdict(growth)) + "\n")
    _draw(growth, arguments.out / "growth.html")
    for table in _tables(growth):
        Console(width=140).print(table)


if __name__ == "__main__":
    main()
