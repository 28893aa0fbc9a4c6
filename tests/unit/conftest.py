"""Unit tests may not start Ray: what they test must not need it."""

import pytest
import ray


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a unit test started Ray")

    monkeypatch.setattr(ray, "init", refuse)
