"""Where a packaged model lies."""

from pathlib import Path

import pytest

from rlaif_ray.config import UserError
from rlaif_ray.toyworld import models
from rlaif_ray.toyworld.models import model_path


@pytest.mark.parametrize("name", ["judge", "assistant"])
def test_a_packaged_model_is_a_directory_of_its_name(name: str) -> None:
    directory = Path(model_path(f"toyworld:{name}"))
    assert directory.name == name
    assert (directory / "model.safetensors").is_file()


def test_any_other_name_stands_for_itself() -> None:
    assert model_path("some/model") == "some/model"


def test_an_unknown_model_of_the_toy_world_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"'toyworld:jury' is not a model of the toy world; .* toyworld:judge, toyworld:assistant"
    ):
        model_path("toyworld:jury")


def test_a_model_that_did_not_travel_is_told_of_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models._DIRECTORIES, "assistant", tmp_path)
    with pytest.raises(UserError, match=r"^toyworld:assistant: \S+ holds no weights, .* every node sees, and name it"):
        model_path("toyworld:assistant")
