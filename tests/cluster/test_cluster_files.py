"""The files in cluster/: valid, of one mind, and naming only what is there. Nothing here starts a cluster."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray import autoscaler
from ray.autoscaler._private.kuberay.autoscaling_config import _get_ray_resources_from_group_spec
from ray.autoscaler._private.util import prepare_config, validate_config

from rlaif_ray.config import load_config
from rlaif_ray.doctor.examination import Node, obstacles
from rlaif_ray.doctor.plan import actor_plan
from rlaif_ray.doctor.reservations import Bundle

REPOSITORY = Path(__file__).parents[2]
CLUSTER = REPOSITORY / "cluster"
LAUNCHED = ("aws.yaml", "on_premises.yaml")
TOKEN, STOPPING = "RAY_AUTH_TOKEN_PATH", "RAY_JOB_STOP_WAIT_TIME_S"


def document(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def ray_cluster() -> Any:
    return document("kuberay/raycluster.yaml")["spec"]


def pods() -> dict[str, Any]:
    """The head's pod and each group's, by name."""
    spec = ray_cluster()
    groups = {group["groupName"]: group["template"]["spec"] for group in spec["workerGroupSpecs"]}
    return {"head": spec["headGroupSpec"]["template"]["spec"], **groups}


def workers_on_aws() -> dict[str, Node]:
    types = document("aws.yaml")["available_node_types"]
    return {name: node_of(name, types[name]["resources"]) for name in types if name != "head"}


def workers_on_kubernetes() -> dict[str, Node]:
    """As Ray's autoscaler reads the groups."""
    groups = {group["groupName"]: group for group in ray_cluster()["workerGroupSpecs"]}
    return {name: node_of(name, _get_ray_resources_from_group_spec(group, False)) for name, group in groups.items()}


def node_of(name: str, resources: dict[str, float]) -> Node:
    custom = {key: amount for key, amount in resources.items() if key not in ("CPU", "GPU", "memory")}
    return Node(name, resources["CPU"], resources.get("GPU", 0), 256, custom)


def images() -> set[str]:
    """Every image that a file starts."""
    launched = [document(name) for name in LAUNCHED]
    dockers = [config["docker"] for config in launched]
    dockers += [one.get("docker", {}) for config in launched for one in config.get("available_node_types", {}).values()]
    named = {value for docker in dockers for key, value in docker.items() if key.endswith("image")}
    return named | {container["image"] for pod in pods().values() for container in pod["containers"]}


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_up_takes_it(name: str) -> None:
    """By the schema that is in Ray's package, before Ray fills in what is not said and after."""
    config = document(name)
    jsonschema.validate(config, json.loads((Path(autoscaler.__file__).parent / "ray-schema.json").read_text()))
    validate_config(prepare_config(config))


def test_on_aws_every_kind_of_node_but_the_head_comes_when_it_is_wanted() -> None:
    types = document("aws.yaml")["available_node_types"]
    assert set(types) == {"head", "rollout", "learner", "judge"}
    assert types["head"]["resources"] == {"CPU": 0}
    assert all(types[name]["min_workers"] == 0 for name in ("rollout", "learner", "judge"))
    assert "GPU" in types["rollout"]["resources"]
    assert "GPU" not in types["judge"]["resources"]
    assert sum(one.get("max_workers", 0) for one in types.values()) <= document("aws.yaml")["max_workers"]


@pytest.mark.parametrize("name", LAUNCHED)
def test_launched_containers_are_told_of_tokens_and_patience(name: str) -> None:
    """And the token is where they look for it."""
    config = document(name)
    told = dict(option.removeprefix("--env ").split("=") for option in config["docker"]["run_options"] if "=" in option)
    assert told["RAY_AUTH_MODE"] == "token"
    assert told[TOKEN] in config["file_mounts"]
    assert int(told[STOPPING]) >= 60


def test_every_pod_is_told_of_tokens_and_patience() -> None:
    for name, pod in pods().items():
        (container,) = pod["containers"]
        told = {variable["name"]: variable["value"] for variable in container["env"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert set(mounts.values()) == set(volumes), name
        assert told["RAY_AUTH_MODE"] == "token", name
        token = volumes[mounts[str(Path(told[TOKEN]).parent)]]
        assert token["secret"]["secretName"] == ray_cluster()["authOptions"]["secretName"], name
        assert int(told[STOPPING]) >= 60, name


def test_the_autoscaler_of_the_pods_has_the_token_too() -> None:
    options = ray_cluster()["autoscalerOptions"]
    (mount,) = options["volumeMounts"]
    told = {variable["name"]: variable["value"] for variable in options["env"]}
    assert (told["RAY_AUTH_MODE"], str(Path(told[TOKEN]).parent)) == ("token", mount["mountPath"])
    assert mount["name"] in {volume["name"] for volume in pods()["head"]["volumes"]}


def test_pods_come_when_they_are_wanted() -> None:
    spec = ray_cluster()
    assert spec["enableInTreeAutoscaling"] is True
    assert {group["groupName"]: group["minReplicas"] for group in spec["workerGroupSpecs"]} == {
        "rollout": 0,
        "learner": 0,
        "judge": 0,
    }
    assert [("nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]) for pod in pods().values()] == [
        False,
        True,
        True,
        False,
    ]


def test_pods_share_the_volume_that_is_claimed() -> None:
    claim = document("kuberay/storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    claimed = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod in pods().values()
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claimed == {claim["metadata"]["name"]}


@pytest.mark.parametrize("workers", [workers_on_aws, workers_on_kubernetes])
def test_grants_that_the_page_shows_lead_each_actor_to_its_kind_of_node(workers: Callable[[], dict[str, Node]]) -> None:
    text = (REPOSITORY / "docs" / "cluster.md").read_text()
    (block,) = [block for block in re.findall(r"(?:^    .+\n)+", text, re.MULTILINE) if ".custom=" in block]
    on_gpus = [f"{key}.gpus=1" for key in ("sft.resources", "reward.resources", "reward.actors")]
    on_gpus += ["rollout.resources.gpus=1", "learner.resources.gpus=1"]
    needed = ["run_dir=/shared/run", "policy.model=m", "prompts.path=p.jsonl", "judge.base_url=http://127.0.0.1:1/v1"]
    overrides = [*needed, "judge.model=far", *on_gpus, *shlex.split(block.replace("\\\n", ""))]
    config = load_config(REPOSITORY / "scripts" / "configs" / "own_model.yaml", overrides)
    plan, nodes = actor_plan(config), workers()
    homes = {
        group.name: {
            name
            for name, node in nodes.items()
            if all(node.has(resource) >= amount for resource, amount in Bundle.of(group.resources).grants)
        }
        for group in plan
    }
    assert homes == {
        "sft-worker": {"learner"},
        "reward-worker": {"learner"},
        "rollout": {"rollout"},
        "judge": {"judge"},
        "reward": {"rollout"},
        "learner": {"learner"},
    }
    assert obstacles(config, plan, list(nodes.values())) == []


def test_a_ray_job_has_the_cluster_that_jobs_are_submitted_to() -> None:
    assert document("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"] == ray_cluster()


def test_the_job_of_a_manifest_is_a_run_that_the_config_allows() -> None:
    """In the directory of the image, on the shared volume, with the key where it is mounted."""
    spec = document("kuberay/rayjob.yaml")["spec"]
    interpreter, entry, path, *overrides = shlex.split(spec["entrypoint"])
    assert interpreter == "python"
    assert (REPOSITORY / entry).is_file()
    config = load_config(REPOSITORY / path, overrides)
    mounts = [Path(mount["mountPath"]) for mount in pods()["head"]["containers"][0]["volumeMounts"]]
    assert config.judge.api_key_file is not None
    assert all(any(mount in path.parents for mount in mounts) for path in (config.run_dir, config.judge.api_key_file))
    in_the_image = yaml.safe_load(spec["runtimeEnvYAML"])["working_dir"].removeprefix("local://")
    assert all(
        f"WORKDIR {in_the_image}\n" in (CLUSTER / name).read_text() for name in ("Dockerfile.cpu", "Dockerfile.gpu")
    )


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_an_image_is_built_from_the_lock_and_the_code(kind: str) -> None:
    text = (CLUSTER / f"Dockerfile.{kind}").read_text()
    assert f"docker build -f cluster/Dockerfile.{kind} -t REGISTRY/rlaif-ray:{kind} ." in text
    assert f"make setup EXTRA={kind} " in text
    copied = [source for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for source in shlex.split(line)[:-1]]
    assert f"locks/{kind}.txt" in copied
    assert all((REPOSITORY / source).exists() for source in copied)
    assert {"actors", "rlaif_ray", "scripts"} <= set(copied)


def test_only_images_that_are_built_here_are_started() -> None:
    assert images() == {"REGISTRY/rlaif-ray:cpu", "REGISTRY/rlaif-ray:gpu"}


def test_the_manifests_name_the_ray_that_is_locked() -> None:
    pinned = {f"ray=={ray_cluster()['rayVersion']}"}
    for kind in ("cpu", "gpu"):
        lock = (REPOSITORY / "locks" / f"{kind}.txt").read_text().splitlines()
        assert pinned == {line for line in lock if line.startswith("ray==")}


@pytest.mark.parametrize("page", ["README.md", "cluster/README.md", "docs/cluster.md"])
def test_pages_name_what_is_there(page: str) -> None:
    """Paths below the directories that a reader would look in."""
    text = (REPOSITORY / page).read_text()
    named = re.findall(r"(?<![\w/.-])(?:cluster|scripts|locks|docs)/[\w./-]*\w", text)
    assert named
    assert [path for path in named if not (REPOSITORY / path).exists()] == []
