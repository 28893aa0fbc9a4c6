"""The files and settings that docs/constitution.md shows are those that are read, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from rlaif_ray.config import ConstitutionConfig, EvaluationConfig, JudgeConfig, RunConfig
from rlaif_ray.constitution.checking import check
from rlaif_ray.judge.material import load_revision_examples
from rlaif_ray.records import RevisionOutcome
from rlaif_ray.report.summary import ConductSummary

PAGE = (Path(__file__).parents[2] / "docs" / "constitution.md").read_text()
SETTINGS, CONSTITUTION, EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_its_settings_are_a_run(tmp_path: Path) -> None:
    tree = yaml.safe_load(SETTINGS) | {"run_dir": tmp_path, "prompts": {"path": "p"}, "policy": {"model": "m"}}
    assert RunConfig.model_validate(tree).constitution is not None


def test_its_principle_and_its_example_have_no_error(tmp_path: Path) -> None:
    file = tmp_path / "constitution.yaml"
    file.write_text(CONSTITUTION)
    checked = check(str(file))
    assert [principle.id for principle in checked.principles] == ["privacy"]
    assert checked.errors == ()
    file.write_text(EXAMPLES)
    assert len(load_revision_examples(str(file))) == 1
    assert (check(str(file)).errors, check(str(file)).warnings) == ((), ())


def test_the_keys_outcomes_and_figures_that_it_names_are_there() -> None:
    for section, kind in (
        ("constitution", ConstitutionConfig),
        ("judge", JudgeConfig),
        ("evaluation", EvaluationConfig),
    ):
        named = set(re.findall(rf"`{section}\.(\w+)", PAGE))
        assert named
        assert named <= kind.model_fields.keys()
    assert all(f"| `{outcome}` |" in PAGE for outcome in RevisionOutcome)
    figures = {name for name in ConductSummary.model_fields if not name.endswith("_ci")}
    assert all(f"`{name}`" in PAGE for name in figures)
