"""Generated pages are up to date, and say what they must."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from rlaif_ray.config import EndpointConfig
from rlaif_ray.config.section import Fraction
from scripts.config_reference import HEAD, TARGET, default_name, reference, value_name


def test_the_config_reference_is_what_the_config_says() -> None:
    assert TARGET.read_text() == reference(), "run `make docs`"


def lines() -> dict[str, list[str]]:
    """The table's cells by key, as Markdown cuts them."""
    cut = [re.split(r"(?<!\\)\|", line) for line in reference().removeprefix(HEAD).splitlines()]
    return {cells[1].strip(" `"): cells for cells in cut}


def test_every_line_has_four_cells() -> None:
    assert {len(cells) for cells in lines().values()} == {6}  # and what stands before and after them


def test_a_judge_within_the_judge_is_not_spelt_out_again() -> None:
    table = lines()
    again = "a judge, with the keys of `judge` from `model` to `trust_remote_code`"
    assert table["judge.ensemble"][2:4] == [f" list; each {again} ", " `[]` "]
    assert table["judge.cascade.judge"][2:4] == [f" {again} ", " required "]
    assert table["judge.fallback"][2:4] == [f" {again}, or none ", " none "]
    assert {f"judge.{name}" for name in EndpointConfig.model_fields} - table.keys() == {"judge.actors"}
    assert not [key for key in table if key.startswith(("judge.ensemble.", "judge.cascade.judge.", "judge.fallback."))]
    assert "judge.cascade.margin" in table
    assert "judge.actors.max" in table


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (str | tuple[str, ...], "text or list of texts"),
        (tuple[Fraction, Fraction] | None, "[number, number] or none"),
        (dict[str, str], "mapping of text to text"),
        (dict[str, Any], "mapping of text to anything"),
        (Annotated[bool, "marked"], "true or false"),
        (Literal["a", "b"] | None, "`a`, `b` or none"),
        (Path | None, "path or none"),
    ],
)
def test_values_in_words(annotation: Any, words: str) -> None:
    assert value_name(annotation) == words


@pytest.mark.parametrize(
    ("default", "shown"),
    [
        (True, "`true`"),
        ((), "`[]`"),
        ({}, "`{}`"),
        ((0.4, 0.6), "`[0.4, 0.6]`"),
        ("low", "`low`"),
        (Path("a/b"), "`a/b`"),
        (None, "none"),
    ],
)
def test_defaults_as_in_yaml(default: object, shown: str) -> None:
    assert default_name(default) == shown
