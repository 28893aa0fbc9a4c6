"""A run's directory: whole writes, done stages, and the config that it belongs to."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

from rlaif_ray.config import RunConfig, UserError
from rlaif_ray.rundir import RunDirectory, directory_written_atomically, write_atomically


class Marker(BaseModel):
    wall_s: float


def config(**changes: object) -> RunConfig:
    tree: dict[str, object] = {
        "run_dir": "unused",
        "prompts": {"path": "p.jsonl"},
        "policy": {"model": "m"},
        "judge": {"model": "j"},
    }
    return RunConfig.model_validate(tree | changes)


def test_a_stage_is_done_once_its_record_is_there(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    assert run.result("sft", Marker) is None
    run.finish("sft", Marker(wall_s=1.5))
    assert RunDirectory(tmp_path / "run").result("sft", Marker) == Marker(wall_s=1.5)


def test_the_same_config_may_go_on_and_another_may_not(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.open(config())
    run.open(config())
    with pytest.raises(UserError, match=r"ppo\.clip: .* holds a run with 0\.2, not 0\.1; .* another run_dir"):
        run.open(config(ppo={"clip": 0.1}))


def judges(**member: object) -> dict[str, object]:
    """A judge with two more, of which the second is changed."""
    return {"judge": {"model": "j", "ensemble": [{"model": "a"}, {"model": "b", **member}]}}


def further(**changes: object) -> dict[str, object]:
    """A judge with another for the hard pairs, and one for when the budget is spent, both changed."""
    other = {"model": "a", **changes}
    return {"judge": {"model": "j", "cascade": {"judge": other}, "when_spent": "fallback", "fallback": other}}


HOW_CALLS_ARE_MADE: list[dict[str, object]] = [
    {"requests_per_minute": 60},
    {"tokens_per_minute": 6000, "max_concurrency": 2, "quota": "shared"},
    {"timeout_s": 5, "max_attempts": 2},
    {"api_key_env": "SOME_KEY"},
    {"api_key_file": "key"},
    {"price": {"input": 1, "output": 2}},
    {"actors": {"max": 9}},
]


@pytest.mark.parametrize("changes", HOW_CALLS_ARE_MADE, ids=str)
@pytest.mark.parametrize("with_judges", [judges, further])
def test_how_further_judges_are_called_may_change(
    tmp_path: Path, with_judges: Callable[..., dict[str, object]], changes: dict[str, object]
) -> None:
    RunDirectory(tmp_path).open(config(**with_judges()))
    RunDirectory(tmp_path).open(config(**with_judges(**changes)))


@pytest.mark.parametrize(
    ("before", "now", "key"),
    [
        (judges(), judges(model="c"), "judge.ensemble.1.model"),
        (judges(), judges(weight=2), "judge.ensemble.1.weight"),
        (judges(), judges(base_url="http://x/v1"), "judge.ensemble.1.base_url"),
        (judges(extra_body={"seed": 1}), judges(extra_body={"seed": 2}), "judge.ensemble.1.extra_body.seed"),
        ({}, judges(), "judge.ensemble"),
        (further(), further(model="c"), "judge.cascade.judge.model"),
        ({"judge": {"model": "j"}}, {"judge": {"model": "j", "clamp": [0.4, 0.6]}}, "judge.clamp"),
        (
            {"judge": {"model": "j", "clamp": [0.4, 0.6]}},
            {"judge": {"model": "j", "clamp": [0.4, 0.7]}},
            "judge.clamp.1",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_who_judges_may_not_change(tmp_path: Path, before: dict[str, object], now: dict[str, object], key: str) -> None:
    RunDirectory(tmp_path).open(config(**before))
    with pytest.raises(UserError, match=rf"^{re.escape(key)}: .* holds a run with"):
        RunDirectory(tmp_path).open(config(**now))


def test_a_run_keeps_its_id_wherever_it_goes(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.open(config())
    id = run.id
    run.open(config(judge={"model": "j", "max_attempts": 2}))
    assert RunDirectory(tmp_path / "run").id == run.id == id
    (tmp_path / "run").rename(tmp_path / "moved")
    assert RunDirectory(tmp_path / "moved").id == id
    other = RunDirectory(tmp_path / "run")
    other.open(config())
    assert other.id != id


@pytest.mark.parametrize(
    "changes",
    [
        {"judge": {"model": "j", "budget_usd": 5, "price": {"input": 1, "output": 2}, "actors": {"max": 9}}},
        {"rollout": {"resources": {"cpus": 0.5}}},
        {"ppo": {"checkpoint_every": 3}},
        {"ppo": {"timeline_of": 3}},
    ],
)
def test_how_a_run_is_carried_out_may_change(tmp_path: Path, changes: dict[str, object]) -> None:
    run = RunDirectory(tmp_path / "run")
    run.open(config())
    run.open(config(**changes))


def test_a_run_directory_may_be_moved(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "run").open(config(run_dir="here"))
    RunDirectory(tmp_path / "run").open(config(run_dir="there"))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_directory_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with directory_written_atomically(path) as unfinished:
        (unfinished / "weights").write_text("old")
    with pytest.raises(RuntimeError), directory_written_atomically(path) as unfinished:
        (unfinished / "weights").write_text("half")
        raise RuntimeError("disk")
    assert (path / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
