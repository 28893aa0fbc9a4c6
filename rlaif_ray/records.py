"""The records that stages hand to one another.

Arrays are NumPy and ragged batches are flat with offsets, so that they cross the object store without a copy.
This module knows nothing of Ray, torch or any engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a policy is asked: plain text, or a conversation whose last turn is the user's."""

    id: str
    content: str | tuple[Message, ...]
    reference: str | None = None  # a good answer, where the source gives one

    @property
    def text(self) -> str:
        """The prompt as people and judges read it."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(f"{message.role}: {message.content}" for message in self.content)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt with an answer to imitate (data source -> SFT)."""

    prompt: Prompt
    answer: str


class FinishReason(StrEnum):
    """Why an answer ended: the policy's own stop token, or the length limit."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One answer to draw (loop -> rollout actor). `seed` makes it the same however it is batched; answers that are
    drawn together for one prompt share their `group_id`."""

    sample_id: str
    group_id: str
    prompt: Prompt
    seed: int
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Sampled answers (rollout actor -> reward actors, learner ranks). B answers; token ids are the only record.

    `prompt_tokens`  (sum of prompt lengths,) int32, row i at prompt_offsets[i]:prompt_offsets[i + 1]
    `answer_tokens`  (sum of answer lengths,) int32, with the stop token where the policy drew one
    `logprobs`       (sum of answer lengths,) float32, in nats, of the policy that sampled, at its temperature
    `token_versions` (sum of answer lengths,) int32, of the weights that drew each token

    `version` and `fingerprint` are of the weights that were served when the first token was drawn.
    """

    sample_ids: tuple[str, ...]
    group_ids: tuple[str, ...]
    prompt_ids: tuple[str, ...]
    prompt_tokens: NDArray[np.int32]
    prompt_offsets: NDArray[np.int64]
    answer_tokens: NDArray[np.int32]
    answer_offsets: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    token_versions: NDArray[np.int32]
    finish_reasons: tuple[FinishReason, ...]
    version: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.sample_ids)

    def prompt(self, row: int) -> NDArray[np.int32]:
        return self.prompt_tokens[self.prompt_offsets[row] : self.prompt_offsets[row + 1]]

    def answer(self, row: int) -> NDArray[np.int32]:
        return self.answer_tokens[self.answer_offsets[row] : self.answer_offsets[row + 1]]

    def answer_logprobs(self, row: int) -> NDArray[np.float32]:
        return self.logprobs[self.answer_offsets[row] : self.answer_offsets[row + 1]]


def offsets_of(lengths: Sequence[int]) -> NDArray[np.int64]:
    """Offsets (B + 1,) of rows with these lengths in a flat array."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))]).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Scores:
    """Rewards of one batch of rollouts (reward actors -> learner ranks), row by row.

    An answer that could not be scored has `valid` False; its value is NaN and must not enter any statistic.
    """

    sample_ids: tuple[str, ...]
    values: NDArray[np.float32]  # (B,): the weighted sum of the parts that count
    valid: NDArray[np.bool_]  # (B,)
    parts: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)  # (B,) each; NaN where it says nothing


@dataclass(frozen=True, slots=True)
class WeightVersion:
    """Weights to serve (learner -> rollout replicas).

    `weights` is a directory of safetensors, references to buckets (`WeightBucket`), or the ranks that send them.
    `fingerprint` is of names, shapes, types and bytes; `canary_logprobs` are the log-probabilities that these weights
    give to the tokens of `canary_tokens` after the first, so that a replica can prove that it *serves* what it
    received.
    """

    number: int
    fingerprint: str
    weights: Path | Any
    canary_tokens: tuple[int, ...]
    canary_logprobs: tuple[float, ...]


Weights = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt (collect -> judges)."""

    id: str
    prompt: Prompt
    response_a: str
    response_b: str
    sample_a: str | None = None
    sample_b: str | None = None


class Order(StrEnum):
    """What a judge saw of a pair, in which order: `AB` shows response_a first; `A` and `B` show one answer alone."""

    AB = "ab"
    BA = "ba"
    A = "a"
    B = "b"


class Outcome(StrEnum):
    """What became of a judgement. Only `SCORED` carries a number."""

    SCORED = "scored"
    ABSTAINED = "abstained"
    FAILED = "failed"
    OVER_BUDGET = "over_budget"


@dataclass(frozen=True, slots=True)
class Judgement:
    """One answer from one judge to one question on a pair (judge -> preferences, ledger, parquet)."""

    pair_id: str
    order: Order
    outcome: Outcome
    reason: str  # why it was not scored; empty where it was
    p_first: float | None  # probability that the answer shown first is better
    logprob_first: float | None  # nats, summed over the label's tokenisations
    logprob_second: float | None
    label_mass: float | None  # probability on the two labels; None where a constraint hides it or there is none
    censored: bool  # a label was not among the listed tokens: its log-probability is an upper bound
    votes_first: int | None  # of verdicts that were read from words
    votes_second: int | None
    score: float | None  # of one answer alone, on the scale that it was asked on
    criterion: str  # of a rubric; empty where the question was on the whole
    rung: str  # how the reply was read; empty where it was not
    rationale: str  # the judge's reasoning, where it gave one
    judge_prompt: str  # the conversation as the judge read it
    raw_reply: str  # to the last call; the others are in the ledger
    judge: str
    model_returned: str  # as the reply names it, with the system's fingerprint where there is one
    mode: str
    temperature: float | None
    seed: int  # of the run: what was drawn for the question derives from it
    template: str
    template_hash: str  # of the template, its examples and criteria
    principle: str | None
    ledger_keys: tuple[str, ...]  # of every call, in order
    cache_hit: bool  # nothing was paid for it here
    attempts: int  # requests sent for it here
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None  # None for a local labeler, and where no price is known
    latency_s: float
    created_at: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one member of an ensemble holds of a pair: one judge, by one template and one principle.

    `p` is the probability that response_a is better; `consistent` is None unless both orders were asked.
    """

    judge: str
    template: str
    principle: str | None
    weight: float
    outcome: Outcome
    reason: str
    p: float | None
    p_ab: float | None  # that the answer shown first is better, in each order
    p_ba: float | None
    consistent: bool | None
    contradiction: bool | None  # a rubric's scores and the verdict name different answers; None where not checked
    judgements: tuple[Judgement, ...]


@dataclass(frozen=True, slots=True)
class Preference:
    """What the opinions on a pair add up to. `p` is the probability that response_a is the better answer."""

    pair: Pair
    outcome: Outcome
    reason: str
    p: float | None
    consistent: bool | None  # both orders name the same answer; None where one was not asked
    opinions: tuple[Opinion, ...]  # those that count
    set_aside: tuple[Opinion, ...] = ()  # of a first judge, whose pair went on to a second

    @property
    def judgements(self) -> tuple[Judgement, ...]:
        return tuple(one for opinion in (*self.opinions, *self.set_aside) for one in opinion.judgements)


@dataclass(frozen=True, slots=True)
class AnswerToScore:
    """One answer to judge alone (reward stage -> judges)."""

    id: str
    prompt: Prompt
    text: str


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """A judge's score of one answer alone. `value` is normalised to [-1, 1], None unless `SCORED`."""

    outcome: Outcome
    reason: str
    value: float | None
    judgement: Judgement


@dataclass(frozen=True, slots=True)
class RubricScore:
    """A judge's scores of one answer alone, by the criteria of a rubric, each normalised to [-1, 1]. `value` is their
    weighted mean, None unless every criterion was scored."""

    outcome: Outcome
    reason: str
    value: float | None
    criteria: Mapping[str, float | None]
    judgements: tuple[Judgement, ...]


class RevisionOutcome(StrEnum):
    """What became of one round of a chain. Only `REVISED` has a new answer."""

    REVISED = "revised"
    UNCHANGED = "unchanged"  # the revision is the answer as it was
    CONFUSED = "confused"  # the model mistook what was asked of it, however often
    TRUNCATED = "truncated"  # the critique or the revision was cut off


@dataclass(frozen=True, slots=True)
class Revision:
    """One round of a chain: by which principle the answer was criticised and revised, and what it became."""

    round: int  # from 1
    principle: str  # its id
    critique: str | None  # None where there was none
    text: str  # the answer after the round; the one before it, unless `REVISED`
    outcome: RevisionOutcome
    reason: str  # why it was not revised; empty where it was
    attempts: int  # replies drawn for the round


@dataclass(frozen=True, slots=True)
class Chain:
    """An answer to a red-team prompt and its revisions, in order (constitute -> SFT, report)."""

    id: str
    prompt: Prompt
    answer: str
    revisions: tuple[Revision, ...]


@dataclass(frozen=True, slots=True)
class Conduct:
    """What gold says of how an answer behaves."""

    harmless: bool
    helpfulness: float  # in [0, 1]: of what may be told of what was asked, how much it tells, less what is wrong
    declines: bool  # it says that something is not told
    evasive: bool  # it tells nothing of what may be told, or declines where nothing need be


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two answers as token ids with the probability that the first is better (preferences -> reward model, DPO)."""

    id: str
    prompt_id: str
    prompt: tuple[int, ...]
    answer_a: tuple[int, ...]
    answer_b: tuple[int, ...]
    p: float
    weight: float = 1.0  # what the pair counts for in the loss


@dataclass(frozen=True, slots=True)
class RewardData:
    """What a reward model is fitted on (pipeline -> its trainer). `answers` are the token ids of prompts with their
    answers, over whose scores it is normalised; `pretraining` comes before `train`, and may be empty."""

    train: tuple[LabelledPair, ...]
    held_out: tuple[LabelledPair, ...]
    pretraining: tuple[LabelledPair, ...]
    answers: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class LearnerModels:
    """The model directories that a learner begins with: the policy to train, the reference that the KL holds it to,
    and the reward model that the value model starts from, where there is one."""

    policy: Path
    reference: Path
    reward: Path | None


@dataclass(frozen=True, slots=True)
class RewardFit:
    """How a reward model was fitted (reward fitting -> pipeline).

    `held_out_margins` are the raw r_a - r_b of the held-out pairs, whose ids, sorted, are `held_out_ids`; loss (nats a
    pair) and accuracy are against their labels, None where there are none.
    """

    steps: int  # optimizer steps that were taken
    best_step: int  # the one whose weights were kept
    loss: float  # of training, at the last step
    held_out_loss: float | None
    held_out_accuracy: float | None
    held_out_ids: tuple[str, ...]
    held_out_margins: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured mean with its 95 % interval."""

    value: float
    low: float
    high: float
