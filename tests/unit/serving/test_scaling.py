import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.serving.scaling import ServerLoad, wanted_actors


@pytest.mark.parametrize(
    ("load", "wanted", "why"),
    [
        (ServerLoad(oldest_s=0.0, actors=0, starting=0, idle_s=0.0), 1, "the fewest are there from the start"),
        (ServerLoad(oldest_s=0.4, actors=2, starting=0, idle_s=0.0), 2, "a young answer may yet be served"),
        (ServerLoad(oldest_s=0.5, actors=2, starting=0, idle_s=0.0), 3, "an old one asks for help"),
        (ServerLoad(oldest_s=9.0, actors=2, starting=1, idle_s=0.0), 2, "help is on its way"),
        (ServerLoad(oldest_s=9.0, actors=4, starting=0, idle_s=0.0), 4, "there are no more than the most"),
        (ServerLoad(oldest_s=0.0, actors=3, starting=0, idle_s=29.9), 3, "a lull is no end"),
        (ServerLoad(oldest_s=0.0, actors=3, starting=0, idle_s=30.0), 2, "one goes after it"),
        (ServerLoad(oldest_s=0.0, actors=1, starting=0, idle_s=99.0), 1, "the fewest stay"),
    ],
)
def test_actors_come_by_age_and_go_after_a_lull(load: ServerLoad, wanted: int, why: str) -> None:
    assert wanted_actors(load, fewest=1, most=4) == wanted, why


@given(
    st.builds(
        ServerLoad,
        oldest_s=st.floats(0, 100),
        actors=st.integers(0, 9),
        starting=st.integers(0, 9),
        idle_s=st.floats(0, 100),
    ),
    st.integers(1, 4),
    st.integers(4, 9),
)
def test_the_bounds_hold(load: ServerLoad, fewest: int, most: int) -> None:
    wanted = wanted_actors(load, fewest=fewest, most=most)
    assert fewest <= wanted <= most
    assert abs(wanted - load.actors) <= 1 or load.actors not in range(fewest, most + 1)
