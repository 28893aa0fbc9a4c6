"""Where a packaged model lies."""

from pathlib import Path

import pytest

from rlaif_ray.config import UserError
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
