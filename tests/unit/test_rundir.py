"""A run's directory: whole writes, done stages, and the config that it belongs to."""

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


@pytest.mark.parametrize(
    "changes",
    [
        {"judge": {"model": "j", "budget_usd": 5, "price": {"input": 1, "output": 2}, "actors": {"max": 9}}},
        {"rollout": {"resources": {"cpus": 0.5}}},
        {"ppo": {"checkpoint_every": 3}},
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
