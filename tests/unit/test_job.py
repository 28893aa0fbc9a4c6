"""Where a job may write."""

from pathlib import Path

import pytest
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

from rlaif_ray.config import UserError
from rlaif_ray.job import JOB_VARIABLE, refuse_relative_outputs


def test_the_variable_is_the_one_that_ray_sets() -> None:
    assert JOB_VARIABLE == RAY_JOB_CONFIG_JSON_ENV_VAR


def test_a_job_may_not_write_where_only_one_node_would_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    with pytest.raises(UserError, match=r"^judge\.ledger=l\.sqlite: .* absolute path on storage that every node sees$"):
        refuse_relative_outputs({"run_dir": Path("/shared/run"), "judge.ledger": Path("l.sqlite")})
    refuse_relative_outputs({"run_dir": Path("/shared/run"), "judge.ledger": None})


def test_any_other_process_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    refuse_relative_outputs({"run_dir": Path("runs/demo")})
