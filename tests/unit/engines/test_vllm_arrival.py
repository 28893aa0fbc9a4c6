"""What an engine's workers say that they have received, against what was published."""

import pytest

from rlaif_ray.engines.vllm_rollout import check_arrival
from rlaif_ray.records import WeightVersion
from rlaif_ray.stages import WeightMismatch

VERSION = WeightVersion(7, "aa", (), (), ())


def test_every_worker_must_have_received_the_version() -> None:
    check_arrival(VERSION, ["aa"])
    check_arrival(VERSION, ["aa", "aa", "aa"])


def test_the_worker_that_received_something_else_is_named() -> None:
    with pytest.raises(WeightMismatch, match="version 7 arrived with fingerprint cc at worker 2 of 3, not aa"):
        check_arrival(VERSION, ["aa", "aa", "cc"])


def test_an_only_worker_needs_no_name() -> None:
    with pytest.raises(WeightMismatch, match="version 7 arrived with fingerprint cc, not aa"):
        check_arrival(VERSION, ["cc"])
