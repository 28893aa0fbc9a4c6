"""What is found when a run's actors meet the nodes that they are to live on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlaif_ray.config import RunConfig
from rlaif_ray.doctor.plan import STAGES, ActorGroup, Binding, Phase
from rlaif_ray.doctor.reservations import Bundle, reservations

# Grants are fractions of a core.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Node:
    """What one machine has to grant."""

    name: str
    cpus: float
    gpus: float
    memory_gib: float
    custom: Mapping[str, float] = field(default_factory=dict)  # Ray's custom resources

    def has(self, name: str) -> float:
        """Of a resource, by Ray's name of it."""
        return {"CPU": self.cpus, "GPU": self.gpus}.get(name, self.custom.get(name, 0.0))


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


def obstacles(config: RunConfig, plan: Sequence[ActorGroup], nodes: Sequence[Node]) -> list[str]:
    """Why the run cannot go on here, each in one sentence that names the key; none where it can."""
    found = [*_too_large(plan, nodes), *_too_many(plan, nodes)]
    # Only where sums and sizes would do is it worth telling that the pieces do not fit.
    return found or _without_room(config, plan, nodes)


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
    if 0 < share < 1 and not config.placement.share_gpus and config.rollout.gpu_memory_utilization > share:
        found.append(
            f"rollout.gpu_memory_utilization={config.rollout.gpu_memory_utilization:g} is more of a GPU's memory than "
            f"rollout.resources.gpus={share:g} of it; others on that GPU may find none"
        )
    return found


def _too_large(plan: Sequence[ActorGroup], nodes: Sequence[Node]) -> list[str]:
    """Grants that no single node has."""
    found = []
    for group in plan:
        for key, name, wanted in _grants(group):
            largest = max(node.has(name) for node in nodes)
            if group.least and wanted > largest:
                found.append(f"{group.key}.{key}={wanted:g}: no node has more than {largest:g} {_unit(name)}; lower it")
    return found


def _grants(group: ActorGroup) -> list[tuple[str, str, float]]:
    """The key, Ray's name, and the amount of each."""
    resources = group.resources
    custom = [(f"custom.{name}", name, amount) for name, amount in resources.custom.items()]
    return [("cpus", "CPU", resources.cpus), ("gpus", "GPU", resources.gpus), *custom]


def _too_many(plan: Sequence[ActorGroup], nodes: Sequence[Node]) -> list[str]:
    """Grants of a stage that together are more than all nodes have: its actors would wait for one another for ever."""
    found = []
    for stage in _stages(plan):
        held = [group for group in plan if stage in group.stages]
        for name in dict.fromkeys(name for group in held for _, name, _ in _grants(group)):
            granted = [sum(amount for _, one, amount in _grants(group) if one == name) * group.least for group in held]
            there = sum(node.has(name) for node in nodes)
            if sum(granted) > there + _ROUNDING:
                parts = ", ".join(f"{one.name} {part:g}" for one, part in zip(held, granted, strict=True) if part)
                found.append(
                    f"{stage}: its actors hold {sum(granted):g} {_unit(name)} together ({parts}), and there are "
                    f"{there:g}; lower {' or '.join(one.key for one, part in zip(held, granted, strict=True) if part)}"
                )
    return found


def _without_room(config: RunConfig, plan: Sequence[ActorGroup], nodes: Sequence[Node]) -> list[str]:
    """Stages of which a bundle finds no node: the largest first, each on the first node that bears it."""
    found = []
    for stage in _stages(plan):
        wanted = [
            (one.keys, bundle)
            for one in reservations(config)
            if one.needed and stage in one.stages
            for bundle in one.bundles
        ]
        elastic = [group for group in plan if group.binding is Binding.ON_DEMAND and stage in group.stages]
        wanted += [(group.key, Bundle.of(group.resources)) for group in elastic for _ in range(group.least)]
        free = [{name: node.has(name) for name in ("CPU", "GPU", *node.custom)} for node in nodes]
        for key, bundle in sorted(wanted, key=lambda pair: (-pair[1].of_kind("GPU"), -pair[1].of_kind("CPU"))):
            room = [one for one in free if all(one.get(name, 0.0) >= n - _ROUNDING for name, n in bundle.grants)]
            if not room:
                found.append(f"{stage}: no node has {bundle} left for {key}, beside the others; take larger nodes")
                break
            for name, amount in bundle.grants:
                room[0][name] -= amount
    return found


def _stages(plan: Sequence[ActorGroup]) -> list[str]:
    return sorted({stage for group in plan for stage in group.stages}, key=STAGES.index)


def _unit(name: str) -> str:
    return f"{name}s" if name in ("CPU", "GPU") else name
