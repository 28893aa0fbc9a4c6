from pathlib import Path

import pytest

from rlaif_ray.checkpoints import CheckpointCorrupt, Checkpoints


def write(checkpoints: Checkpoints, iteration: int) -> None:
    checkpoints.begin(iteration)
    part = checkpoints.unfinished(iteration) / "policy"
    part.mkdir()
    (part / "state.pt").write_bytes(bytes([iteration]) * 8)
    checkpoints.finish(iteration)


def test_the_newest_two_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "learner")
    assert checkpoints.iterations() == []
    for iteration in (4, 9, 14):
        write(checkpoints, iteration)
    assert checkpoints.iterations() == [9, 14]
    assert (checkpoints.verified(14) / "policy" / "state.pt").read_bytes() == bytes([14]) * 8


def test_an_unfinished_one_does_not_count(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 1)
    checkpoints.begin(2)
    assert checkpoints.iterations() == [1]
    write(checkpoints, 2)
    assert checkpoints.iterations() == [1, 2]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: (path / "policy" / "state.pt").write_bytes(b"evil"), "has changed"),
        (lambda path: (path / "policy" / "state.pt").unlink(), "missing"),
        (lambda path: (path / "policy" / "extra.pt").write_bytes(b""), "not in the manifest"),
        (lambda path: (path / "manifest.json").write_text("{"), "cannot be read"),
    ],
)
def test_damage_is_named_before_anything_is_opened(tmp_path: Path, damage: object, said: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 3)
    assert callable(damage)
    damage(tmp_path / "iteration-0000003")
    with pytest.raises(CheckpointCorrupt, match=said):
        checkpoints.verified(3)
