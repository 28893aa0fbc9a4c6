"""The files that docs/judging.md shows are files that load."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rlaif_ray.judge.material import load_criteria, load_examples, load_principles, load_rubric
from rlaif_ray.judge.templates import load_template

PAGE = (Path(__file__).parents[3] / "docs" / "judging.md").read_text()
JINJA = re.findall(r"```jinja\n(.*?)```", PAGE, re.DOTALL)
YAML = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("source", JINJA)
def test_its_templates_load(source: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.j2"
    path.write_text(source)
    assert load_template(str(path)).labels == ("1", "2")


@pytest.mark.parametrize(
    ("load", "source"), list(zip((load_examples, load_criteria, load_rubric, load_principles), YAML, strict=True))
)
def test_its_material_loads(load: Callable[[str], object], source: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(source)
    assert load(str(path))


def test_it_names_every_shipped_file() -> None:
    shipped = Path(load_examples.__code__.co_filename).parent
    names = {
        path.stem for folder in ("templates", "templates/scores", "material") for path in (shipped / folder).glob("*.*")
    }
    assert {name for name in names if f"`{name}`" not in PAGE} == {"headlines", "discretion", "rubric"}
