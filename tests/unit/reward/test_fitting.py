from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlaif_ray.config import RunConfig, UserError
from rlaif_ray.metrics import HELD_OUT_ACCURACY, HELD_OUT_LOSS
from rlaif_ray.records import LabelledPair, RewardData, RewardFit
from rlaif_ray.reward.fitting import fit_reward, read_fit
from rlaif_ray.reward.model import RewardNormalisation, load_reward_model
from rlaif_ray.reward.scoring import score_sequences
from tests.plain_engine import PlainEngine
from tests.small_models import write_models


def config(directory: Path, **reward: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run_dir": directory,
            "prompts": {"path": "p.jsonl"},
            "policy": {"model": "m"},
            "judge": {"model": "j"},
            "reward": {"epochs": 3, "batch_size": 16, "micro_batch_size": 16, "learning_rate": 3e-3} | reward,
        }
    )


def pairs(count: int, seed: int) -> list[LabelledPair]:
    """The answer with more of token 5 is better, nine times in ten."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        prompt, a, b = (tuple(random.integers(5, 12, size).tolist()) for size in (3, 4, 4))
        p = 0.9 if a.count(5) > b.count(5) else 0.1 if a.count(5) < b.count(5) else 0.5
        made.append(LabelledPair(f"{seed}-{number:04}", f"{number}", prompt, a, b, p))
    return made


HELD_OUT = pairs(60, seed=9)
ANSWERS = tuple((*pair.prompt, *pair.answer_a) for pair in pairs(80, seed=5))


def fit(
    directory: Path,
    train: list[LabelledPair],
    seen: list[Mapping[str, float]],
    totals: list[tuple[int, int]] | None = None,
    **reward: Any,
) -> RewardFit:
    """What it says of its steps goes to `seen`, and their numbers of how many to `totals`."""

    def on_step(step: int, total: int, values: Mapping[str, float]) -> None:
        seen.append(values)
        if totals is not None:
            totals.append((step, total))

    sft, _ = write_models(directory / "models")
    settings = config(directory, **reward)
    return fit_reward(
        settings,
        settings.reward,
        RewardData(tuple(train), tuple(HELD_OUT), (), ANSWERS),
        sft,
        directory / "fitted",
        seed=settings.seed,
        start_engine=PlainEngine,
        on_step=on_step,
    )


def test_a_fitted_model_ranks_unseen_pairs_and_knows_its_own_scale(tmp_path: Path) -> None:
    seen: list[Mapping[str, float]] = []
    result = fit(tmp_path, pairs(400, seed=1), seen)
    assert result.steps == 75
    assert result.held_out_accuracy is not None
    assert result.held_out_accuracy > 0.85
    assert seen[-1][HELD_OUT_ACCURACY] == result.held_out_accuracy
    assert len(result.held_out_margins) == 60
    model = load_reward_model(tmp_path / "fitted", dtype="float32", trust_remote_code=False)
    assert (model.config.num_labels, model.config.problem_type, model.config.pad_token_id) == (1, "regression", 0)
    answers = [(*pair.prompt, *pair.answer_a) for pair in pairs(80, seed=5)]
    values, _ = score_sequences(model, [str(i) for i in range(80)], answers, max_batch_tokens=512)
    normalisation = RewardNormalisation.load(tmp_path / "fitted")
    assert (values.mean(), values.std()) == pytest.approx((normalisation.mean, normalisation.std), rel=1e-4)


def test_order_of_the_pairs_and_micro_batches_change_nothing(tmp_path: Path) -> None:
    train = pairs(50, seed=1)
    one = fit(tmp_path / "one", train, [])
    two = fit(tmp_path / "two", train[::-1], [], micro_batch_size=5)
    assert two.loss == pytest.approx(one.loss, rel=1e-3)
    np.testing.assert_allclose(one.held_out_margins, two.held_out_margins, atol=1e-3)


def test_by_prompt_it_learns_as_well(tmp_path: Path) -> None:
    """Eight pairs a prompt, over as many prompts to a step as there were pairs."""
    train = [replace(pair, prompt_id=pair.id[:-1]) for pair in pairs(400, seed=1)]
    result = fit(tmp_path, train, [], by_prompt=True, batch_size=4, micro_batch_size=2, epochs=6)
    assert result.steps == 60
    assert result.held_out_accuracy is not None
    assert result.held_out_accuracy > 0.85


def test_the_weights_that_did_best_on_held_out_pairs_are_kept(tmp_path: Path) -> None:
    """Labels that are the wrong way round make it worse, step by step; model and figures are those of the best one."""
    seen: list[Mapping[str, float]] = []
    train = [replace(pair, p=1 - pair.p) for pair in pairs(40, seed=1)]
    result = fit(tmp_path, train, seen, epochs=12, learning_rate=1e-2, evaluate_every=4)
    curve = {step: values[HELD_OUT_LOSS] for step, values in enumerate(seen, start=1) if HELD_OUT_LOSS in values}
    assert sorted(curve) == [*range(4, 37, 4)]
    assert result.steps == 36
    assert result.held_out_loss == min(curve.values()) == curve[result.best_step]
    assert result.best_step < 36
    model = load_reward_model(tmp_path / "fitted", dtype="float32", trust_remote_code=False)
    held_out = sorted(HELD_OUT, key=lambda pair: pair.id)
    assert result.held_out_ids == tuple(pair.id for pair in held_out)
    sides = [(*pair.prompt, *answer) for pair in held_out for answer in (pair.answer_a, pair.answer_b)]
    values, _ = score_sequences(model, [f"{row:03}" for row in range(120)], sides, max_batch_tokens=512)
    np.testing.assert_allclose(values[::2] - values[1::2], result.held_out_margins, atol=1e-4)


def test_it_stops_when_patience_ends_and_says_so(tmp_path: Path) -> None:
    totals: list[tuple[int, int]] = []
    result = fit(tmp_path, pairs(40, seed=1), [], totals, epochs=40, learning_rate=0.1, evaluate_every=2, patience=3)
    assert result.steps == result.best_step + 3 * 2 < 120
    assert totals == [(step, 120) for step in range(1, result.steps)] + [(result.steps, result.steps)]


def test_how_it_was_fitted_lies_beside_the_model(tmp_path: Path) -> None:
    assert read_fit(tmp_path / "fitted") is None
    assert fit(tmp_path, pairs(40, seed=1), []) == read_fit(tmp_path / "fitted")


def test_it_goes_on_from_a_reward_model(tmp_path: Path) -> None:
    """As after pretraining: at a rate of nearly nothing the second fit is the first."""
    before = fit(tmp_path, pairs(200, seed=1), [])
    settings = config(tmp_path, learning_rate=1e-12)
    after = fit_reward(
        settings,
        settings.reward,
        RewardData(tuple(pairs(20, seed=2)), tuple(HELD_OUT), (), ANSWERS),
        tmp_path / "fitted",
        tmp_path / "again",
        seed=1,
        start_engine=PlainEngine,
        on_step=lambda step, total, values: None,
    )
    np.testing.assert_allclose(after.held_out_margins, before.held_out_margins, atol=1e-5)


def test_an_answer_beyond_the_models_positions_is_the_users_to_mend(tmp_path: Path) -> None:
    """The model has 32 positions."""
    long = LabelledPair("long", "long", (5,) * 30, (6, 7, 8), (9,), 1.0)
    with pytest.raises(UserError, match=r"33 tokens.*takes 32.*policy\.max_prompt_tokens"):
        fit(tmp_path, [long], [])


def test_no_pairs_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to fit"):
        fit(tmp_path, [], [])
