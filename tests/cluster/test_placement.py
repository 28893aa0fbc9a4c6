"""What a run reserves on a cluster of several nodes, whose GPUs are but numbers, and what is said while it waits."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"

import pytest
import ray
from ray.cluster_utils import Cluster

from actors import placement
from actors.placement import Placement, Reserved
from actors.session import cluster_nodes
from actors.spawn import spawn
from rlaif_ray.config import ActorResources, RunConfig, Stopped
from rlaif_ray.doctor.examination import obstacles
from rlaif_ray.doctor.plan import actor_plan

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

BASE = {
    "run_dir": "run",
    "prompts": {"path": "toyworld:headlines"},
    "policy": {"model": "m"},
    "judge": {"model": "far", "base_url": "http://127.0.0.1:1/v1"},
}


class Lodger:
    """Says where it lives: its node, and its GPUs."""

    def home(self) -> tuple[str, list[int]]:
        return ray.get_runtime_context().get_node_id(), ray.get_gpu_ids()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without GPUs, two nodes with four GPUs each, and one that has only cores."""
    ray.shutdown()  # other tests of this session may have left one
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for gpus in (4, 4, 0):
        cluster.add_node(num_cpus=8, num_gpus=gpus)
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def config(**changes: Any) -> RunConfig:
    return RunConfig.model_validate(BASE | changes)


async def homes(reserved: Reserved, resources: ActorResources, name: str) -> list[tuple[str, list[int]]]:
    lodgers = [
        spawn(Lodger, f"{name}-{number}", resources, slot=reserved.slot(number))
        for number in range(len(reserved.slots))
    ]
    found = list(await asyncio.gather(*(lodger.home.remote() for lodger in lodgers)))
    for lodger in lodgers:
        ray.kill(lodger)
    return found


async def all_is_free() -> None:
    """Ray tells nobody when it has taken back what was released."""
    deadline = time.monotonic() + 60.0
    while any(ray.available_resources().get(name) != there for name, there in (("CPU", 25), ("GPU", 8))):
        assert time.monotonic() < deadline, ray.available_resources()
        await asyncio.sleep(0.05)


def gpus_of(node: str) -> float:
    return float(next(one for one in ray.nodes() if one["NodeID"] == node)["Resources"].get("GPU", 0))


async def test_ranks_are_packed_engines_have_their_gpus_on_one_node_and_judges_are_elsewhere(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is there is granted by workers of four nodes that start at once: on a busy machine they take their time.
    monkeypatch.setattr(placement, "_PATIENCE_S", 300.0)
    settings = config(
        learner={"ranks": 4, "resources": {"cpus": 1, "gpus": 1}},
        rollout={"replicas": 2, "resources": {"cpus": 1, "gpus": 2}},
    )
    said: list[str] = []
    made = Placement(settings, said.append)
    # In the order of a run: both engines are on one node, so that the other has room for all ranks.
    rollouts, learner = await made.reserve("rollout"), await made.reserve("learner")
    engines = await homes(rollouts, settings.rollout.resources, "rollout")
    ranks = await homes(learner, settings.learner.resources, "learner")
    assert [len(gpus) for _, gpus in engines] == [2, 2]
    assert len({node for node, _ in ranks}) == 1
    assert sorted(gpu for _, gpus in ranks for gpu in gpus) == [0, 1, 2, 3]
    judges = [spawn(Lodger, f"judge-{number}", ActorResources(cpus=0.5)) for number in range(6)]
    assert {gpus_of((await judge.home.remote())[0]) for judge in judges} == {0.0}
    for judge in judges:
        ray.kill(judge)
    assert said == []
    assert obstacles(settings, actor_plan(settings), cluster_nodes()) == []
    rollouts.release()
    learner.release()
    await all_is_free()


async def test_a_shared_gpu_is_a_replicas_and_a_ranks_until_both_have_let_go(cluster: Cluster) -> None:
    half = {"cpus": 1, "gpus": 0.5}
    settings = config(
        placement={"share_gpus": True},
        learner={"ranks": 4, "resources": half},
        rollout={"replicas": 4, "resources": half},
    )
    made = Placement(settings, print)
    rollouts, learner = await made.reserve("rollout"), await made.reserve("learner")
    engines = await homes(rollouts, settings.rollout.resources, "rollout")
    ranks = await homes(learner, settings.learner.resources, "learner")
    assert engines == ranks
    assert len({(node, *gpus) for node, gpus in ranks}) == 4
    learner.release()
    again = await made.reserve("learner")  # of the next round
    assert [slot.group.id for slot in again.slots] == [slot.group.id for slot in rollouts.slots]
    for reserved in (again, rollouts):
        reserved.release()
    await all_is_free()


async def test_who_waits_too_long_stops_with_that_sentence_and_leaves_nothing_behind(cluster: Cluster) -> None:
    settings = config(
        learner={"ranks": 2, "resources": {"cpus": 1, "gpus": 1, "custom": {"fast": 1}}}, placement={"timeout_s": 0.5}
    )
    with pytest.raises(Stopped) as stopped:
        await Placement(settings, print).reserve("learner")
    assert str(stopped.value) == (
        "learner wants 2 x (1 CPU, 1 GPU, 1 fast); 25 of 25 CPU, 8 of 8 GPU, 0 of 0 fast free on 4 nodes "
        "after placement.timeout_s=0.5: add nodes, lower learner.resources, or wait longer; the same command goes on"
    )
    told = obstacles(settings, actor_plan(settings), cluster_nodes())
    assert told[0] == "learner.resources.custom.fast=1: no node has more than 0 fast; lower it"
    table = ray.util.placement_group_table().values()
    assert all(group["state"] == "REMOVED" for group in table)


async def test_who_waits_says_what_for_and_goes_on_when_a_node_comes(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "_PATIENCE_S", 0.2)
    settings = config(rollout={"replicas": 2, "min_replicas": 1, "resources": {"gpus": 8, "cpus": 2}})
    spoken = asyncio.Event()
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        spoken.set()

    waiting = asyncio.ensure_future(Placement(settings, say).reserve("rollout"))
    await spoken.wait()
    assert said[0].startswith(
        "  waiting for nodes: rollout wants 1 x (2 CPU, 8 GPU); 25 of 25 CPU, 8 of 8 GPU free on 4 nodes; "
        "stops in 1800 s"
    )
    assert not waiting.done(), "the nodes have 8 GPUs together, and none has 8"
    cluster.add_node(num_cpus=4, num_gpus=8)
    reserved = await waiting
    assert len(reserved.slots) == 2, "the other has its place when a node comes for it"
