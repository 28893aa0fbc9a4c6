"""Which examples of several kinds a page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

Kind = TypeVar("Kind")
Item = TypeVar("Item")


def taken_in_turn(kinds: Mapping[Kind, Sequence[Item]], count: int) -> list[tuple[Kind, Item]]:
    """The first of every kind, then the second of every kind, and so on until there are `count`; listed by kind."""
    in_turn = [(kind, items[turn]) for turn in range(count) for kind, items in kinds.items() if turn < len(items)]
    order = list(kinds)
    return sorted(in_turn[:count], key=lambda taken: order.index(taken[0]))
