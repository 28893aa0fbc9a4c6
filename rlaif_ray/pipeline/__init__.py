"""The whole recipe: SFT, then rounds of collecting, fitting, training and evaluating, then the report."""

from rlaif_ray.pipeline.recipe import Pipeline
from rlaif_ray.pipeline.steps import Stage, steps_of

__all__ = ["Pipeline", "Stage", "steps_of"]
