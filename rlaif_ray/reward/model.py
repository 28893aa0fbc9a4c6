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


def new_reward_model(sft_directory: Path, *, dtype: Dtype, seed: int, trust_remote_code: bool) -> Any:
    """The SFT model's body under a new scalar head, drawn by `seed` with std 1 / sqrt(hidden + 1) (Stiennon et al.
    2020). Raises ValueError when the tokenizer has no pad token of its own, because Hugging Face finds an answer's
    last token by it."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(sft_directory, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ValueError(f"{sft_directory}: the tokenizer needs a pad token other than its end-of-sequence token")
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        sft_directory,
        num_labels=1,
        problem_type="regression",
        pad_token_id=tokenizer.pad_token_id,
        dtype=getattr(torch, dtype),
        trust_remote_code=trust_remote_code,
    )
    with torch.no_grad():
        model.score.weight.normal_(std=(model.score.in_features + 1) ** -0.5)
    return model.eval()


def load_reward_model(directory: Path, *, dtype: Dtype, trust_remote_code: bool) -> Any:
    """A fitted reward model, ready to score (no dropout)."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        directory, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code
    )
    return model.eval()
