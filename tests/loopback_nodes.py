"""A cluster on this machine whose nodes come and go by Ray's own autoscaler. Each is what `ray start` starts, with an
address of its own in 127.0.0.0/8; the autoscaler's monitor loads `LoopbackNodes` as its provider of nodes."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from free_port import free_port
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

HEAD = "head"
RAY = Path(sys.executable).with_name("ray")


# Options of `ray start` by which two nodes of one machine do not meet: each takes any ports.
OWN_PORTS = ("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0")


class LoopbackNodes(NodeProvider):
    """`provider` of the autoscaler's config holds `address`, of the head, and `folder`, where a file for each node says
    which process it is."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._folder = Path(provider_config["folder"])
        self._numbers = itertools.count(2)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._tags: dict[str, dict[str, str]] = {
            HEAD: {
                TAG_RAY_NODE_KIND: NODE_KIND_HEAD,
                TAG_RAY_NODE_NAME: HEAD,
                TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
                TAG_RAY_USER_NODE_TYPE: HEAD,
            }
        }

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        return [node for node, tags in self._tags.items() if tag_filters.items() <= tags.items()]

    def is_running(self, node_id: str) -> bool:
        return node_id in self._tags

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in self._tags

    def node_tags(self, node_id: str) -> dict[str, str]:
        return self._tags.get(node_id, {})

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        self._tags[node_id] |= tags

    def internal_ip(self, node_id: str) -> str:
        return "127.0.0.1" if node_id == HEAD else f"127.0.0.{node_id.rpartition('-')[2]}"

    external_ip = internal_ip

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        for _ in range(count):
            self._start(f"node-{next(self._numbers)}", tags, dict(resources))

    def terminate_node(self, node_id: str) -> None:
        os.killpg(self._processes.pop(node_id).pid, signal.SIGKILL)
        del self._tags[node_id]

    def _start(self, node: str, tags: dict[str, str], resources: dict[str, float]) -> None:
        options = [f"--num-cpus={resources.pop('CPU')}", f"--num-gpus={resources.pop('GPU', 0)}"]
        resources.pop("memory", None)
        process = subprocess.Popen(
            [
                *(RAY, "start", "--block", f"--address={self.provider_config['address']}"),
                *(f"--node-ip-address={self.internal_ip(node)}", f"--resources={json.dumps(resources)}"),
                *options,
                *OWN_PORTS,
            ],
            # By this Ray says that the node which joins is the one that was asked for.
            env=os.environ | {"RAY_CLOUD_INSTANCE_ID": node, "RAY_NODE_TYPE_NAME": tags[TAG_RAY_USER_NODE_TYPE]},
            stdout=(self._folder / f"{node}.log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        (self._folder / f"{node}.pid").write_text(str(process.pid))
        self._processes[node] = process
        self._tags[node] = dict(tags)


@contextmanager
def autoscaled_ray(
    head: Mapping[str, float], workers: Mapping[str, Mapping[str, Any]], **settings: str
) -> Iterator[dict[str, str]]:
    """A head with an autoscaler, until the block ends; gives the environment of its clients. `head` are its resources,
    `workers` the autoscaler's types of nodes, `settings` environment variables of all its processes."""
    folder = Path(tempfile.mkdtemp(prefix="rlaif-", dir="/tmp"))  # a longer path than that is none for a socket
    port = free_port()
    address = f"127.0.0.1:{port}"
    config = folder / "autoscaler.yaml"
    config.write_text(yaml.safe_dump(_autoscaling(folder, address, head, workers)))
    plain = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    # A busy machine takes its time to start a node.
    environment = plain | {"RAY_AUTH_MODE": "disabled", "RAY_raylet_start_wait_time_s": "120"} | settings
    of_the_head = {
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_NODE_TYPE_NAME": HEAD,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path[1:]]),
    }
    process = subprocess.Popen(
        [
            *(RAY, "start", "--head", "--block", f"--temp-dir={folder / 'ray'}", f"--port={port}"),
            *("--node-ip-address=127.0.0.1", f"--num-cpus={head['CPU']:g}", "--include-dashboard=false"),
            *(f"--autoscaling-config={config}", f"--ray-client-server-port={free_port()}"),
            *(f"--dashboard-port={free_port()}", *OWN_PORTS),
        ],
        env=environment | of_the_head,
        stdout=(folder / "head.log").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        _wait_for(address, process, folder / "head.log")
        yield environment | {"RAY_ADDRESS": address}
    finally:
        pids = [int(file.read_text()) for file in folder.glob("*.pid")]
        for pid in (process.pid, *pids):
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _autoscaling(
    folder: Path, address: str, head: Mapping[str, float], workers: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    nodes = {name: {"node_config": {}, "min_workers": 0, **workers[name]} for name in workers}
    return {
        "cluster_name": "loopback",
        "max_workers": sum(node["max_workers"] for node in nodes.values()),
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 100,
        "provider": {
            "type": "external",
            "module": "loopback_nodes.LoopbackNodes",
            "address": address,
            "folder": str(folder),
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": HEAD,
        "available_node_types": {HEAD: {"resources": dict(head), "node_config": {}, "max_workers": 0}, **nodes},
        "auth": {},
        "docker": {},
        "file_mounts": {},
        **{key: [] for key in ("initialization_commands", "setup_commands", "head_setup_commands")},
        **{key: [] for key in ("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")},
        **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
    }


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while "Ray runtime started" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"{address} does not answer: {log.read_text()}"
        time.sleep(0.2)
