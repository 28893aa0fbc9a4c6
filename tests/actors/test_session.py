"""What a cluster that was joined says it has to grant."""

import asyncio
import os
import signal

import pytest
import ray

from actors.session import cluster_nodes, stoppable


def test_nodes_add_up_to_the_cluster() -> None:
    nodes, granted = cluster_nodes(), ray.cluster_resources()
    assert [node.name for node in nodes] == [node["NodeManagerHostname"] for node in ray.nodes()]
    assert sum(node.cpus for node in nodes) == granted["CPU"] == 8
    assert sum(node.gpus for node in nodes) == granted.get("GPU", 0)
    assert sum(node.memory_gib for node in nodes) == pytest.approx(granted["memory"] / 2**30)


async def test_sigterm_cancels_what_is_under_way_and_lets_it_end() -> None:
    """As often as it comes: a second one does not wait for what the first made it do."""
    heard: asyncio.Queue[int] = asyncio.Queue()

    async def work() -> None:
        for count in (1, 2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                heard.put_nowait(count)
        raise asyncio.CancelledError

    under_way = asyncio.create_task(stoppable(work()))
    for count in (1, 2):
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await heard.get() == count
    with pytest.raises(asyncio.CancelledError):
        await under_way
    asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
