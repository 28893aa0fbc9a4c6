"""All tests here drive actors."""

from __future__ import annotations

import os

import pytest

# Workers inherit what is there when Ray starts.
os.environ["RLAIF_TEST_JUDGE_KEY"] = "sk-loopback-5f0c9a77"

from tests.local_ray import local_ray

__all__ = ["local_ray"]


@pytest.fixture(scope="module", autouse=True)
def _ray(local_ray: None) -> None:
    pass
