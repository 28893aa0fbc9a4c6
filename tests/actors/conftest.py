"""One local Ray for all tests of actors: it takes seconds to start."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Ray reads it at import, and turns authentication on where a token lies about.
os.environ["RAY_AUTH_MODE"] = "disabled"
# Workers inherit what is there when Ray starts.
os.environ["RLAIF_TEST_JUDGE_KEY"] = "sk-loopback-5f0c9a77"

import pytest
import ray


@pytest.fixture(scope="session", autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
