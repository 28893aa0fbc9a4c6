"""Revising answers by a constitution, before the policy is fine-tuned (Bai et al. 2022, Constitutional AI)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlaif_ray.config.prompts import PromptsConfig
from rlaif_ray.config.section import NonNegativeFloat, Positive, Section


class ConstitutionConfig(Section):
    prompts: PromptsConfig
    """Red-team prompts: requests whose plain answer would do harm. Its held-out ones are never trained on; the policy
    is evaluated on them."""
    principles: str = "principles"
    """A constitution: a file, or a shipped one's name. Each revision is made by one principle, drawn by its weight."""
    examples: str | None = "revisions"
    """A file of worked critiques and revisions that are shown first, or a shipped one's name."""
    model: str | None = None
    """A helpful model that criticises and revises what `policy.model` answers. Without it `policy.model` does so
    itself."""
    rounds: Annotated[int, Field(ge=1, le=4)] = 4
    """Revisions of each answer, every one of the last."""
    critique: bool = True
    """Criticise before each revision. Small models gain most by it."""
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    attempts: Positive = 3
    """Tries of a critique or a revision that the model mistakes for something else; after that the round is left
    out."""
    max_critique_tokens: Positive = 256
    """The longest critique. Answers and revisions have policy.max_answer_tokens."""
    max_context_tokens: Positive = 4096
    """The longest conversation, examples and reply included."""
    train_on: Literal["last", "all"] = "last"
    """Which revisions the policy is fine-tuned on: each answer's last, or all."""
    train_rounds: Positive | None = None
    """Fine-tune on revisions of the first rounds alone. Without it on those of all."""
    helpful_per_revision: NonNegativeFloat = 1.0
    """Demonstrations of `sft.demonstrations` for each revision, as far as there are any."""

    @property
    def trained_rounds(self) -> int:
        """How many rounds' revisions are trained on."""
        return self.train_rounds or self.rounds

    @model_validator(mode="after")
    def _whole(self) -> ConstitutionConfig:
        if self.trained_rounds > self.rounds:
            raise ValueError(
                f"constitution.train_rounds ({self.train_rounds}) exceeds constitution.rounds ({self.rounds})"
            )
        return self
