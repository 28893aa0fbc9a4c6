"""Replicas that come and go under the dispatcher. They are stand-ins that answer with what they are; real engines under
it are in tests/e2e."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from actors.rollout_dispatcher import ReplicaState, RolloutDispatcher
from actors.spawn import spawn
from rlaif_ray.config import ActorResources
from rlaif_ray.records import WeightVersion
from rlaif_ray.stages import WeightMismatch

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

SMALL = ActorResources(cpus=0.1)


class Replica:
    """Says which process answered, by which version. While the file `held` exists it answers nobody, and where `shut`
    exists it does not start."""

    def __init__(self, held: Path, shut: Path) -> None:
        while shut.exists():
            time.sleep(0.02)
        self._held = held
        self._serves: int | None = None

    async def live(self) -> None:
        await asyncio.Event().wait()

    async def load(self, version: WeightVersion) -> None:
        if version.fingerprint == "spoilt":
            raise WeightMismatch("arrived with another fingerprint")
        self._serves = version.number

    async def answer(self, requests: Sequence[int], version: WeightVersion) -> list[tuple[int, int, int | None]]:
        if self._serves is None:
            await self.load(version)
        if version.number < (self._serves or 0):
            raise WeightMismatch("an older version is wanted")
        while self._held.exists():  # noqa: ASYNC110 (a file tells nobody that it is gone)
            await asyncio.sleep(0.01)
        return [(request, os.getpid(), self._serves) for request in requests]

    async def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Pool:
    def __init__(self, folder: Path, *, enough: int, replicas: int = 2) -> None:
        self.held = [folder / f"held-{n}" for n in range(replicas)]
        self.shut = [folder / f"shut-{n}" for n in range(replicas)]
        self._enough = enough
        self.version: WeightVersion | None = None

    def start(self) -> None:
        names = [f"replica-{n}" for n in range(len(self.held))]
        self.replicas = [
            spawn(Replica, name, SMALL, args=paths, restarts=True)
            for name, *paths in zip(names, self.held, self.shut, strict=True)
        ]
        self.dispatcher = spawn(
            RolloutDispatcher,
            "replica-dispatcher",
            ActorResources(cpus=0),
            args=(names, self._enough),
            restarts=True,
            concurrency=100,
        )

    async def load(self, number: int, fingerprint: str = "sound") -> int:
        first, self.version = self.version is None, WeightVersion(number, fingerprint, (), (), ())
        return int(await self.dispatcher.load.remote(self.version, first))

    def ask(self, *requests: int) -> Any:
        """Two of these may overtake each other on their way to the dispatcher."""
        return self.dispatcher.call.remote("answer", len(requests), (requests,), self.version)

    async def ask_held(self, number: int, *requests: int) -> Any:
        """What this replica has and cannot answer: it must be the least busy one."""
        share = self.ask(*requests)
        await self.until(number, pending=len(requests))
        return share

    def hold(self) -> None:
        """From here on nobody is answered."""
        for held in self.held:
            held.touch()

    def let_go(self) -> None:
        for held in self.held:
            held.unlink()

    async def states(self) -> list[ReplicaState]:
        return list(await self.dispatcher.states.remote())

    async def start_busy(self) -> list[Any]:
        """Each replica serves version 1 and has a request, numbered from 1, that it cannot answer."""
        self.start()
        await self.until_all(serves=True)
        await self.load(1)
        self.hold()
        shares = [self.ask(number + 1) for number in range(len(self.replicas))]
        await self.until_all(pending=1)
        return shares

    async def until(self, number: int, **state: object) -> None:
        """Until a replica is so."""
        deadline = time.monotonic() + 60.0
        while (seen := (await self.states())[number]) != replace(seen, **state):
            assert time.monotonic() < deadline, seen
            await asyncio.sleep(0.02)

    async def until_wanted(self, number: int) -> None:
        """Until the dispatcher has been told of these weights."""
        deadline = time.monotonic() + 60.0
        while await self.dispatcher.__ray_call__.remote(lambda dispatcher: dispatcher._wanted.number) != number:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)

    async def until_all(self, **state: object) -> None:
        for number in range(len(self.replicas)):
            await self.until(number, **state)

    async def pid(self, number: int) -> int:
        return int(await self.replicas[number].__ray_call__.remote(lambda _: os.getpid()))

    async def kill(self, number: int) -> None:
        """The one that takes its place does not start before `shut` is gone."""
        pid = await self.pid(number)
        self.shut[number].touch()
        os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        for path in (*self.held, *self.shut):
            path.unlink(missing_ok=True)
        for actor in (self.dispatcher, *self.replicas):
            ray.kill(actor)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with closing(Pool(tmp_path, enough=1)) as pool:
        yield pool


async def test_what_a_killed_replica_had_is_answered_by_the_other_and_it_comes_back_with_the_wanted_version(
    pool: Pool,
) -> None:
    pool.start()
    await pool.until_all(serves=True)
    assert await pool.load(7) == 2
    pids = [await pool.pid(0), await pool.pid(1)]
    pool.hold()
    pool.shut[1].touch()  # the one that takes its place takes long to start
    shares = [await pool.ask_held(0, 1, 2, 3), await pool.ask_held(1, 4, 5, 6)]
    pool.held[0].unlink()
    assert await shares[0] == [(request, pids[0], 7) for request in (1, 2, 3)]
    os.kill(pids[1], signal.SIGKILL)
    assert await shares[1] == [(request, pids[0], 7) for request in (4, 5, 6)]
    assert await pool.states() == [
        ReplicaState("replica-0", True, 7, pending=0, answered=6, losses=0),
        ReplicaState("replica-1", False, None, pending=0, answered=0, losses=1),
    ]

    # Weights go on without it; from its start on it serves them and no others.
    assert await pool.load(8) == 1
    pool.held[1].unlink()
    pool.shut[1].unlink()
    await pool.until(1, serves=True)
    pool.held[0].touch()
    await pool.ask_held(0, 7)
    assert await pool.ask(8) == [(8, await pool.pid(1), 8)]
    assert (await pool.states())[1] == ReplicaState("replica-1", True, 8, pending=0, answered=1, losses=1)


async def test_a_run_begins_with_enough_and_who_comes_later_has_the_wanted_version(pool: Pool) -> None:
    pool.shut[1].touch()
    pool.start()
    await pool.dispatcher.ready.remote()
    assert await pool.load(1) == 1
    assert await pool.load(2) == 1
    pool.shut[1].unlink()
    await pool.until(1, serves=True)
    assert (await pool.states())[1].version == 2
    assert await pool.load(3) == 2


async def test_requests_wait_where_nobody_is_left(pool: Pool) -> None:
    shares = await pool.start_busy()
    old = {await pool.pid(0), await pool.pid(1)}
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    await pool.until_all(losses=1)
    pool.let_go()
    answers = [answer for share in shares for answer in await share]
    assert [(request, version) for request, _, version in answers] == [(1, 1), (2, 1)]
    assert old.isdisjoint(pid for _, pid, _ in answers)


async def test_requests_that_kill_every_replica_are_given_up(pool: Pool) -> None:
    pool.start()
    await pool.dispatcher.ready.remote()
    with pytest.raises(RuntimeError, match="3 rollout replicas died on the same 1 requests"):
        await pool.dispatcher.call.remote("die", 1, (), None)


async def test_a_replica_that_does_not_prove_its_weights_is_an_error_for_all(pool: Pool) -> None:
    pool.start()
    await pool.dispatcher.ready.remote()
    with pytest.raises(WeightMismatch, match="another fingerprint"):
        await pool.load(1, "spoilt")


async def test_what_is_lost_after_new_weights_came_is_drawn_by_those(pool: Pool) -> None:
    """Where batches are drawn ahead, the others serve the newer weights by then."""
    shares = await pool.start_busy()
    await pool.load(2)
    os.kill(await pool.pid(1), signal.SIGKILL)
    pool.let_go()
    answers = [answer for share in shares for answer in await share]
    assert [(request, version) for request, _, version in answers] == [(1, 2), (2, 2)]


async def test_a_call_that_fails_alone_does_not_end_its_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a request overtook the call that would have told of the process's end, which then came to the next
    process and tells of nothing. Ray is played."""
    asked: list[tuple[str, asyncio.Future[Any]]] = []

    class Method:
        def __init__(self, name: str) -> None:
            self._name = name

        def options(self, **options: Any) -> Method:
            return self

        def remote(self, *arguments: Any) -> asyncio.Future[Any]:
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            asked.append((self._name, future))
            if self._name == "__ray_ready__":
                future.set_result(None)
            return future

    async def nth(number: int, name: str) -> asyncio.Future[Any]:
        deadline = time.monotonic() + 30.0
        while len(found := [future for method, future in asked if method == name]) < number:
            assert time.monotonic() < deadline, asked
            await asyncio.sleep(0.01)
        return found[number - 1]

    replica = SimpleNamespace(**{name: Method(name) for name in ("__ray_ready__", "live", "answer")})
    monkeypatch.setattr(ray, "get_actor", lambda name: replica)
    dispatcher = RolloutDispatcher(["replica"], enough=1)
    await dispatcher.ready()
    answering = asyncio.create_task(dispatcher.call("answer", 1, (), None))
    (await nth(1, "answer")).set_exception(RayActorError())
    (await nth(2, "answer")).set_result("drawn")
    assert await answering == "drawn"
    assert len([method for method, _ in asked if method == "live"]) == 1


async def test_what_waited_while_new_weights_came_is_drawn_by_those(pool: Pool) -> None:
    """Nobody is left who served the older ones."""
    shares = await pool.start_busy()
    for number in range(2):
        await pool.kill(number)
    await pool.until_all(serves=False)
    loading = asyncio.ensure_future(pool.load(2))
    await pool.until_wanted(2)
    pool.let_go()
    for shut in pool.shut:
        shut.unlink()
    await loading
    answers = [answer for share in shares for answer in await share]
    assert [(request, version) for request, _, version in answers] == [(1, 2), (2, 2)]


async def test_nobody_waits_for_a_replica_that_has_just_died(pool: Pool) -> None:
    """Ray tells of a death about a second later; what it is asked to hand over meanwhile it keeps for the next process
    of the actor, which may never come."""
    pool.start()
    await pool.until_all(serves=True)
    await pool.load(1)
    pool.hold()
    busy = await pool.ask_held(0, 1, 2)
    await pool.kill(1)
    await asyncio.sleep(0.3)  # Ray knows, and the dispatcher does not
    share = pool.ask(3)
    loading = asyncio.ensure_future(pool.load(2))
    await pool.until(1, serves=False)
    pool.let_go()
    assert await asyncio.wait_for(loading, 30.0) == 1
    assert [request for shard in (busy, share) for request, *_ in await asyncio.wait_for(shard, 30.0)] == [1, 2, 3]


async def test_requests_are_not_blamed_for_replicas_that_died_without_them(tmp_path: Path) -> None:
    """Each of the dead still counts as serving when it is chosen to take over from the one before."""
    with closing(Pool(tmp_path, enough=4, replicas=4)) as pool:
        pool.start()
        await pool.load(1)
        pool.hold()
        shares = [await pool.ask_held(number, number) for number in range(3)]
        await pool.ask_held(3, *range(3, 10))  # so much that the others are less busy
        for number in range(3):
            await pool.kill(number)
            await asyncio.sleep(0.9)
        pool.let_go()
        answers = [await asyncio.wait_for(share, 30.0) for share in shares]
        assert [[request for request, *_ in answer] for answer in answers] == [[0], [1], [2]]


async def test_a_dispatcher_that_is_killed_loses_nothing(pool: Pool) -> None:
    pool.start()
    await pool.until_all(serves=True)
    await pool.load(4)
    pool.hold()
    share = pool.ask(1, 2)
    assert not ray.wait([share], timeout=0)[0]
    os.kill(int(await pool.dispatcher.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
    pool.let_go()
    assert [(request, version) for request, _, version in await share] == [(1, 4), (2, 4)]


async def test_a_run_that_has_begun_goes_on_with_fewer_than_enough_though_its_dispatcher_is_killed(
    tmp_path: Path,
) -> None:
    with closing(Pool(tmp_path, enough=2)) as pool:
        pool.start()
        await pool.load(1)
        await pool.kill(1)
        await pool.until(1, losses=1)
        os.kill(int(await pool.dispatcher.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
        assert await asyncio.wait_for(pool.load(2), 60.0) == 1
        assert [(request, version) for request, _, version in await pool.ask(1)] == [(1, 2)]
