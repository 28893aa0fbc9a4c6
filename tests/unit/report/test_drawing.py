"""Examples are taken from every kind in turn."""

from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.report.drawing import taken_in_turn

KINDS = st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(), max_size=6))


def test_kinds_take_turns_until_there_are_enough_and_are_listed_together() -> None:
    """Turns: a1, c1, d1; a2, d2. The sixth would be d3."""
    kinds = {"a": [1, 2], "b": [], "c": [1], "d": [1, 2, 3]}
    assert taken_in_turn(kinds, 5) == [("a", 1), ("a", 2), ("c", 1), ("d", 1), ("d", 2)]


@given(kinds=KINDS, count=st.integers(0, 20))
def test_as_many_as_there_are_the_first_of_each(kinds: dict[str, list[int]], count: int) -> None:
    taken = taken_in_turn(kinds, count)
    assert len(taken) == min(count, sum(map(len, kinds.values())))
    shares = {kind: [item for one, item in taken if one == kind] for kind in kinds}
    assert all(shares[kind] == items[: len(shares[kind])] for kind, items in kinds.items())
    # No kind that still has some is behind another by more than one.
    most = max(map(len, shares.values()), default=0)
    assert all(len(shares[kind]) >= min(len(items), most - 1) for kind, items in kinds.items())
