"""What follows from a config of what is reserved, and how."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from rlaif_ray.config import RunConfig
from rlaif_ray.doctor.reservations import Reservation, reservations

BASE = {
    "run_dir": "run",
    "prompts": {"path": "p.jsonl"},
    "policy": {"model": "m"},
    "judge": {"model": "far", "base_url": "http://127.0.0.1:1/v1"},
}


def reserved(**changes: object) -> dict[str, list[Reservation]]:
    found: dict[str, list[Reservation]] = {}
    for one in reservations(RunConfig.model_validate(BASE | changes)):
        found.setdefault(one.name, []).append(one)
    return found


def bundles(one: Reservation) -> list[str]:
    return [str(bundle) for bundle in one.bundles]


def test_ranks_are_packed_and_so_are_replicas() -> None:
    found = reserved(
        learner={"ranks": 4, "resources": {"cpus": 8, "gpus": 1}},
        rollout={"replicas": 2, "resources": {"cpus": 2, "gpus": 4}},
    )
    assert list(found) == ["sft-worker", "reward-worker", "rollout", "reward", "learner"]
    (learner,) = found["learner"]
    assert (learner.strategy, bundles(learner)) == ("PACK", ["8 CPU, 1 GPU"] * 4)
    (rollout,) = found["rollout"]
    assert bundles(rollout) == ["2 CPU, 4 GPU"] * 2, "the GPUs of an engine are in one bundle, and so on one node"


def test_judges_reserve_nothing() -> None:
    found = reserved(judge={"model": "local", "actors": {"min": 2, "max": 8, "cpus": 1}})
    assert "judge" not in found


def test_shared_gpus_are_reserved_once_for_both_sides() -> None:
    """Half a GPU and two cores for a replica, half a GPU and eight cores for a rank."""
    found = reserved(
        placement={"share_gpus": True},
        learner={"ranks": 2, "resources": {"cpus": 8, "gpus": 0.5}},
        rollout={"replicas": 2, "resources": {"cpus": 2, "gpus": 0.5}},
    )
    assert list(found) == ["rollout and learner", "sft-worker", "reward-worker", "reward"]
    (both,) = found["rollout and learner"]
    assert (both.strategy, bundles(both)) == ("PACK", ["10 CPU, 1 GPU"] * 2)
    assert both.stages == ("collect", "fit-reward", "train", "evaluate")


def test_custom_resources_are_reserved_too() -> None:
    (one,) = reserved(rollout={"resources": {"gpus": 1, "custom": {"accelerator_type:A100": 0.001}}})["rollout"]
    assert bundles(one) == ["0.2 CPU, 1 GPU, 0.001 accelerator_type:A100"]


def test_what_asks_for_nothing_reserves_nothing() -> None:
    assert "reward" not in reserved(reward={"actors": {"cpus": 0}})


def test_a_run_goes_on_without_replicas_beyond_its_fewest() -> None:
    found = reserved(rollout={"replicas": 4, "min_replicas": 2})["rollout"]
    assert [(one.needed, one.strategy, len(one.bundles)) for one in found] == [
        (True, "PACK", 2),
        (False, "STRICT_PACK", 1),
        (False, "STRICT_PACK", 1),
    ]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"learner": {"resources": {"gpus": 0.6}}}, "add up to 1 at most"),
        ({"learner": {}}, "set rollout.resources.gpus and learner.resources.gpus"),
        ({"rollout": {"replicas": 2, "resources": {"gpus": 0.5}}}, "rollout.replicas (2) and learner.ranks (1)"),
        ({"ppo": {"max_staleness": 1}}, "ppo.max_staleness"),
        ({"policy": {"model": "m", "algorithm": "dpo"}}, "dpo has no learner"),
    ],
)
def test_what_cannot_be_shared_is_refused(changes: dict[str, object], says: str) -> None:
    half = {"resources": {"gpus": 0.5}}
    sharing = BASE | {"placement": {"share_gpus": True}, "learner": half, "rollout": half}
    RunConfig.model_validate(sharing)
    with pytest.raises(ValidationError, match=re.escape(says)):
        RunConfig.model_validate(sharing | changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rollout": {"replicas": 1, "min_replicas": 2}}, "min_replicas (2) must not exceed rollout.replicas (1)"),
        (
            {
                "rollout": {"replicas": 2, "min_replicas": 1, "resources": {"gpus": 1}},
                "learner": {"weight_transfer": "nccl", "resources": {"gpus": 1}},
            },
            "rollout.min_replicas: weights that are sent by nccl reach all replicas together",
        ),
    ],
)
def test_replicas_that_cannot_come_later_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(says)):
        RunConfig.model_validate(BASE | changes)
