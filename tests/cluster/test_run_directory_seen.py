"""A run that is placed on a node which does not see its directory: real nodes, one of which has another file system
mounted over it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"

import pytest
import ray
from ray.cluster_utils import Cluster

from actors.placement import Placement
from rlaif_ray.config import RunConfig, UserError
from rlaif_ray.rundir import RunDirectory
from tests.loopback_nodes import OWN_PORTS, RAY

MAY_MOUNT = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0

pytestmark = pytest.mark.skipif(not MAY_MOUNT, reason="needs the right to mount")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory that the driver's node and one called `near` see, and one called `far` does not."""
    ray.shutdown()  # other tests of this session may have left one
    directory = tmp_path_factory.mktemp("shared")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=2, resources={"near": 1})
    start = f"{RAY} start --block --address={cluster.address} --num-cpus=2 --resources='{{\"far\": 1}}'"
    far = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none {directory} && exec {start} {' '.join(OWN_PORTS)}"],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        deadline = time.monotonic() + 120
        while "far" not in ray.cluster_resources():
            assert far.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield directory
        ray.shutdown()
    finally:
        os.killpg(far.pid, signal.SIGKILL)
        far.wait()
        cluster.shutdown()


def placed_on(node: str, run_dir: Path) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run_dir": run_dir,
            "prompts": {"path": "toyworld:headlines"},
            "policy": {"model": "m"},
            "judge": {"model": "far", "base_url": "http://127.0.0.1:1/v1"},
            "learner": {"resources": {"cpus": 1, "custom": {node: 0.5}}, "ranks": 2},
        }
    )


async def test_a_node_that_does_not_see_the_directory_is_named_and_nothing_stays_reserved(shared: Path) -> None:
    config = placed_on("far", shared / "run")
    RunDirectory(config.run_dir).open(config)
    with pytest.raises(UserError, match=rf"^run_dir={shared}/run: node \S+ \([\d.]+\) does not see what is there; put"):
        await Placement(config, print).reserve("learner")
    deadline = time.monotonic() + 60.0
    while ray.available_resources().get("far") != 1:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def test_a_node_that_sees_it_is_as_good_as_the_drivers(shared: Path) -> None:
    config = placed_on("near", shared / "another")
    RunDirectory(config.run_dir).open(config)
    reserved = await Placement(config, print).reserve("learner")
    assert len(reserved.slots) == 2
    reserved.release()
