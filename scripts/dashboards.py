"""Writes cluster/grafana/*.json: what the dashboards of a run show. `make docs` runs it."""

from __future__ import annotations

import sys
from pathlib import Path

from rlaif_ray import metrics as m
from scripts.grafana import (
    Dashboard,
    Panel,
    Query,
    age,
    curves,
    document,
    gauge,
    growth,
    memory,
    of_ray,
    quantile,
    rate,
    ratio,
    series,
)

TARGET = Path(__file__).parents[1] / "cluster" / "grafana"

# A process in a container has other ids than its GPU knows it by, so that it is told by GPU and not by process.
_GPU_MEMORY = Panel("Memory of GPUs", (of_ray("max", "ray_node_gram_used", "ip", "GpuIndex"),), "mbytes")

_PROGRESS = (
    Panel("Steps done", (Query(f"max by (stage) ({series(m.STEP)} / {series(m.STEPS)})", "{{stage}}"),), "percentunit"),
    Panel("Since the last step", (age(m.STEP_TIME, m.RUN),)),
    curves(
        "Where an iteration's time goes",
        *(m.LOAD_SECONDS, m.GENERATE_SECONDS, m.SCORE_SECONDS, m.LEARN_SECONDS, m.PUBLISH_SECONDS),
        stacked=True,
    ),
    curves("Time of an iteration", m.ITERATION_SECONDS),
)
_POLICY = (
    curves("Reward", m.REWARD_MEAN, m.REWARD_STD),
    curves("KL from the reference", m.KL),
    curves("Answer length", m.ANSWER_LENGTH),
    curves("Answers scored, answers cut off", m.VALID_FRACTION, m.TRUNCATED_FRACTION, unit="percentunit"),
    curves("Win rate against SFT", m.WIN_RATE, m.WIN_RATE_LOW, m.WIN_RATE_HIGH, unit="percentunit"),
    curves("Prompts that decide the win rate", m.COMPARED),
    curves("Parts of the reward", m.REWARD_PART_MEAN, m.REWARD_PART_STD),
    curves("Answers that the parts score", m.REWARD_PART_VALID, unit="percentunit"),
)
_FITTED = (
    curves("Loss", m.LOSS, m.HELD_OUT_LOSS),
    curves("Accuracy", m.ACCURACY, m.HELD_OUT_ACCURACY, unit="percentunit"),
    curves("Margin", m.MARGIN, m.HELD_OUT_MARGIN),
    curves("Gradient norm", m.GRADIENT_NORM),
)
_WATCH = (
    curves("Rank correlation", m.WATCHED_CORRELATION),
    curves("Judge and reward", m.WATCHED_JUDGE_MEAN, m.WATCHED_REWARD_MEAN),
    curves("Answers watched", m.WATCHED),
)
_MACHINES = (
    Panel("CPU", (of_ray("max", "ray_node_cpu_utilization", "ip"),), "percent"),
    Panel("Memory", (of_ray("max", "ray_node_mem_used", "ip"),), "bytes"),
    Panel("Memory by kind of process", (of_ray("sum", "ray_component_rss_bytes", "Component"),), "bytes", stacked=True),
    Panel("Object store", (of_ray("sum", "ray_object_store_memory", "Location"),), "bytes", stacked=True),
    Panel("GPUs", (of_ray("max", "ray_node_gpus_utilization", "ip", "GpuIndex"),), "percent"),
    _GPU_MEMORY,
)

_CALLS = growth(m.JUDGE_CALLS, m.JUDGE)
_REFUSED = growth(m.JUDGE_FAILED_ATTEMPTS, m.JUDGE, matchers=['kind="rate_limited"'])
_TRIED = f"({_REFUSED} + {_CALLS} or {_CALLS})"
_SPARED = growth(m.JUDGE_CACHE_HITS, m.JUDGE)
_ASKED = f"({_SPARED} + {_CALLS} or {_CALLS})"
_CALLING = (
    Panel("Calls a second", (rate(m.JUDGE_CALLS, m.JUDGE),)),
    Panel("Latency", tuple(quantile(share, m.JUDGE_LATENCY) for share in (0.5, 0.95, 0.99))),
    Panel("Attempts that brought nothing, a second", (rate(m.JUDGE_FAILED_ATTEMPTS, m.JUDGE, "kind"),)),
    Panel("Refused for rate, of attempts", (ratio(_REFUSED, _TRIED, m.JUDGE),), "percentunit"),
    Panel("Spared by the ledger, of calls", (ratio(_SPARED, _ASKED, m.JUDGE),), "percentunit"),
)
_BACKLOG = (
    Panel(
        "Calls that wait, calls under way",
        (
            gauge(m.JUDGE_QUEUED, m.JUDGE, legend="{{judge}} waiting"),
            gauge(m.JUDGE_IN_FLIGHT, m.JUDGE, legend="{{judge}} under way"),
        ),
    ),
    Panel("Age of the oldest call that waits", (age(m.JUDGE_OLDEST_TIME, m.JUDGE),)),
    Panel(
        "Judge actors",
        (
            gauge(m.JUDGE_ACTORS_WANTED, m.JUDGE, legend="{{judge}} wanted"),
            gauge(m.JUDGE_ACTORS, m.JUDGE, legend="{{judge}} up"),
        ),
    ),
)
_ABSTAINED = growth(m.JUDGEMENTS, m.JUDGE, matchers=['outcome="abstained"'])
_SAID = growth(m.JUDGEMENTS, m.JUDGE, matchers=['outcome=~"scored|abstained"'])
_JUDGEMENTS = (
    Panel("Judgements a second", (rate(m.JUDGEMENTS, m.JUDGE, "outcome"),), stacked=True),
    Panel("Abstentions, of judgements", (ratio(_ABSTAINED, _SAID, m.JUDGE),), "percentunit"),
)

_ANSWERS = (
    Panel("Answer tokens a second", (rate(m.ROLLOUT_TOKENS, m.REPLICA),), stacked=True),
    Panel("Answers to be drawn", (gauge(m.ROLLOUT_REQUESTS, m.REPLICA),), stacked=True),
    Panel("Age of the oldest answer to be drawn", (age(m.ROLLOUT_OLDEST_TIME, m.REPLICA),)),
    memory("RolloutWorker"),
    _GPU_MEMORY,
)
_SERVED = f"{series(m.ROLLOUT_VERSION)} == on (run) group_left () {series(m.ROLLOUT_WANTED_VERSION)}"
_WEIGHTS = (
    Panel(
        "Versions",
        (gauge(m.ROLLOUT_VERSION, m.REPLICA), gauge(m.ROLLOUT_WANTED_VERSION, m.RUN, legend="wanted")),
    ),
    Panel(
        "Replicas",
        (
            gauge(m.ROLLOUT_REPLICAS, m.RUN, legend="wanted"),
            Query(f"count by (run) ({_SERVED})", "serving the version that is wanted"),
        ),
    ),
    curves("Staleness", m.STALENESS),
    curves("Time to load", m.LOAD_SECONDS),
)

_UPDATE = (
    curves("Loss of the policy", m.POLICY_LOSS),
    curves("Loss of the value model", m.VALUE_LOSS),
    curves("Explained variance", m.EXPLAINED_VARIANCE),
    curves("Entropy", m.ENTROPY),
    curves("Tokens that were clipped", m.CLIP_FRACTION, m.VALUE_CLIP_FRACTION, unit="percentunit"),
    curves("KL from the policy that sampled", m.APPROXIMATE_KL),
    curves("Gradient norms", m.POLICY_GRADIENT_NORM, m.VALUE_GRADIENT_NORM),
    curves("Size of advantages", m.ADVANTAGE_SIZE),
    curves("Groups that teach nothing", m.LONE_GROUP_FRACTION, m.TIED_GROUP_FRACTION, unit="percentunit"),
)
_GAP = (
    curves("Gap of log-probabilities", m.LOGPROB_GAP, m.LOGPROB_GAP_MAX),
    curves("Importance weight", m.IMPORTANCE_WEIGHT),
    curves("Importance weights that were cut", m.IMPORTANCE_TRUNCATED, unit="percentunit"),
)
_COURSE = (
    curves("Learning rate", m.LEARNING_RATE),
    curves("KL coefficient", m.KL_COEFFICIENT),
    curves("Updates cut short, updates skipped", m.EARLY_STOPPED, m.SKIPPED_STEP),
    curves("Answer tokens a second", m.LEARN_TOKENS_PER_SECOND),
    memory("LearnerRank"),
    _GPU_MEMORY,
)

_SPENDING = growth(m.JUDGE_COST, m.JUDGE)
_MONEY = (
    Panel(
        "Spent by the run and its resumptions",
        (
            gauge(m.JUDGE_SPENT, m.RUN, legend="{{run}} spent"),
            gauge(m.JUDGE_BUDGET, m.RUN, legend="{{run}} budget"),
        ),
    ),
    Panel("Spent, of the budget", (ratio(series(m.JUDGE_SPENT), series(m.JUDGE_BUDGET), m.RUN),), "percentunit"),
    Panel("Spending an hour", (Query(f"3600 * {_SPENDING}", "{{judge}}"),)),
    Panel(
        "Cost of a thousand judgements",
        (ratio(f"1000 * {growth(m.JUDGE_COST, m.RUN)}", growth(m.JUDGEMENTS, m.RUN), m.RUN),),
    ),
)
_BOUGHT = (
    Panel("Tokens a second", (rate(m.JUDGE_TOKENS, m.JUDGE, "direction"),), stacked=True),
    Panel("Calls spared, a second", (rate(m.JUDGE_CACHE_HITS, m.JUDGE),)),
)

_SERVED_ANSWERS = (
    Panel("Answers a second", (rate(m.SERVER_ANSWERS, "outcome"),), stacked=True),
    Panel("Tokens a second", (rate(m.SERVER_TOKENS, m.RUN),)),
    Panel("Latency of a call", tuple(quantile(share, m.SERVER_LATENCY) for share in (0.5, 0.95, 0.99))),
    Panel(
        "Answers that wait, answers under way",
        (gauge(m.SERVER_WAITING, m.RUN, legend="waiting"), gauge(m.SERVER_IN_FLIGHT, m.RUN, legend="under way")),
    ),
    Panel("Age of the oldest answer that waits", (age(m.SERVER_OLDEST_TIME, m.RUN),)),
)
_SERVER = (
    Panel(
        "Actors",
        (gauge(m.SERVER_ACTORS, m.RUN, legend="serving"), gauge(m.SERVER_STARTING, m.RUN, legend="starting")),
    ),
    Panel("Version", (gauge(m.SERVER_VERSION, m.RUN),)),
    memory("RewardServerWorker"),
    _GPU_MEMORY,
)

DASHBOARDS = (
    Dashboard(
        "run",
        (
            ("Progress", _PROGRESS),
            ("Policy", _POLICY),
            ("Models fitted on data", _FITTED),
            ("The judge's watch over the reward", _WATCH),
            ("Machines", _MACHINES),
        ),
    ),
    Dashboard("judge", (("Calls", _CALLING), ("Backlog", _BACKLOG), ("Judgements", _JUDGEMENTS))),
    Dashboard("rollout", (("Answers", _ANSWERS), ("Weights", _WEIGHTS))),
    Dashboard("learner", (("Update", _UPDATE), ("Between rollouts and learner", _GAP), ("Course", _COURSE))),
    Dashboard("cost", (("Money", _MONEY), ("What is paid for", _BOUGHT))),
    Dashboard("reward_server", (("Answers", _SERVED_ANSWERS), ("Server", _SERVER))),
)


if __name__ == "__main__":
    TARGET.mkdir(exist_ok=True)
    for each in DASHBOARDS:
        path = TARGET / f"rlaif_{each.name}.json"
        path.write_text(document(each))
        print(f"wrote {path}", file=sys.stderr)
