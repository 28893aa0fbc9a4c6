"""The final evaluation: on prompts that chose nothing, by the judge that evaluation has of its own."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from plain_runtime import HELD_OUT, VALIDATED, PlainRuntime, only_round, plain_context

from rlaif_ray.config import EvaluationConfig, UserError
from rlaif_ray.console import Console
from rlaif_ray.pipeline.context import RunContext
from rlaif_ray.pipeline.evaluating import evaluate
from rlaif_ray.pipeline.training import train
from rlaif_ray.rundir import RunDirectory


async def test_prompts_that_chose_the_policy_do_not_measure_it(tmp_path: Path) -> None:
    runtime = PlainRuntime(tmp_path, (0.5, 1.0))
    context = plain_context(runtime, evaluate_every=1)
    await train(context, only_round(context))
    chose = {one.prompt.id for one in runtime.drawn if one.sample_id.startswith("validate")}
    done = await evaluate(context, only_round(context))
    measured = set(pq.read_table(RunDirectory(tmp_path).samples("evaluation")).column("prompt_id").to_pylist())
    assert (len(chose), len(measured)) == (VALIDATED, HELD_OUT - VALIDATED)
    assert not chose & measured
    assert (done.policy.win_rate, done.policy.prompts) == (1.0, HELD_OUT - VALIDATED)


async def test_without_evaluations_in_between_every_held_out_prompt_measures(tmp_path: Path) -> None:
    context = plain_context(PlainRuntime(tmp_path, (0.5,)))
    await train(context, only_round(context))
    assert (await evaluate(context, only_round(context))).policy.prompts == HELD_OUT


async def test_the_judge_is_named_with_its_part_in_training(tmp_path: Path) -> None:
    context = plain_context(PlainRuntime(tmp_path, (0.5,)))
    await train(context, only_round(context))
    by_an_outsider = await evaluate(context, only_round(context))
    assert by_an_outsider.policy.win_rate_judge == "outsider (a judge that did not train it)"
    evaluation = context.config.evaluation.model_copy(update={"judge": None})
    context.config = context.config.model_copy(update={"evaluation": evaluation})
    by_the_trainer = await evaluate(context, only_round(context))
    assert by_the_trainer.policy.win_rate_judge == "trainer (the judge that trained it)"


def test_gold_that_nobody_knows_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    config = plain_context(PlainRuntime(tmp_path, (0.5,))).config
    by_gold = config.model_copy(update={"evaluation": EvaluationConfig(instrument="gold")})
    with pytest.raises(UserError, match=r"evaluation\.instrument=gold: the prompts' source knows no gold"):
        RunContext(by_gold, None, Console(stages=1))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
