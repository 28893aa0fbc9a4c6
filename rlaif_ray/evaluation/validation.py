"""Evaluations of the policy while it is trained: what they found, and the one policy that did best by them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from rlaif_ray.rundir import write_atomically


class Validation(BaseModel):
    """The policy after an iteration against SFT, on the validation prompts."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    iteration: int = Field(ge=1)
    """Counted through the rounds."""
    win_rate: float | None
    """Ties half; None where nobody could say who won."""
    win_rate_ci: tuple[float, float] | None
    prompts: int
    """Those on which someone could say."""


class _Record(BaseModel):
    validations: tuple[Validation, ...] = ()


@dataclass(frozen=True, slots=True)
class ValidatedPolicies:
    """The validations of one round and its best policy, in a directory: a record, and the weights beside it."""

    directory: Path

    def validations(self) -> tuple[Validation, ...]:
        """In the order in which they were taken."""
        return _Record.model_validate_json(self._record.read_text()).validations if self._record.exists() else ()

    def best(self) -> Validation | None:
        return best_of(self.validations())

    def is_best(self, validation: Validation) -> bool:
        """Whether it says more for its policy than all that were recorded say for theirs."""
        return best_of((*self.validations(), validation)) == validation

    def policy(self, iteration: int) -> Path:
        """Where the policy after an iteration is kept, if it is the best."""
        return self.directory / f"iteration-{iteration:07}"

    def add(self, validation: Validation) -> None:
        """Record a validation. Where it is the best, its policy must be in place: those of the others are dropped."""
        validations = (*self.validations(), validation)
        write_atomically(self._record, _Record(validations=validations).model_dump_json(indent=2) + "\n")
        best = best_of(validations)
        for kept in self.directory.glob("iteration-*"):
            if best is None or kept != self.policy(best.iteration):
                shutil.rmtree(kept)

    @property
    def _record(self) -> Path:
        return self.directory / "validations.json"


def best_of(validations: tuple[Validation, ...]) -> Validation | None:
    """The one of the highest win rate; the earliest of equals, which has moved the least. None where none has one."""
    measured = [one for one in validations if one.win_rate is not None]
    return max(measured, key=lambda one: (one.win_rate, -one.iteration), default=None)
