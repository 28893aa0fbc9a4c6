"""The reward model: a language model with one scalar head, and the statistics that normalise its scores.

On disk it is a Hugging Face directory that `AutoModelForSequenceClassification` loads (one label, regression), whose
raw logit at the last token is the reward, with `reward_normalisation.json` beside the weights. An ensemble is a
directory of such directories, `0` to `k - 1`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlaif_ray.config import UserError
from rlaif_ray.engines.training import Dtype

NORMALISATION_FILE = "reward_normalisation.json"


@dataclass(frozen=True, slots=True)
class RewardNormalisation:
    """Mean and standard deviation of raw scores over `count` answers of the SFT model."""

    mean: float
    std: float
    count: int

    def save(self, directory: Path) -> None:
        (directory / NORMALISATION_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> RewardNormalisation:
        """Raises FileNotFoundError when the directory is not a fitted reward model."""
        return cls(**json.loads((directory / NORMALISATION_FILE).read_text()))


def members(directory: Path) -> tuple[Path, ...]:
    """The models of an ensemble in the order of their numbers; a directory that is a model is its own only member.

    Raises UserError where there is neither.
    """
    if (directory / "config.json").exists():
        return (directory,)
    numbered = [path for path in directory.glob("*") if path.name.isdecimal() and (path / "config.json").exists()]
    if not numbered:
        raise UserError(f"{directory} holds no reward model; give a directory that `rlaif fit-reward` made")
    return tuple(sorted(numbered, key=lambda path: int(path.name)))


def load_reward_model(directory: Path, *, dtype: Dtype, trust_remote_code: bool) -> Any:
    """A fitted reward model, ready to score (no dropout)."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        directory, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code
    )
    return model.eval()


def scalar_head(model: Any) -> nn.Linear:
    """The linear layer on the model's body that gives the score. Raises ValueError where there is no such layer."""
    body = set(model.base_model.modules())
    heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module not in body]
    if len(heads) != 1 or heads[0].out_features != 1:
        raise ValueError(f"a {type(model).__name__} has no single linear layer with one output as its head")
    return heads[0]
