"""Which stages a run has, in order, and what each leaves behind when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from rlaif_ray.config import RunConfig
from rlaif_ray.evaluation.validation import Validation
from rlaif_ray.report.summary import (
    ConductSummary,
    ConstitutionSummary,
    LabelerSummary,
    PolicyName,
    PolicySummary,
    RewardSummary,
)


class Stage(StrEnum):
    """The recipe's stages. Each is a command of its own."""

    CONSTITUTE = "constitute"
    SFT = "sft"
    COLLECT = "collect"
    REWARD = "fit-reward"
    TRAIN = "train"
    DPO = "dpo"
    EVALUATE = "evaluate"
    REPORT = "report"


class Done(BaseModel):
    """What a finished stage records; stages that measure something add it."""

    model_config = ConfigDict(frozen=True)

    wall_s: float = 0.0  # what carries out the stage fills it in


class Constituted(Done):
    constitution: ConstitutionSummary


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
    conduct: Mapping[PolicyName, ConductSummary] = {}
    spent_usd: float | None  # on the judge, up to here; None where calls have no price


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of one round. SFT and the report stand outside the rounds."""

    stage: Stage
    round: int | None
    record: type[Done]


def steps_of(config: RunConfig) -> list[Step]:
    """The run's steps, in order. A run that needs no preferences of its own collects none."""
    of_a_round: list[tuple[Stage, type[Done]]] = [
        (Stage.DPO if config.policy.algorithm == "dpo" else Stage.TRAIN, Trained),
        (Stage.EVALUATE, Evaluated),
    ]
    if config.fits_a_reward_model:
        of_a_round.insert(0, (Stage.REWARD, Fitted))
    if config.collects_preferences:
        of_a_round.insert(0, (Stage.COLLECT, Collected))
    return [
        *([] if config.constitution is None else [Step(Stage.CONSTITUTE, None, Constituted)]),
        Step(Stage.SFT, None, Done),
        *(Step(stage, number, record) for number in range(1, config.rounds + 1) for stage, record in of_a_round),
        Step(Stage.REPORT, None, Done),
    ]


def why_absent(stage: Stage, config: RunConfig) -> str:
    """Why this run has no such stage, and what to do, in one sentence without its subject."""
    if stage is Stage.CONSTITUTE:
        return "the config has no constitution; give it a section of that name, with the red-team prompts"
    algorithm = config.policy.algorithm
    if stage is Stage.DPO:
        return f"policy.algorithm={algorithm} learns from scores; take `rlaif train`, or set it to dpo"
    if algorithm != "dpo":
        return "this run's rewards need no reward model, so it has no such stage"
    if stage is Stage.TRAIN:
        return "policy.algorithm=dpo learns from preferences; take `rlaif dpo`, or set another algorithm"
    if stage is Stage.COLLECT:
        return "the preferences are those of dpo.preferences; leave it out to collect some"
    return "policy.algorithm=dpo needs no reward model; set another algorithm to fit one"
