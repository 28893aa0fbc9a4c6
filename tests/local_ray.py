"""One local Ray for the tests of a process that drive actors or join a Ray: it takes seconds to start."""

from __future__ import annotations

import os

# Ray reads it at import, and turns authentication on where a token lies about.
os.environ["RAY_AUTH_MODE"] = "disabled"

import pytest
import ray


@pytest.fixture(scope="module")
def local_ray() -> None:
    """It stays until this process ends, or until a module shuts it down for a cluster of its own."""
    if not ray.is_initialized():
        ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)


@pytest.fixture(scope="module")
def ray_address(local_ray: None) -> str:
    """Where commands join that Ray, rather than start their own."""
    return str(ray.get_runtime_context().gcs_address)
