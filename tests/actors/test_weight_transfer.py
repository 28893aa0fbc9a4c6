"""Who is asked to send what, and what comes of weights that cannot come. Ray is not needed: handles are played."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from actors.rollout_dispatcher import RolloutDispatcher
from actors.weight_transfer import WeightSender, arriving, sent_by
from rlaif_ray.records import WeightVersion
from rlaif_ray.stages import WeightMismatch


def handle(calls: list[Any], name: str, *methods: str) -> Any:
    """Plays the handle of an actor that is up, does at once what it is asked, and notes it."""

    def remote(method: str) -> Callable[..., asyncio.Future[None]]:
        def ask(*args: Any) -> asyncio.Future[None]:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if method in methods:
                calls.append((name, method, *args))
            if method != "live":
                done.set_result(None)
            return done

        return ask

    def callable_as(method: str) -> Any:
        called = SimpleNamespace(remote=remote(method))
        called.options = lambda **options: called
        return called

    return SimpleNamespace(**{method: callable_as(method) for method in (*methods, "__ray_ready__", "live")})


def version(number: int, fingerprint: str) -> WeightVersion:
    return WeightVersion(number, fingerprint, (), (), ())


async def test_all_ranks_send_to_all_replicas_which_then_prove_what_they_got(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    named = {name: handle(calls, name, "load", "finish_load") for name in ("replica 0", "replica 1")}
    replicas = list(named.values())
    ranks = [handle(calls, f"rank {index}", "send_weights") for index in range(2)]
    monkeypatch.setattr(ray, "get_actor", named.__getitem__)
    pool = RolloutDispatcher(list(named), enough=2)
    first = sent_by(version(1, "a"), ranks)
    await pool.load(first)
    assert calls == [
        ("rank 0", "send_weights", replicas),
        ("rank 1", "send_weights", replicas),
        ("replica 0", "finish_load", first),
        ("replica 1", "finish_load", first),
    ]
    # The same bytes under another number are not sent again.
    calls.clear()
    second = sent_by(version(2, "a"), ranks)
    await pool.load(second)
    assert calls == [("replica 0", "load", second), ("replica 1", "load", second)]


async def test_a_replica_that_dies_while_weights_are_sent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks wait for it where they meet over the device, and nothing tells them."""
    named = {name: handle([], name, "load", "finish_load") for name in ("replica 0", "replica 1")}
    dies, lives = (asyncio.get_running_loop().create_future() for _ in range(2))
    named["replica 1"].live.remote = iter([dies, lives]).__next__
    asked = asyncio.Event()

    def send_weights(replicas: list[Any]) -> asyncio.Future[None]:
        asked.set()
        return asyncio.get_running_loop().create_future()

    monkeypatch.setattr(ray, "get_actor", named.__getitem__)
    pool = RolloutDispatcher(list(named), enough=2)
    rank = SimpleNamespace(send_weights=SimpleNamespace(remote=send_weights))
    loading = asyncio.create_task(pool.load(sent_by(version(7, "a"), [rank])))
    await asked.wait()
    dies.set_exception(RayActorError())
    with pytest.raises(WeightMismatch, match="version 7, and weights that are sent over a GPU come to all"):
        await asyncio.wait_for(loading, 30.0)


async def test_weights_that_are_sent_do_not_come_to_one_replica_alone() -> None:
    with pytest.raises(WeightMismatch, match="version 7, and weights that are sent over a GPU come to all"):
        async for _ in arriving(sent_by(version(7, "a"), [])):
            pass


def test_every_rank_goes_through_all_buckets_but_only_the_first_publishes() -> None:
    gathered = []

    def buckets() -> Any:
        for name in ("a", "b"):
            gathered.append(name)
            yield {}

    assert WeightSender(buckets, "nccl", rank=1, bucket_bytes=1).publish() is None
    assert gathered == ["a", "b"]
    published = WeightSender(buckets, "nccl", rank=0, bucket_bytes=1).publish()
    assert published is not None
    assert published.weights == ()
    assert gathered == ["a", "b"] * 2
