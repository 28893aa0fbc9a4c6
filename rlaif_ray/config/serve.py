"""What `rlaif serve-reward` takes."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlaif_ray.config.section import NonNegativeFloat, PoolSize, Positive, PositiveFloat, Section


class ServeRewardConfig(Section):
    """A reward model behind HTTP."""

    host: str = "127.0.0.1"
    """The address to listen on. Beyond loopback set `api_key_env` too."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8100
    """0: any free one."""
    api_key_env: str | None = None
    """The environment variable that holds the key which callers must send as `Authorization: Bearer KEY`."""
    actors: PoolSize = PoolSize(min=1, max=1, cpus=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights and of the arithmetic."""
    max_batch_tokens: Positive = 8192
    """Tokens that one forward takes, padding included."""
    max_wait_ms: NonNegativeFloat = 5.0
    """How long an answer may wait for others to share a forward with, where an actor is free."""
    max_queued: Positive = 10_000
    """Answers that may wait; further calls are refused with 503."""
    timeout_s: PositiveFloat = 60.0
    """Seconds after which an answer that has no score is given up, with that outcome."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""

    @model_validator(mode="after")
    def _safe(self) -> ServeRewardConfig:
        if not _is_loopback(self.host) and self.api_key_env is None:
            raise ValueError(
                f"host={self.host} lets other machines in: set api_key_env to the environment variable that holds the "
                "key which they must send, or take 127.0.0.1"
            )
        if self.actors.min < 1:
            raise ValueError(
                "actors.min must be 1 or more: a server without an actor cannot tell whether a model loads"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
