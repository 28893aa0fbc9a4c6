from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import limited_caller
import pytest
import ray
from judge_server import BillLine, admitted, strict_server
from limited_caller import LimitedCaller

from actors.limiter import CallTooLarge, Limiter
from actors.spawn import SHARED_NAMESPACE
from rlaif_ray.config import EndpointConfig
from rlaif_ray.judge.rate_limit import Priority
from rlaif_ray.judge.token_estimate import CallSize

HERE = Path(__file__).parent

pytestmark = pytest.mark.alone

# Ray's workers do not find the tests' modules.
ray.cloudpickle.register_pickle_by_value(limited_caller)


def endpoint(url: str, **settings: Any) -> EndpointConfig:
    return EndpointConfig.model_validate({"model": "strict", "base_url": url, "max_concurrency": 256, **settings})


@contextmanager
def callers(to: EndpointConfig, count: int) -> Iterator[list[Any]]:
    actors = [ray.remote(LimitedCaller).options(num_cpus=0).remote(to, f"caller-{number}") for number in range(count)]
    ray.get([actor.open.remote() for actor in actors])
    yield actors
    for actor in actors:
        ray.kill(actor)


def limiter_names() -> set[str]:
    names = (actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True))
    return {name for name in names if name.startswith("limiter-")}


def kill_limiter(name: str) -> None:
    """By SIGKILL: Ray starts it again."""
    actor = ray.get_actor(name, namespace=SHARED_NAMESPACE)
    os.kill(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)


async def answered_more(actors: Sequence[Any], count: int) -> None:
    """Wait until callers that run have so many answers more."""

    async def answered() -> int:
        return sum(await asyncio.gather(*(actor.answered.remote() for actor in actors)))

    async with asyncio.timeout(60.0):
        goal = await answered() + count
        while await answered() < goal:  # noqa: ASYNC110 - they are another process's
            await asyncio.sleep(0.1)


async def throttled(limiter: Limiter) -> None:
    async with asyncio.timeout(60.0):
        while not await limiter.throttled():  # noqa: ASYNC110 - it is another process's
            await asyncio.sleep(0.02)


def refused(bill: list[BillLine]) -> int:
    return sum(line.status == 429 for line in bill)


@pytest.mark.parametrize(
    "quota", [{"requests_per_minute": 1_200}, {"tokens_per_minute": 600_000}], ids=["requests", "tokens"]
)
async def test_twenty_seconds_use_the_quota_and_never_more(quota: dict[str, float]) -> None:
    """The benchmark of rates in short, by the strictest count that a pace without bursts can keep. Over so little time
    the start weighs, so 95 % are enough here."""
    with strict_server(policy="bucket-1s", latency_s=0.1, latency_jitter_s=0.3, **quota) as server:
        with callers(endpoint(server.url, **quota), 4) as actors:
            await asyncio.gather(*(actor.run.remote(20.0) for actor in actors))
        bill = await asyncio.to_thread(server.bill)
    assert refused(bill) == 0
    requests, tokens, seconds = admitted(bill)
    used = requests if "requests_per_minute" in quota else tokens
    assert used >= 0.95 * next(iter(quota.values())) / 60 * seconds


async def test_a_killed_limiter_comes_back_and_overruns_nothing() -> None:
    """600 requests a minute, and five in flight: also while the new limiter learns what is out."""
    quota = {"requests_per_minute": 600.0}
    with strict_server(policy="bucket-1s", latency_s=0.7, **quota) as server:
        before = limiter_names()
        with callers(endpoint(server.url, max_concurrency=5, **quota), 2) as actors:
            (name,) = limiter_names() - before
            for actor in actors:
                actor.run.remote(600.0)
            await answered_more(actors, 20)
            for _ in range(2):
                kill_limiter(name)
                await answered_more(actors, 20)
        bill = await asyncio.to_thread(server.bill)
    assert refused(bill) == 0
    arrivals = sorted(line.arrived for line in bill)
    # Five at a time, of .7 s each: the sixth after any arrival comes .7 s later.
    assert all(sixth - first >= 0.69 for first, sixth in zip(arrivals, arrivals[5:], strict=False))


async def test_a_dead_callers_slots_are_free_at_once() -> None:
    with strict_server(latency_s=60.0) as server:
        to = endpoint(server.url, max_concurrency=4)
        with callers(to, 1) as (victim,):
            victim.run.remote(60.0)
            holder = await victim.open.remote()
            mine = Limiter(to)
            await throttled(mine)
            waiting = asyncio.ensure_future(mine.permit(CallSize(100, 1)))
            await asyncio.sleep(0.3)
            assert not waiting.done()
        await mine.release(holder)
        mine.unsent(await asyncio.wait_for(waiting, 10.0))


async def test_a_caller_that_gives_up_takes_nothing_along() -> None:
    to = endpoint("http://127.0.0.1:9/v1", requests_per_minute=60.0, max_concurrency=1)
    limiter = Limiter(to)
    first = await limiter.permit(CallSize(100, 1))
    given_up = asyncio.ensure_future(limiter.permit(CallSize(100, 1)))
    await asyncio.sleep(0.2)
    given_up.cancel()
    waiting = asyncio.ensure_future(limiter.permit(CallSize(100, 1)))
    await asyncio.sleep(0.2)
    limiter.replied(first, None, {})
    limiter.unsent(await asyncio.wait_for(waiting, 10.0))


async def test_the_urgent_overtake_what_waits_in_bulk() -> None:
    to = endpoint("http://127.0.0.1:9/v1", model="urgent", requests_per_minute=120.0)
    limiter = Limiter(to)
    order: list[Priority] = []

    async def call(priority: Priority) -> None:
        lease = await limiter.permit(CallSize(100, 1), priority)
        order.append(priority)
        limiter.replied(lease, None, {})

    bulk = [asyncio.ensure_future(call(Priority.BULK)) for _ in range(6)]
    await asyncio.sleep(0.2)
    await call(Priority.LIVE)
    assert order.index(Priority.LIVE) <= 2
    await asyncio.gather(*bulk)


async def test_a_call_that_no_minute_bears_is_told_so() -> None:
    limiter = Limiter(endpoint("http://127.0.0.1:9/v1", model="large", tokens_per_minute=1_000.0))
    with pytest.raises(CallTooLarge, match=r"judge\.tokens_per_minute"):
        await limiter.permit(CallSize(100_000, 1))
    limiter.unsent(await limiter.permit(CallSize(100, 1)))


async def test_a_retry_after_holds_everyone() -> None:
    to = endpoint("http://127.0.0.1:9/v1", model="busy")
    mine, other = Limiter(to), Limiter(to)
    lease = await mine.permit(CallSize(100, 1))
    started = time.monotonic()
    mine.refused(lease, {"retry-after": "3"})
    await throttled(other)
    other.unsent(await other.permit(CallSize(100, 1)))
    assert time.monotonic() - started >= 2.9


_OTHER_JOB = """
import asyncio, sys
import limited_caller
import ray
from rlaif_ray.config import EndpointConfig

async def main():
    endpoint = EndpointConfig.model_validate_json(sys.argv[2])
    ray.cloudpickle.register_pickle_by_value(limited_caller)
    actor = ray.remote(limited_caller.LimitedCaller).options(num_cpus=0).remote(endpoint, "other")
    await actor.open.remote()
    print("up", flush=True)
    await actor.run.remote(6.0)

ray.init(address=sys.argv[1], log_to_driver=False)
asyncio.run(main())
"""


async def test_two_jobs_share_a_quota_and_either_may_end() -> None:
    """The other job starts the limiter, and takes it along when it ends; ours goes on."""
    quota = {"requests_per_minute": 600.0}
    with strict_server(policy="bucket-1s", latency_s=0.05, **quota) as server:
        to = endpoint(server.url, quota="shared by two jobs", **quota)
        path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), str(HERE)])
        other = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _OTHER_JOB, ray.get_runtime_context().gcs_address, to.model_dump_json()),
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
        )
        assert other.stdout is not None
        assert await other.stdout.readline() == b"up\n"
        with callers(to, 1) as (mine,):
            mine.run.remote(600.0)
            assert await asyncio.wait_for(other.wait(), 120.0) == 0
            await answered_more([mine], 30)
        bill = await asyncio.to_thread(server.bill)
    assert refused(bill) == 0


async def test_a_quota_that_nobody_configured_is_learned_from_headers() -> None:
    """What was under way before the first reply is refused; from then on the pace is the endpoint's."""
    with strict_server(policy="bucket-1s", requests_per_minute=600, rate_headers=True, latency_s=0.05) as server:
        with callers(endpoint(server.url), 2) as actors:
            await asyncio.gather(*(actor.run.remote(10.0, 8) for actor in actors))
        bill = await asyncio.to_thread(server.bill)
    started = min(line.arrived for line in bill)
    assert refused([line for line in bill if line.arrived > started + 3.0]) == 0
    requests, _, seconds = admitted([line for line in bill if line.arrived > started + 3.0])
    assert requests >= 0.9 * 10 * seconds
