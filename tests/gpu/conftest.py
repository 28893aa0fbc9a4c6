"""One local Ray for the tests here that drive actors themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Ray reads it at import, and turns authentication on where a token lies about.
os.environ["RAY_AUTH_MODE"] = "disabled"

import pytest
import ray


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
