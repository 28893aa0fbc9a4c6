"""What a run measures: every metric's name, unit and meaning, defined once, and how it is exported.

A run's log holds the values of steps (`MetricsLog`); actors tell the others while they work. All of them are exported
to Prometheus through Ray, which puts `ray_` before the names here, and `_total` after a counter's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from rlaif_ray.metrics.log import MetricsLog as MetricsLog
from rlaif_ray.metrics.log import MetricsRow as MetricsRow

SFT: Final = "sft"
REWARD: Final = "reward"
REWARD_PRETRAINING: Final = "pretrain-reward"
PPO: Final = "ppo"
DPO: Final = "dpo"
WATCH: Final = "watch"
VALIDATION: Final = "validation"


# What tells series of one metric apart. `run` is the run's id, and may end with the use of a judge.
RUN: Final = "run"
STAGE: Final = "stage"
PART: Final = "part"
JUDGE: Final = "judge"
REPLICA: Final = "replica"


class Kind(StrEnum):
    """How a metric is exported: a value that comes and goes, a sum that only grows, or how values are distributed."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's unit (empty for a ratio or a plain number) and its meaning in one line; its export's kind and tags.
    `bounds` are those of a histogram's buckets."""

    name: str
    unit: str
    meaning: str
    kind: Kind = Kind.GAUGE
    tags: tuple[str, ...] = (RUN, STAGE)
    bounds: tuple[float, ...] = ()

    @property
    def exported(self) -> str:
        """Its name as it is given to Ray."""
        return "rlaif_" + self.name.replace("/{}", "_of_part")

    @property
    def series(self) -> str:
        """Its name in Prometheus; a histogram's, before `_bucket`, `_sum` and `_count`."""
        return f"ray_{self.exported}" + ("_total" if self.kind is Kind.COUNTER else "")


_defined: dict[str, Metric] = {}


def _define(name: str, unit: str, meaning: str) -> str:
    """A value of a step, which a run's log holds; one of each for every part of a mixed reward, with {} for its
    name."""
    _defined[name] = Metric(name, unit, meaning, tags=(RUN, STAGE, PART) if "{}" in name else (RUN, STAGE))
    return name


def _tell(kind: Kind, name: str, unit: str, meaning: str, *tags: str, bounds: tuple[float, ...] = ()) -> str:
    """What an actor, or the driver, tells while it works."""
    _defined[name] = Metric(name, unit, meaning, kind, (RUN, *tags), bounds)
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

# Parts of a mixed reward.
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

# Where an iteration's time goes, and what the learner does in its share.
LOAD_SECONDS: Final = _define("load_seconds", "s", "time to load and verify the weights on every replica")
GENERATE_SECONDS: Final = _define("generate_seconds", "s", "time that the learner waited for the batch of answers")
SCORE_SECONDS: Final = _define("score_seconds", "s", "time that the learner then waited for their scores")
LEARN_SECONDS: Final = _define("learn_seconds", "s", "time of the learner's update")
PUBLISH_SECONDS: Final = _define("publish_seconds", "s", "time to write the new weights out")
ITERATION_SECONDS: Final = _define("iteration_seconds", "s", "time of the iteration, without its checkpoint")
LEARN_TOKENS_PER_SECOND: Final = _define(
    "learn_tokens_per_second", "tokens/s", "answer tokens of the batch per second of the learner's update"
)

# How far a run is.
RUN_INFO: Final = _tell(Kind.GAUGE, "run_info", "", "1 for a run, or a reward server, that goes on here", "name")
STEP: Final = _tell(Kind.GAUGE, "step", "", "the newest step that a stage has logged", STAGE)
STEPS: Final = _tell(Kind.GAUGE, "steps", "", "steps that the stage takes in all", STAGE)
STEP_TIME: Final = _tell(Kind.GAUGE, "step_time_seconds", "s", "when the newest step was logged, or the run began")

# The rollout pool, and each of its replicas. A time is in seconds since the epoch, so that it grows old by itself.
ROLLOUT_TOKENS: Final = _tell(Kind.COUNTER, "rollout_tokens", "tokens", "answer tokens drawn", REPLICA)
ROLLOUT_REQUESTS: Final = _tell(
    Kind.GAUGE, "rollout_requests", "answers", "answers asked for and not yet drawn", REPLICA
)
ROLLOUT_OLDEST_TIME: Final = _tell(
    Kind.GAUGE, "rollout_oldest_time_seconds", "s", "when the oldest of them was asked for; 0 without any", REPLICA
)
ROLLOUT_VERSION: Final = _tell(Kind.GAUGE, "rollout_version", "", "number of the weights that are served", REPLICA)
ROLLOUT_WANTED_VERSION: Final = _tell(
    Kind.GAUGE, "rollout_wanted_version", "", "number of the weights that every replica should serve"
)
ROLLOUT_REPLICAS: Final = _tell(Kind.GAUGE, "rollout_replicas", "", "replicas that there should be")

# Judges: each pool of calls (`judge`, a second member of a panel `judge2`, `evaluation-judge`).
JUDGE_CALLS: Final = _tell(Kind.COUNTER, "judge_calls", "calls", "replies that were asked for and came", JUDGE)
JUDGE_LATENCY: Final = _tell(
    Kind.HISTOGRAM,
    "judge_latency_seconds",
    "s",
    "time from a request to its reply",
    JUDGE,
    bounds=(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
)
JUDGE_FAILED_ATTEMPTS: Final = _tell(
    Kind.COUNTER, "judge_failed_attempts", "attempts", "requests that brought nothing, by why", JUDGE, "kind"
)
JUDGE_TOKENS: Final = _tell(
    Kind.COUNTER, "judge_tokens", "tokens", "tokens of prompts and completions", JUDGE, "direction"
)
JUDGE_COST: Final = _tell(Kind.COUNTER, "judge_cost_usd", "USD", "cost of the replies that came", JUDGE)
JUDGE_CACHE_HITS: Final = _tell(
    Kind.COUNTER,
    "judge_cache_hits",
    "calls",
    "calls that were spared, as the ledger or another call had the reply",
    JUDGE,
)
JUDGE_QUEUED: Final = _tell(Kind.GAUGE, "judge_queued", "calls", "calls that no judge actor has taken yet", JUDGE)
JUDGE_OLDEST_TIME: Final = _tell(
    Kind.GAUGE, "judge_oldest_time_seconds", "s", "when the oldest of them came; 0 without any", JUDGE
)
JUDGE_IN_FLIGHT: Final = _tell(Kind.GAUGE, "judge_in_flight", "calls", "calls that judge actors hold", JUDGE)
JUDGE_ACTORS_WANTED: Final = _tell(Kind.GAUGE, "judge_actors_wanted", "", "judge actors that there should be", JUDGE)
JUDGE_ACTORS: Final = _tell(Kind.GAUGE, "judge_actors", "", "judge actors that are up", JUDGE)
JUDGEMENTS: Final = _tell(
    Kind.COUNTER, "judgements", "judgements", "judgements by what became of them", JUDGE, "outcome"
)
JUDGE_SPENT: Final = _tell(
    Kind.GAUGE, "judge_spent_usd", "USD", "what the run and its resumptions spent, ambiguous attempts at their worst"
)
JUDGE_BUDGET: Final = _tell(Kind.GAUGE, "judge_budget_usd", "USD", "judge.budget_usd, where it is set")

# The reward server, which is a run of its own here.
SERVER_ANSWERS: Final = _tell(
    Kind.COUNTER,
    "reward_server_answers",
    "answers",
    "answers by what became of them; refused ones found too many waiting",
    "outcome",
)
SERVER_TOKENS: Final = _tell(
    Kind.COUNTER, "reward_server_tokens", "tokens", "tokens that were scored, of answers and their prompts"
)
SERVER_LATENCY: Final = _tell(
    Kind.HISTOGRAM,
    "reward_server_latency_seconds",
    "s",
    "time from a call, of some answers, to its reply",
    bounds=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
SERVER_WAITING: Final = _tell(Kind.GAUGE, "reward_server_waiting", "answers", "answers that wait for a forward")
SERVER_OLDEST_TIME: Final = _tell(
    Kind.GAUGE, "reward_server_oldest_time_seconds", "s", "when the oldest of them came; 0 without any"
)
SERVER_IN_FLIGHT: Final = _tell(Kind.GAUGE, "reward_server_in_flight", "answers", "answers that actors score")
SERVER_ACTORS: Final = _tell(Kind.GAUGE, "reward_server_actors", "", "actors of the reward server that serve")
SERVER_STARTING: Final = _tell(Kind.GAUGE, "reward_server_starting", "", "actors of it that start")
SERVER_VERSION: Final = _tell(
    Kind.GAUGE, "reward_server_version", "", "number of the model by which new calls are scored"
)

METRICS: Final[Mapping[str, Metric]] = MappingProxyType(_defined)


def family_of(name: str) -> tuple[str, str]:
    """What `METRICS` calls a metric of a log, and the part of the reward that it is of; empty where it is of none."""
    family, slash, part = name.partition("/")
    return (f"{family}/{{}}", part) if slash else (name, "")
