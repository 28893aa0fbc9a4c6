from pathlib import Path

import pytest

from rlaif_ray.config import UserError
from rlaif_ray.reward.model import members


def test_the_members_of_an_ensemble_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("0", "2", "10", "1", ".3.unfinished", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    (tmp_path / "4").mkdir()
    assert [path.name for path in members(tmp_path)] == ["0", "1", "2", "10"]
    assert members(tmp_path / "2") == (tmp_path / "2",)


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_directory_without_a_model_is_the_users_to_mend(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no reward model"):
        members(tmp_path / name)
