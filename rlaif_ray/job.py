"""What a submitted Ray job must heed, told from its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from rlaif_ray.config import UserError

# Ray sets it for a job's entry point and for nothing else.
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def refuse_relative_outputs(outputs: Mapping[str, Path | None]) -> None:
    """Paths by their keys, to be written to. Raises UserError where a job would keep something in its working
    directory."""
    if JOB_VARIABLE not in os.environ:
        return
    for key, path in outputs.items():
        if path is not None and not path.is_absolute():
            raise UserError(
                f"{key}={path}: a job's working directory is a copy on each node, which Ray deletes; give an absolute "
                "path on storage that every node sees"
            )
