from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlaif_ray.config import RunConfig, UserError
from rlaif_ray.metrics import HELD_OUT_ACCURACY
from rlaif_ray.records import LabelledPair, RewardData, RewardFit
from rlaif_ray.reward.fitting import fit_reward
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


ANSWERS = tuple((*pair.prompt, *pair.answer_a) for pair in pairs(80, seed=5))


def fit(directory: Path, train: list[LabelledPair], seen: list[Mapping[str, float]], **reward: Any) -> RewardFit:
    sft, _ = write_models(directory / "models")
    settings = config(directory, **reward)
    return fit_reward(
        settings,
        settings.reward,
        RewardData(tuple(train), tuple(pairs(60, seed=9)), (), ANSWERS),
        sft,
        directory / "fitted",
        seed=settings.seed,
        start_engine=PlainEngine,
        on_step=lambda step, total, values: seen.append(values),
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


def test_no_pairs_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to fit"):
        fit(tmp_path, [], [])
