"""What is found when a run's actors meet the nodes that they are to live on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlaif_ray.config import RunConfig
from rlaif_ray.doctor.plan import STAGES, ActorGroup, Phase


@dataclass(frozen=True, slots=True)
class Node:
    """What one machine has to grant."""

    name: str
    cpus: float
    gpus: float
    memory_gib: float


@dataclass(frozen=True, slots=True)
class Load:
    """The threads that compute at once, against the cores there are."""

    phase: Phase
    names: tuple[str, ...]
    threads: int
    cores: float

    @property
    def oversubscribed(self) -> bool:
        return self.threads > self.cores


def loads(plan: Sequence[ActorGroup], nodes: Sequence[Node]) -> list[Load]:
    """Of every phase, in order. Phases take turns: actors of one wait passively in the others."""
    cores = sum(node.cpus for node in nodes)
    phases = dict.fromkeys(phase for group in plan for phase in group.phases)
    found = []
    for phase in phases:
        working = [group for group in plan if phase in group.phases]
        found.append(Load(phase, tuple(one.name for one in working), sum(one.threads for one in working), cores))
    return sorted(found, key=lambda load: STAGES.index(load.phase.stage))


def sharing(plan: Sequence[ActorGroup], nodes: Sequence[Node]) -> str:
    """Whether threads have cores of their own, or phases share them by taking turns, in one sentence."""
    cores = sum(node.cpus for node in nodes)
    held = {stage: sum(group.threads for group in plan if stage in group.stages and group.phases) for stage in STAGES}
    stage = max(held, key=lambda stage: held[stage])
    if held[stage] <= cores:
        return f"Every thread has a core of its own: {held[stage]} at most, in {stage}, on {cores:g} cores."
    at_once = max(load.threads for load in loads(plan, nodes) if load.phase.stage == stage)
    return (
        f"Phases time-share the cores: in {stage} {held[stage]} threads take turns on {cores:g}, at most {at_once} of "
        "them at once; the others wait passively."
    )


def obstacles(plan: Sequence[ActorGroup], nodes: Sequence[Node]) -> list[str]:
    """Why the run cannot go on here, each in one sentence that names the key; none where it can."""
    return [*_too_large(plan, nodes), *_too_many(plan, nodes)]


def cautions(config: RunConfig, plan: Sequence[ActorGroup], nodes: Sequence[Node]) -> list[str]:
    """What will go, and not well."""
    found = [
        f"{load.phase}: {load.threads} threads compute at once on {load.cores:g} cores; lower the threads of "
        f"{' or '.join(load.names)}"
        for load in loads(plan, nodes)
        if load.oversubscribed
    ]
    for group in plan:
        if group.most > group.least and group.resources.cpus * group.most > sum(node.cpus for node in nodes):
            found.append(f"{group.key}: not all {group.most} actors find {group.resources.cpus:g} CPUs each")
    memory, cache = sum(node.memory_gib for node in nodes), config.rollout.kv_cache_gib * config.rollout.replicas
    if not config.rollout.resources.gpus and cache > memory / 2:
        found.append(f"rollout.kv_cache_gib: {cache:g} GiB over all replicas, of {memory:.0f} GiB of memory")
    share = config.rollout.resources.gpus
    if 0 < share < 1 and config.rollout.gpu_memory_utilization > share:
        found.append(
            f"rollout.gpu_memory_utilization={config.rollout.gpu_memory_utilization:g} is more of a GPU's memory than "
            f"rollout.resources.gpus={share:g} of it; others on that GPU may find none"
        )
    return found


def _too_large(plan: Sequence[ActorGroup], nodes: Sequence[Node]) -> list[str]:
    """Grants that no single node has."""
    return [
        f"{group.key}.{kind}={wanted:g}: no node has more than {largest:g} {kind.upper()[:-1]}s; lower it"
        for group in plan
        for kind, wanted, largest in (
            ("cpus", group.resources.cpus, max(node.cpus for node in nodes)),
            ("gpus", group.resources.gpus, max(node.gpus for node in nodes)),
        )
        if group.least and wanted > largest
    ]


def _too_many(plan: Sequence[ActorGroup], nodes: Sequence[Node]) -> list[str]:
    """Grants of a stage that together are more than all nodes have: its actors would wait for one another for ever."""
    found = []
    for stage in dict.fromkeys(stage for group in plan for stage in group.stages):
        held = [group for group in plan if stage in group.stages]
        for kind, granted, there in (
            ("CPUs", [one.least * one.resources.cpus for one in held], sum(node.cpus for node in nodes)),
            ("GPUs", [one.least * one.resources.gpus for one in held], sum(node.gpus for node in nodes)),
        ):
            if sum(granted) > there + 1e-6:
                parts = ", ".join(f"{one.name} {part:g}" for one, part in zip(held, granted, strict=True) if part)
                found.append(
                    f"{stage}: its actors hold {sum(granted):g} {kind} together ({parts}), and there are {there:g}; "
                    f"lower {' or '.join(one.key for one, part in zip(held, granted, strict=True) if part)}"
                )
    return found
