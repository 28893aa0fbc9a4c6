"""What a cluster that was joined says it has to grant."""

import pytest
import ray

from actors.session import cluster_nodes


def test_nodes_add_up_to_the_cluster() -> None:
    nodes, granted = cluster_nodes(), ray.cluster_resources()
    assert [node.name for node in nodes] == [node["NodeManagerHostname"] for node in ray.nodes()]
    assert sum(node.cpus for node in nodes) == granted["CPU"] == 8
    assert sum(node.gpus for node in nodes) == granted.get("GPU", 0)
    assert sum(node.memory_gib for node in nodes) == pytest.approx(granted["memory"] / 2**30)
