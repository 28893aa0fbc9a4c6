"""Which stages a run has, in order, and what each leaves behind when it is done."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from rlaif_ray.config import RunConfig
from rlaif_ray.evaluation.validation import Validation
from rlaif_ray.report.summary import LabelerSummary, PolicySummary, RewardSummary


class Stage(StrEnum):
    """The recipe's stages. Each is a command of its own."""

    SFT = "sft"
    COLLECT = "collect"
    REWARD = "fit-reward"
    TRAIN = "train"
    EVALUATE = "evaluate"
    REPORT = "report"


class Done(BaseModel):
    """What a finished stage records; stages that measure something add it."""

    model_config = ConfigDict(frozen=True)

    wall_s: float = 0.0  # what carries out the stage fills it in


class Collected(Done):
    labeler: LabelerSummary
    preferences: int  # of all rounds so far
    not_sent: int  # pairs that were chosen and were not worth a judgement


class Fitted(Done):
    reward: RewardSummary


class Trained(Done):
    labeler: LabelerSummary  # of the rewards that the judge gave while the policy was trained
    resumed_from: int | None  # the last iteration that a checkpoint held when training went on
    validation: Validation | None = None  # of the policy that was taken; None where the last one was, unmeasured


class Evaluated(Done):
    policy: PolicySummary
    spent_usd: float | None  # on the judge, up to here; None where calls have no price


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of one round. SFT and the report stand outside the rounds."""

    stage: Stage
    round: int | None
    record: type[Done]


def steps_of(config: RunConfig) -> list[Step]:
    """The run's steps, in order. A run without a reward model collects nothing and fits nothing."""
    of_a_round: list[tuple[Stage, type[Done]]] = [(Stage.TRAIN, Trained), (Stage.EVALUATE, Evaluated)]
    if config.reward.fits_a_model:
        of_a_round = [(Stage.COLLECT, Collected), (Stage.REWARD, Fitted), *of_a_round]
    return [
        Step(Stage.SFT, None, Done),
        *(Step(stage, number, record) for number in range(1, config.rounds + 1) for stage, record in of_a_round),
        Step(Stage.REPORT, None, Done),
    ]
