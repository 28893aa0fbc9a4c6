"""What the judge costs in speed and memory, beside a bare loop around the `openai` client in the same run.

`python -m scripts.benchmarks.judge_throughput [--calls N] [--rounds N] [--labels N]`: calls a second at 64 requests in
flight and 50 ms latency, the ledger on, against `asyncio.gather` with a semaphore and nothing kept; the seconds that
labels take to come from the ledger alone; and the memory of a judge actor that calls an API.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import openai
import psutil
from rich.console import Console
from rich.table import Table

from actors.judge import Judges, start_judges
from actors.session import ray_session
from rlaif_ray.config import JudgeConfig
from rlaif_ray.judge.asking.replies import Position, TokenLogprob, write_completion
from rlaif_ray.judge.ledger import Ledger, Receipt
from rlaif_ray.judge.request import Reply, Request, call_key, endpoint_identity
from rlaif_ray.records import Pair, Prompt
from scripts.benchmarks.questions import questions_on
from tests.judge_server import strict_server

_IN_FLIGHT = 64
_LATENCY_S = 0.05
_WARM_UP_PAIRS = 200


@dataclass(frozen=True, slots=True)
class Figures:
    """Calls a second are medians over rounds that take turns."""

    bare_per_s: float
    pool_per_s: float
    ratio: float
    judge_actor_mib: float
    replayed_labels: int
    replay_s: float
    replay_calls: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=6_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--labels", type=int, default=100_000)
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, ray_session(local=True):
        figures = asyncio.run(measure(Path(directory), arguments.calls, arguments.rounds, arguments.labels))
    table = Table("figure", "value", title="The judge's speed and memory")
    for name, value in asdict(figures).items():
        table.add_row(name.replace("_", " "), f"{value:,.2f}")
    Console().print(table)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(asdict(figures), indent=2))


async def measure(directory: Path, calls: int, rounds: int, labels: int) -> Figures:
    """All figures, one after the other."""
    bare, pool = [], []
    with strict_server(latency_s=_LATENCY_S) as server:
        config = _config(server.url)
        judges = await start_judges(config, seed=0, run="benchmark", ledger_path=directory / "ledger.sqlite")
        await judges.label(_pairs(_WARM_UP_PAIRS, "warm-up"), "judge")
        for number in range(rounds):
            pairs = _pairs(calls // 2, f"round-{number}")
            bare.append(calls / await _time_bare(config, await questions_on(pairs, config)))
            pool.append(calls / await _time_pool(judges, pairs))
        memory = max(_resident_mib())
        await judges.stop()
    replay_s, replay_calls = await _time_replay(directory / "replay.sqlite", labels)
    return Figures(_median(bare), _median(pool), _median(pool) / _median(bare), memory, labels, replay_s, replay_calls)


async def _time_bare(config: JudgeConfig, requests: Sequence[Request]) -> float:
    client = openai.AsyncOpenAI(base_url=config.base_url, api_key="none", max_retries=0)
    room = asyncio.Semaphore(_IN_FLIGHT)

    async def call(request: Request) -> None:
        async with room:
            await client.chat.completions.create(
                model=config.model,
                messages=[{"role": "user", "content": message.content} for message in request.messages],
                max_tokens=1,
                temperature=0.0,
                logprobs=True,
                top_logprobs=20,
            )

    begun = time.perf_counter()
    await asyncio.gather(*(call(request) for request in requests))
    seconds = time.perf_counter() - begun
    await client.close()
    return seconds


async def _time_pool(judges: Judges, pairs: Sequence[Pair]) -> float:
    before = (await judges.progress()).calls
    begun = time.perf_counter()
    await judges.label(pairs, "judge")
    seconds = time.perf_counter() - begun
    assert (await judges.progress()).calls - before == 2 * len(pairs)
    return seconds


async def _time_replay(path: Path, labels: int) -> tuple[float, int]:
    """Seconds and calls for labels of which the ledger holds both orders."""
    config = _config("http://127.0.0.1:9/v1").model_copy(update={"replay": True})
    pairs = _pairs(labels, "replay")
    top = [TokenLogprob("1", -0.3), TokenLogprob("2", -1.4), *(TokenLogprob(f"word{n}", -5.0 - n) for n in range(18))]
    reply = Reply(write_completion("1", "length", [Position("1", tuple(top))], 100, 1), 100, 1, None, 0.05, 0.0)
    identity = endpoint_identity(config)
    ledger = Ledger(path)
    requests = await questions_on(pairs, config)
    ledger.record([Receipt(call_key(config.model, identity, request), "model", None, reply) for request in requests])
    ledger.close()
    judges = await start_judges(config, seed=0, run="benchmark", ledger_path=path)
    begun = time.perf_counter()
    for start in range(0, labels, 4_000):
        await asyncio.gather(*(judges.label(pairs[at : at + 500], "judge") for at in range(start, start + 4_000, 500)))
    seconds = time.perf_counter() - begun
    progress = await judges.progress()
    assert progress.scored == 2 * labels
    await judges.stop()
    return seconds, progress.calls


def _config(url: str) -> JudgeConfig:
    return JudgeConfig.model_validate(
        {
            "model": "loopback",
            "base_url": url,
            "mode": "choice",
            "max_concurrency": _IN_FLIGHT,
            "actors": {"min": 1, "max": 4, "cpus": 0.1},
        }
    )


def _pairs(count: int, name: str) -> list[Pair]:
    words = "a plain answer of some length that says what a person would want to know " * 8
    return [
        Pair(f"{name}-{number}", Prompt(f"{name}-{number}", f"{name} {number}?"), words, words[: 40 + number % 400])
        for number in range(count)
    ]


def _resident_mib() -> list[float]:
    return [
        process.info["memory_info"].rss / 2**20
        for process in psutil.process_iter(["cmdline", "memory_info"])
        if (process.info["cmdline"] or [""])[0].startswith("ray::ApiWorker")
    ]


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
