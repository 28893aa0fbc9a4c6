"""Joining Ray: the cluster that the environment names, or one of this process's own."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray

from rlaif_ray.doctor.examination import Node

Result = TypeVar("Result")

# Resources that Ray counts on every node, beside those that a node declares.
_OF_EVERY_NODE = re.compile(r"CPU|GPU|memory|object_store_memory|node:.*")


@contextmanager
def ray_session(*, local: bool) -> Iterator[str | None]:
    """Joined while the block runs; gives the address of the dashboard, where there is one. `local` starts a Ray of its
    own and leaves any other on the machine alone."""
    # Ray turns token authentication on by itself where it finds a token; which it is must not depend on that.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    address = "local" if local else os.environ.get("RAY_ADDRESS", "local")
    context = ray.init(
        address=address,
        # Actors say what matters through their results; the rest is in Ray's own logs.
        log_to_driver=False,
        logging_level=logging.WARNING,
        **({"include_dashboard": True, "dashboard_host": "127.0.0.1"} if address == "local" else {}),
    )
    try:
        yield f"http://{context.dashboard_url}" if context.dashboard_url else None
    finally:
        ray.shutdown()


async def stoppable(work: Coroutine[Any, Any, Result]) -> Result:
    """Await it. SIGTERM, by which Ray stops a job, cancels it as Ctrl-C does, where Ray's own handler would leave at
    once."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await work


def cluster_nodes() -> list[Node]:
    """What each living node of the cluster that was joined has to grant in all."""
    living = [(node["NodeManagerHostname"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return [
        Node(
            name,
            granted.get("CPU", 0),
            granted.get("GPU", 0),
            granted.get("memory", 0) / 2**30,
            {name: amount for name, amount in granted.items() if not _OF_EVERY_NODE.fullmatch(name)},
        )
        for name, granted in living
    ]
