"""What the doctor says, on one page."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlaif_ray.doctor.examination import Load, Node
from rlaif_ray.doctor.plan import ActorGroup

_WIDTH = 120


def page(
    nodes: Sequence[Node],
    plan: Sequence[ActorGroup],
    loads: Sequence[Load],
    sharing: str,
    cautions: Sequence[str],
    obstacles: Sequence[str],
) -> Group:
    parts: list[RenderableType] = [_nodes(nodes), Text(), _actors(plan), Text(), _loads(loads), Text(), Text(sharing)]
    parts += [Text.assemble(("caution ", "yellow"), text) for text in cautions]
    parts += [Text.assemble(("cannot run ", "bold red"), text) for text in obstacles]
    if not obstacles:
        parts.append(Text("This run can go here.", style="bold green"))
    return Group(*parts)


def show(content: Group) -> None:
    """On the terminal as it is, elsewhere as plain text of a width that holds it."""
    Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH).print(content)


def _nodes(nodes: Sequence[Node]) -> Table:
    table = _table("Node", "CPUs", "GPUs", "Memory", title="What there is")
    table.add_column("Custom")
    for node in nodes:
        custom = _named(node.custom)
        table.add_row(node.name, f"{node.cpus:g}", f"{node.gpus:g}", f"{node.memory_gib:.1f} GiB", custom)
    return table


def _actors(plan: Sequence[ActorGroup]) -> Table:
    table = _table("Actors", "How many", "CPUs", "GPUs", "Threads", title="What each actor gets")
    table.add_column("Granted")
    table.add_column("Set by")
    table.add_column("Held during")
    for group in plan:
        count = f"{group.most}" if group.least == group.most else f"{group.least} to {group.most}"
        grants = group.resources
        table.add_row(
            group.name,
            count,
            f"{grants.cpus:g}",
            f"{grants.gpus:g}",
            f"{grants.threads}",
            " ".join(part for part in (str(group.binding), _named(grants.custom)) if part),
            group.key,
            ", ".join(group.stages),
        )
    return table


def _named(custom: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {amount:g}" for name, amount in custom.items())


def _loads(loads: Sequence[Load]) -> Table:
    """Actors of different rows take turns on the same cores."""
    table = _table("Working at once", "Threads", "Cores", title="Who computes when: rows take turns")
    table.add_column("Actors")
    for load in loads:
        threads = Text(f"{load.threads}", style="yellow" if load.oversubscribed else "")
        table.add_row(str(load.phase), threads, f"{load.cores:g}", ", ".join(load.names))
    return table


def _table(first: str, *numbers: str, title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right")
    return table
