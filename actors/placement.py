"""Where actors live: what a run reserves, as Ray's placement groups. Nothing waits silently for a node.

What is reserved follows from the config, by `rlaif_ray.doctor.reservations`, which the doctor reads too. Judges reserve
nothing: Ray's autoscaler sees each that waits, and Ray gives nodes with GPUs to those that ask for none only where no
other node has room.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import TaskUnschedulableError, WorkerCrashedError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from rlaif_ray.config import RunConfig, Stopped, UserError
from rlaif_ray.doctor.reservations import Reservation, reservations
from rlaif_ray.rundir import RunDirectory

# How often it is said what a run waits for.
_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Slot:
    """A bundle: where one actor of a group lives."""

    group: PlacementGroup
    bundle: int

    @property
    def strategy(self) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(self.group, self.bundle)


@dataclass(frozen=True, slots=True)
class Reserved:
    """A slot for each actor of a group; none where they live wherever there is room."""

    slots: tuple[Slot, ...] = ()
    release: Callable[[], None] = lambda: None  # what is not shared with another group is free again

    def slot(self, number: int) -> Slot | None:
        return self.slots[number] if self.slots else None


ANYWHERE = Reserved()


class Placement:
    """The run's reservations. Inside a `ray_session`; `say` is told what is waited for."""

    def __init__(self, config: RunConfig, say: Callable[[str], None]) -> None:
        self._reservations = reservations(config)
        self._timeout_s = config.placement.timeout_s
        self._say = say
        self._run = RunDirectory(config.run_dir)
        self._seeing: set[str] = set()  # ids of nodes that see the run's directory
        self._groups: dict[int, PlacementGroup] = {}
        self._holders: Counter[int] = Counter()
        self._numbers = itertools.count(1)

    async def reserve(self, actors: str) -> Reserved:
        """For a group of the plan. Returns when as many slots are granted as the run does not go on without; the
        others will be. Raises Stopped after `placement.timeout_s`, and UserError where a node does not see the run's
        directory."""
        numbers = [
            number for number, one in enumerate(self._reservations) if actors in (group.name for group in one.groups)
        ]
        if not numbers:
            return Reserved()
        held = [self._hold(number) for number in numbers]
        reserved = Reserved(
            tuple(Slot(group, bundle) for group in held for bundle in range(group.bundle_count)),
            lambda: self._release(numbers),
        )
        try:
            wanted = [self._reservations[number] for number in numbers]
            await self._granted(wanted, held)
            await self._seen([group for one, group in zip(wanted, held, strict=True) if one.needed])
        except BaseException:
            reserved.release()
            raise
        return reserved

    async def room_for(self, actors: str) -> None:
        """Wait until there is room for a group that somebody else places."""
        (await self.reserve(actors)).release()

    def _hold(self, number: int) -> PlacementGroup:
        if number not in self._groups:
            one = self._reservations[number]
            self._groups[number] = placement_group(
                [dict(bundle.grants) for bundle in one.bundles],
                strategy=one.strategy,
                name=f"{one.name} ({next(self._numbers)})",  # one that was removed keeps its name for a while
            )
        self._holders[number] += 1
        return self._groups[number]

    def _release(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._holders[number] -= 1
            if not self._holders[number]:
                remove_placement_group(self._groups.pop(number))

    async def _granted(self, wanted: Sequence[Reservation], groups: Sequence[PlacementGroup]) -> None:
        """Wait until those of these are granted that are needed."""
        waiting = {
            asyncio.ensure_future(_ready(group)) for one, group in zip(wanted, groups, strict=True) if one.needed
        }
        begun = time.monotonic()
        try:
            while waiting:
                left_s = begun + self._timeout_s - time.monotonic()
                granted, waiting = await asyncio.wait(
                    waiting, timeout=min(_PATIENCE_S, max(0.0, left_s)), return_when=asyncio.FIRST_COMPLETED
                )
                for one in granted:
                    one.result()
                if granted:
                    continue
                state = f"{_wants(wanted[0])}; {_there(wanted[0])}"
                if left_s <= 0:
                    raise Stopped(
                        f"{state} after placement.timeout_s={self._timeout_s:g}: add nodes, lower {wanted[0].keys}, or "
                        "wait longer; the same command goes on"
                    )
                self._say(f"  waiting for nodes: {state}; stops in {left_s:.0f} s")
        finally:
            for one in waiting:
                one.cancel()

    async def _seen(self, groups: Sequence[PlacementGroup]) -> None:
        """Every node of these must find in the run's directory what is there: weights and checkpoints go through it."""
        config = self._run.config
        if not config.exists():  # nothing is kept yet
            return
        self._seeing.add(ray.get_runtime_context().get_node_id())
        homes = {node for group in groups for node in placement_group_table(group)["bundles_to_node_id"].values()}
        asked = sorted(homes - self._seeing)
        text = config.read_text()
        seeing = await asyncio.gather(*(_sees(node, config, text) for node in asked))
        blind = [node for node, sees in zip(asked, seeing, strict=True) if not sees]
        if blind:
            raise UserError(
                f"run_dir={self._run.path}: {_name_of(blind[0])} does not see what is there; put it on storage that "
                "every node mounts under that name"
            )
        self._seeing.update(asked)


async def _sees(node: str, path: Path, text: str) -> bool:
    home = NodeAffinitySchedulingStrategy(node, soft=False)
    task: Any = ray.remote(_holds).options(num_cpus=0, scheduling_strategy=home)
    try:
        return bool(await task.remote(path, text))
    except (TaskUnschedulableError, WorkerCrashedError):  # a node that is lost is the business of who lived there
        return True


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except OSError:
        return False


def _name_of(node: str) -> str:
    (found,) = [one for one in ray.nodes() if one["NodeID"] == node]
    return f"node {found['NodeManagerHostname']} ({found['NodeManagerAddress']})"


async def _ready(group: PlacementGroup) -> None:
    await group.ready()


def _wants(wanted: Reservation) -> str:
    return f"{wanted.name} wants {len(wanted.bundles)} x ({wanted.bundles[0]})"


def _there(wanted: Reservation) -> str:
    """What the nodes have together of the resources that are wanted."""
    nodes = sum(node["Alive"] for node in ray.nodes())
    there, free = ray.cluster_resources(), ray.available_resources()
    parts = [f"{free.get(name, 0):g} of {there.get(name, 0):g} {name}" for name, _ in wanted.bundles[0].grants]
    return f"{', '.join(parts)} free on {nodes} node{'s' if nodes > 1 else ''}"
