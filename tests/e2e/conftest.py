"""One local Ray for the tests here that drive actors themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Ray reads it at import, and turns authentication on where a token lies about.
os.environ["RAY_AUTH_MODE"] = "disabled"
# Workers inherit what is there when Ray starts.
os.environ["RLAIF_OWN_MODEL_KEY"] = "sk-own-model-51d3c07b"

import pytest
import ray


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    if ray.is_initialized():  # by other tests of this session, which keep it until the end
        yield
        return
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def ray_address(local_ray: None) -> str:
    """Where commands join the Ray of these tests, rather than start their own."""
    return str(ray.get_runtime_context().gcs_address)
