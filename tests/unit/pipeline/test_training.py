"""Evaluation while the policy is trained: which policy a round leaves, after whatever interruption."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from plain_runtime import VALIDATED, Crash, Faults, PlainRuntime, only_round, plain_context

from rlaif_ray.config import Stopped
from rlaif_ray.evaluation.validation import ValidatedPolicies, Validation
from rlaif_ray.metrics import COMPARED, VALIDATION, WIN_RATE, MetricsLog
from rlaif_ray.pipeline.steps import Trained
from rlaif_ray.pipeline.training import train
from rlaif_ray.records import Outcome
from rlaif_ray.rundir import RunDirectory

# Best after the fourth of seven iterations; of those that are evaluated, the last is the worst.
WINS = (0.2, 0.6, 1.0, 0.9, 0.3, 0.5, 0.1)


@dataclass(frozen=True)
class Left:
    """What training leaves in a run directory."""

    policy: float
    last: float | None
    validations: tuple[Validation, ...]
    curve: dict[int, float]


def left(run_dir: Path) -> Left:
    directory = RunDirectory(run_dir)
    last = directory.model("last") / "weights"
    rows = MetricsLog(directory.metrics).read()
    return Left(
        policy=float((directory.model("policy") / "weights").read_text()),
        last=float(last.read_text()) if last.exists() else None,
        validations=ValidatedPolicies(directory.checkpoints("best")).validations(),
        curve={row.step: row.values[WIN_RATE] for row in rows if row.stage == VALIDATION},
    )


async def trained(runtime: PlainRuntime, *, evaluate_every: int | None = 2) -> Trained:
    context = plain_context(runtime, evaluate_every=evaluate_every)
    return await train(context, only_round(context))


async def test_the_best_policy_is_taken_where_the_last_is_worse(tmp_path: Path) -> None:
    """Iterations 2, 4, 6 and the last, 7, are evaluated: they win 0.6, 0.9, 0.5 and 0.1. The third, which would have
    won all, is not."""
    runtime = PlainRuntime(tmp_path, WINS)
    done = await trained(runtime)
    found = left(tmp_path)
    assert found.curve == {2: 0.6, 4: 0.9, 6: 0.5, 7: 0.1}
    assert (found.policy, found.last) == (0.9, 0.1)
    assert done.validation is not None
    assert (done.validation.iteration, done.validation.win_rate, done.validation.prompts) == (4, 0.9, VALIDATED)
    low, high = done.validation.win_rate_ci or (0, 0)
    assert low < 0.9 <= high
    # Only the best is kept whole.
    assert [path.name for path in RunDirectory(tmp_path).checkpoints("best").glob("iteration-*")] == [
        "iteration-0000004"
    ]


async def test_of_equals_the_earliest_is_taken(tmp_path: Path) -> None:
    done = await trained(PlainRuntime(tmp_path, (0.1, 0.7, 0.1, 0.7, 0.1, 0.7)))
    assert done.validation is not None
    assert done.validation.iteration == 2


async def test_without_evaluations_the_last_policy_is_the_policy(tmp_path: Path) -> None:
    done = await trained(PlainRuntime(tmp_path, WINS), evaluate_every=None)
    found = left(tmp_path)
    assert (found.policy, found.last, found.curve, done.validation) == (0.1, None, {}, None)


async def test_where_nobody_can_say_who_won_the_last_policy_is_taken(tmp_path: Path) -> None:
    done = await trained(PlainRuntime(tmp_path, WINS, judged=Outcome.FAILED))
    assert done.validation is None
    assert left(tmp_path).policy == 0.1
    rows = [row for row in MetricsLog(tmp_path / "metrics.jsonl").read() if row.stage == VALIDATION]
    assert [row.values[COMPARED] for row in rows] == [0, 0, 0, 0]
    assert all(row.values[WIN_RATE] != row.values[WIN_RATE] for row in rows), "a failure is no number"


async def test_training_draws_the_same_with_evaluations_and_without(tmp_path: Path) -> None:
    requests = []
    for name, every in (("with", 1), ("without", None)):
        runtime = PlainRuntime(tmp_path / name, WINS)
        await trained(runtime, evaluate_every=every)
        requests.append([one for one in runtime.drawn if one.sample_id.startswith("ppo-")])
        seeds = {one.seed for one in runtime.drawn}
        assert len(seeds) == len(runtime.drawn), "every answer has a seed of its own"
    assert requests[0] == requests[1]


@pytest.mark.parametrize(
    ("staleness", "order"),
    [
        (0, ["draw ppo-0", "step 0", "draw ppo-1", "step 1", "draw validate-2", "draw ppo-2", "step 2"]),
        (1, ["draw ppo-0", "draw ppo-1", "step 0", "draw ppo-2", "step 1", "draw validate-2", "step 2"]),
    ],
)
async def test_batches_are_drawn_as_far_ahead_as_the_config_says(
    tmp_path: Path, staleness: int, order: list[str]
) -> None:
    """SFT answers at the first evaluation; evaluations see the newest weights however far rollouts are ahead."""
    runtime = PlainRuntime(tmp_path, (0.2, 0.6, 0.4))
    context = plain_context(runtime, evaluate_every=2, max_staleness=staleness)
    done = await train(context, only_round(context))
    assert [event for event in runtime.order if event != "draw validate-sft"] == [*order, "draw validate-3"]
    assert runtime.order.count("draw validate-sft") == 1
    assert done.validation is not None
    assert (done.validation.iteration, done.validation.win_rate) == (2, 0.6)


async def test_a_run_killed_at_any_moment_leaves_what_an_undisturbed_one_does(tmp_path: Path) -> None:
    """A crash at every call of every stage in turn, before and after what it writes: the run that goes on takes no
    evaluation twice, loses none, and takes the same policy."""
    counting = Faults()
    await trained(PlainRuntime(tmp_path / "undisturbed", WINS, counting))
    undisturbed = left(tmp_path / "undisturbed")
    for at in range(1, counting.count + 1):
        run_dir = tmp_path / str(at)
        killed, resumed = PlainRuntime(run_dir, WINS, Faults(at)), PlainRuntime(run_dir, WINS)
        with pytest.raises(Crash):
            await trained(killed)
        known = ValidatedPolicies(RunDirectory(run_dir).checkpoints("best")).validations()
        await trained(resumed)
        assert left(run_dir) == undisturbed, f"killed at call {at}"
        repeated = {f"validate-{one.iteration}" for one in known} & set(resumed.asked)
        assert not repeated, f"killed at call {at}"


class Interrupted(Faults):
    """At the call of this number the task is cancelled, as Ctrl-C does."""

    task: asyncio.Task[Any]

    def pass_by(self) -> None:
        self.count += 1
        if self.count == self.at:
            self.task.cancel()


@pytest.mark.parametrize("staleness", [0, 1])
async def test_an_interrupted_run_ends_with_the_iteration_under_way_and_loses_nothing(
    tmp_path: Path, staleness: int
) -> None:
    """At each of the learner's calls in turn, with checkpoints far apart. A PlainLearner that goes on refuses an
    iteration that is taken twice or left out."""
    counting = Faults()
    undisturbed = PlainRuntime(tmp_path / "undisturbed", WINS, counting)
    await _train_with(undisturbed, staleness)
    for at in range(1, counting.count - 1):  # the last two calls write the policy of a training that is over
        run_dir = tmp_path / str(at)
        interruption = Interrupted(at)
        interruption.task = asyncio.ensure_future(_train_with(PlainRuntime(run_dir, WINS, interruption), staleness))
        with pytest.raises(asyncio.CancelledError):
            await interruption.task
        file = run_dir / "metrics.jsonl"
        kept = [json.loads(line)["step"] for line in file.read_text().splitlines()]
        resumed = await _train_with(PlainRuntime(run_dir, WINS), staleness)
        assert resumed.resumed_from == len(kept) - 1, "what was told of is kept"
        assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == list(range(1, len(WINS) + 1))


async def _train_with(runtime: PlainRuntime, staleness: int) -> Trained:
    context = plain_context(runtime, evaluate_every=None, checkpoint_every=100, max_staleness=staleness)
    return await train(context, only_round(context))


async def test_an_evaluation_that_a_budget_stopped_is_taken_by_the_run_that_goes_on(tmp_path: Path) -> None:
    """The iteration is checkpointed, so that the run goes on after it: its evaluation is still owed."""
    with pytest.raises(Stopped, match=r"not judged .* larger evaluation\.judge\.budget_usd"):
        await trained(PlainRuntime(tmp_path, WINS, judged=Outcome.OVER_BUDGET))
    assert not ValidatedPolicies(RunDirectory(tmp_path).checkpoints("best")).validations()
    done = await trained(PlainRuntime(tmp_path, WINS))
    assert done.resumed_from == 1, "the second iteration is kept"
    assert left(tmp_path).curve == {2: 0.6, 4: 0.9, 6: 0.5, 7: 0.1}
