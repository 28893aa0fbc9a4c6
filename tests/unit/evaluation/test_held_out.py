"""Held-out pairs survive their file, to the bit."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.config import UserError
from rlaif_ray.evaluation.held_out import HeldOutPair, read_held_out, write_held_out

PAIR = st.builds(
    HeldOutPair,
    pair_id=st.text(),
    prompt_id=st.text(),
    p=st.floats(0.5, 1),
    margins=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=3).map(tuple),
    chosen_tokens=st.integers(0, 4096),
    rejected_tokens=st.integers(0, 4096),
    gold_margin=st.none() | st.floats(-5, 5),
    label_source=st.sampled_from(["ai", "human"]),
    round=st.integers(1, 9),
)


@given(pairs=st.lists(PAIR, max_size=5))
def test_what_is_read_is_what_was_written(tmp_path_factory: pytest.TempPathFactory, pairs: list[HeldOutPair]) -> None:
    path = tmp_path_factory.mktemp("run") / "held_out.parquet"
    write_held_out(path, pairs)
    assert read_held_out(path) == tuple(pairs)


def test_a_margin_that_is_not_a_number_stays_one_and_is_no_null(tmp_path: Path) -> None:
    path = tmp_path / "reward" / "held_out.parquet"
    write_held_out(path, [HeldOutPair("a~b", "a", 0.9, (1.5, math.nan), 4, 5, None, "ai", 2)])
    found = read_held_out(path)
    assert found is not None
    assert found[0].margins[0] == 1.5
    assert math.isnan(found[0].margins[1])


def test_no_file_is_none_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "held_out.parquet"
    assert read_held_out(path) is None
    path.write_text("{ broken")
    with pytest.raises(UserError, match=r"held_out\.parquet: is not a parquet file"):
        read_held_out(path)
