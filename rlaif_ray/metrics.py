"""What a run measures while it trains: every metric's name, defined once, and the log that keeps the values.

The log is a file of JSON lines, so that a crash costs at most its last line, with TensorBoard events beside it.
This module knows nothing of Ray, torch or any engine: events are written with TensorBoard's own writer.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]

SFT: Final = "sft"
REWARD: Final = "reward"
REWARD_PRETRAINING: Final = "pretrain-reward"
PPO: Final = "ppo"
DPO: Final = "dpo"
WATCH: Final = "watch"
VALIDATION: Final = "validation"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's unit (empty for a ratio or a plain number) and its meaning in one line."""

    name: str
    unit: str
    meaning: str


_defined: dict[str, Metric] = {}


def _define(name: str, unit: str, meaning: str) -> str:
    _defined[name] = Metric(name, unit, meaning)
    return name


# Batch trainers (SFT, reward model, DPO, whose implicit reward ranks answers as a reward model does).
LOSS: Final = _define("loss", "nats", "training loss: per answer token in SFT, per pair elsewhere")
ACCURACY: Final = _define("accuracy", "", "share of training pairs whose preferred answer is ranked first")
MARGIN: Final = _define("margin", "", "mean lead of the preferred answer's implicit reward over the other's")
HELD_OUT_LOSS: Final = _define("held_out_loss", "nats", "the same loss on data that no step has seen")
HELD_OUT_ACCURACY: Final = _define("held_out_accuracy", "", "the same accuracy on prompts that no step has seen")
HELD_OUT_MARGIN: Final = _define("held_out_margin", "", "the same lead on prompts that no step has seen")
LEARNING_RATE: Final = _define("learning_rate", "", "the optimizer's learning rate")
GRADIENT_NORM: Final = _define("gradient_norm", "", "norm of the gradient before it is clipped")

# Training (the stage is called PPO whatever the algorithm): what the policy earns, and how far it has moved.
REWARD_MEAN: Final = _define("reward_mean", "", "mean reward of the answers that were scored, normalised, before KL")
REWARD_STD: Final = _define("reward_std", "", "standard deviation of the same rewards")
KL: Final = _define("kl", "nats/answer", "KL of the policy from the reference, summed over an answer's tokens")
KL_COEFFICIENT: Final = _define("kl_coefficient", "", "weight of the KL penalty in the reward")
ANSWER_LENGTH: Final = _define("answer_length", "tokens", "mean length of an answer, its stop token included")
VALID_FRACTION: Final = _define("valid_fraction", "", "share of answers that could be scored")
TRUNCATED_FRACTION: Final = _define("truncated_fraction", "", "share of answers that hit the length limit")

# One of each for every part of a mixed reward, with the part's name for {}.
REWARD_PART_MEAN: Final = _define("reward/{}", "", "mean of one part of the reward, where it says something")
REWARD_PART_STD: Final = _define("reward_std/{}", "", "standard deviation of the same part")
REWARD_PART_VALID: Final = _define("reward_valid/{}", "", "share of answers of which the part says something")

# Groups of answers to one prompt, in RLOO and GRPO.
LONE_GROUP_FRACTION: Final = _define(
    "lone_group_fraction", "", "share of groups with fewer than two scored answers, which are left out"
)
TIED_GROUP_FRACTION: Final = _define(
    "tied_group_fraction", "", "share of groups whose answers all have the same score, which prefer none"
)
ADVANTAGE_SIZE: Final = _define("advantage_size", "", "mean size of an action's advantage")

# The watch: answers of an iteration that the judge scores beside their reward.
WATCHED: Final = _define("watched", "answers", "answers that the judge scored as a check on their rewards")
WATCHED_JUDGE_MEAN: Final = _define("watched_judge_mean", "", "the judge's mean score of them, from -1 to 1")
WATCHED_REWARD_MEAN: Final = _define("watched_reward_mean", "", "mean reward of the same answers")
WATCHED_CORRELATION: Final = _define(
    "watched_correlation", "", "Spearman's rank correlation between their rewards and the judge's scores"
)

# Training: how the optimizer's steps went.
POLICY_LOSS: Final = _define("policy_loss", "", "clipped surrogate loss of the policy")
VALUE_LOSS: Final = _define("value_loss", "", "clipped squared error of the value model")
ENTROPY: Final = _define("entropy", "nats/token", "mean entropy of the policy's next-token distribution")
CLIP_FRACTION: Final = _define("clip_fraction", "", "share of tokens whose probability ratio was clipped")
VALUE_CLIP_FRACTION: Final = _define("value_clip_fraction", "", "share of tokens whose value was clipped")
APPROXIMATE_KL: Final = _define("approximate_kl", "nats/token", "KL of the updated policy from the one that sampled")
EXPLAINED_VARIANCE: Final = _define("explained_variance", "", "share of the returns' variance that the values explain")
POLICY_GRADIENT_NORM: Final = _define("policy_gradient_norm", "", "norm of the policy's gradient before clipping")
VALUE_GRADIENT_NORM: Final = _define("value_gradient_norm", "", "norm of the value model's gradient before clipping")
EARLY_STOPPED: Final = _define(
    "early_stopped", "", "1 where the policy's updates ended early, being far enough from where they began"
)
SKIPPED_STEP: Final = _define("skipped_step", "", "1 where no answer of an iteration prefers any other: no update")

# Three policies: the one that sampled, the one at the start of an update, the one being trained.
LOGPROB_GAP: Final = _define(
    "logprob_gap", "nats/token", "mean absolute gap between rollout and learner log-probabilities before an update"
)
LOGPROB_GAP_MAX: Final = _define("logprob_gap_max", "nats/token", "the largest such gap on any token")
IMPORTANCE_WEIGHT: Final = _define(
    "importance_weight", "", "mean weight by which answers of the rollouts' policy stand for the learner's"
)
IMPORTANCE_TRUNCATED: Final = _define("importance_truncated", "", "share of tokens whose weight was cut")
STALENESS: Final = _define("staleness", "versions", "mean lag of the weights that drew a token behind the learner's")

# Validation: the policy against SFT while it is trained, on held-out prompts.
WIN_RATE: Final = _define("win_rate", "", "share of validation prompts on which the policy beats SFT, ties half")
WIN_RATE_LOW: Final = _define("win_rate_low", "", "lower end of its 95 % interval")
WIN_RATE_HIGH: Final = _define("win_rate_high", "", "upper end of its 95 % interval")
COMPARED: Final = _define("compared", "prompts", "validation prompts on which someone could say who won")

# Where an iteration's time goes.
GENERATION_TOKENS_PER_SECOND: Final = _define(
    "generation_tokens_per_second", "tokens/s", "answer tokens drawn per second of generation, over all replicas"
)
LOAD_SECONDS: Final = _define("load_seconds", "s", "time to load and verify the weights on every replica")
GENERATE_SECONDS: Final = _define("generate_seconds", "s", "time to draw the batch of answers")
SCORE_SECONDS: Final = _define("score_seconds", "s", "time to score the batch")
LEARN_SECONDS: Final = _define("learn_seconds", "s", "time of the learner's optimizer steps")
PUBLISH_SECONDS: Final = _define("publish_seconds", "s", "time to write the new weights out")
ITERATION_SECONDS: Final = _define("iteration_seconds", "s", "time of the iteration, without its checkpoint")

METRICS: Final[Mapping[str, Metric]] = MappingProxyType(_defined)


@dataclass(frozen=True, slots=True)
class MetricsRow:
    """The values of one step of one stage. `step` counts from 1 to `total`; `time` is in seconds since the epoch."""

    stage: str
    step: int
    total: int
    time: float
    values: Mapping[str, float]


class MetricsLog:
    """An append-only log of metrics, one JSON object a line, with TensorBoard events in `tensorboard/` beside it.

    A resumed run appends to the same file and may log a step again: the later line counts. A value that is not
    finite is written as null, which JSON can carry, and read back as NaN.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._events: EventFileWriter | None = None

    def append(self, stage: str, step: int, total: int, values: Mapping[str, float]) -> None:
        """Log the values of one step: on return the line is with the operating system, whole."""
        row = MetricsRow(stage, step, total, time.time(), {name: float(value) for name, value in values.items()})
        record = {
            "stage": row.stage,
            "step": row.step,
            "total": row.total,
            "time": row.time,
            "values": {name: value if math.isfinite(value) else None for name, value in row.values.items()},
        }
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        if self._descriptor is None:
            self._descriptor = self._open()
        # One write of a whole line: another process that appends to the file cannot come between.
        if os.write(self._descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, "only a part of a line of metrics could be written", str(self.path))
        self._write_events(row)

    def read(self) -> list[MetricsRow]:
        """Every step's values, in the order of their first appearance; of a step logged twice, the later ones.

        A torn last line (a crash, or a writer at work) is left out. Raises ValueError, naming the file and the line,
        where any other line is not a row of metrics.
        """
        *lines, _torn = self.path.read_bytes().split(b"\n")
        rows: dict[tuple[str, int], MetricsRow] = {}
        for number, line in enumerate(lines, start=1):
            try:
                row = _parse(line)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{self.path}, line {number}: not a row of metrics ({error!r})") from error
            rows[row.stage, row.step] = row
        return list(rows.values())

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._events is not None:
            self._events.close()
            self._events = None

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        # A line that a crash tore would swallow the next one: cut it off.
        content = self.path.read_bytes()
        os.ftruncate(descriptor, content.rfind(b"\n") + 1)
        return descriptor

    def _write_events(self, row: MetricsRow) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if self._events is None:
            self._events = EventFileWriter(str(self.path.parent / "tensorboard"))
        values = [Summary.Value(tag=f"{row.stage}/{name}", simple_value=value) for name, value in row.values.items()]
        self._events.add_event(Event(wall_time=row.time, step=row.step, summary=Summary(value=values)))
        self._events.flush()


def _parse(line: bytes) -> MetricsRow:
    record = json.loads(line)
    values = {name: math.nan if value is None else float(value) for name, value in record["values"].items()}
    return MetricsRow(
        stage=str(record["stage"]),
        step=int(record["step"]),
        total=int(record["total"]),
        time=float(record["time"]),
        values=values,
    )
