"""What a run reserves of its cluster: which grants come together or not at all, and each of them on one node.

Follows from the config, through the plan of actors. `actors.placement` asks Ray for it, and the doctor looks for room.
Judges are in none of it: they come and go one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rlaif_ray.config import ActorResources, RunConfig
from rlaif_ray.doctor.plan import ActorGroup, Binding, actor_plan


@dataclass(frozen=True, slots=True)
class Bundle:
    """What is granted on one node, by Ray's names of resources."""

    grants: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, *granted: ActorResources) -> Bundle:
        """What actors that are given so much hold together."""
        total: dict[str, float] = {}
        for one in granted:
            for name, amount in (("CPU", one.cpus), ("GPU", one.gpus), *one.custom.items()):
                total[name] = total.get(name, 0.0) + amount
        return cls(tuple((name, amount) for name, amount in total.items() if amount))

    def of_kind(self, name: str) -> float:
        return dict(self.grants).get(name, 0.0)

    def __str__(self) -> str:
        return ", ".join(f"{amount:g} {name}" for name, amount in self.grants) or "nothing"


@dataclass(frozen=True, slots=True)
class Reservation:
    """Bundles that are granted all or none, on as few nodes as can be. The i-th is for the i-th actor of each of
    `groups`."""

    groups: tuple[ActorGroup, ...]
    bundles: tuple[Bundle, ...]
    needed: bool  # without it the run does not go on

    @property
    def strategy(self) -> Literal["PACK", "STRICT_PACK"]:
        """Ray's word for it."""
        return "PACK" if len(self.bundles) > 1 else "STRICT_PACK"

    @property
    def stages(self) -> tuple[str, ...]:
        return self.groups[0].stages

    @property
    def name(self) -> str:
        return " and ".join(group.name for group in self.groups)

    @property
    def keys(self) -> str:
        return " or ".join(group.key for group in self.groups)


def reservations(config: RunConfig) -> list[Reservation]:
    """The run's. A GPU that is shared is reserved for both sides as long as either needs it."""
    plan = [group for group in actor_plan(config) if Bundle.of(group.resources).grants]
    if not config.placement.share_gpus:
        return [one for group in plan for one in _of(group)]
    sharing = [group for group in plan if group.name in ("rollout", "learner")]
    alone = [one for group in plan if group not in sharing for one in _of(group)]
    return [_reserved(sharing, config.rollout.replicas), *alone]


def _of(group: ActorGroup) -> list[Reservation]:
    if group.binding is Binding.TOGETHER:
        return [_reserved([group], group.most)]
    if group.binding is Binding.EACH:
        later = [_reserved([group], 1, needed=False)] * (group.most - group.least)
        return [_reserved([group], group.least), *later]
    return []


def _reserved(groups: Sequence[ActorGroup], count: int, *, needed: bool = True) -> Reservation:
    return Reservation(tuple(groups), (Bundle.of(*(group.resources for group in groups)),) * count, needed)
