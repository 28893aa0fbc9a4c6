"""Joining Ray: the cluster that the environment names, or one of this process's own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray


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
