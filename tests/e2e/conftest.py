"""What these tests share with those of the actors: one Ray."""

from __future__ import annotations

import os

# Workers inherit what is there when Ray starts.
os.environ["RLAIF_OWN_MODEL_KEY"] = "sk-own-model-51d3c07b"

from tests.local_ray import local_ray, ray_address

__all__ = ["local_ray", "ray_address"]
