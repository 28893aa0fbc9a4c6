from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlaif_ray.config import FitConfig
from rlaif_ray.engines.training import OptimizerSettings
from rlaif_ray.metrics import ACCURACY, LOSS
from rlaif_ray.records import LabelledPair
from rlaif_ray.reward.comparisons import comparison_groups
from rlaif_ray.reward.losses import PairObjective
from rlaif_ray.reward.model import load_reward_model
from rlaif_ray.reward.training import EarlyStopping, training_steps
from tests.plain_engine import PlainEngine
from tests.small_models import write_models

OBJECTIVE = PairObjective(label_smoothing=0.1, margin=0.5, centring=0.2, magnitude=0.1)


class OneOfSeveral(PlainEngine):
    """One rank, alone: it keeps the gradient of its share and does not take the step."""

    def __init__(self, model: Any, rank: int, world_size: int) -> None:
        super().__init__(model, OptimizerSettings(1e-3, 1.0, 0, "float32"))
        self.rank, self.world_size = rank, world_size
        self.gradient = torch.zeros(())

    def step(self) -> float:
        self.gradient = torch.cat([p.grad.flatten() for p in self.module.parameters() if p.grad is not None])
        return 0.0


def pairs_of_three_prompts() -> list[LabelledPair]:
    """Three, two and one pairs, over answers of 1 to 8 tokens."""
    random = np.random.default_rng(0)
    answers = [tuple(random.integers(5, 15, random.integers(1, 9)).tolist()) for _ in range(3)]
    sides = [(0, 1), (1, 2), (0, 2)]
    return [
        LabelledPair(
            f"{prompt}{row}", str(prompt), (3, 5 + prompt), answers[a], answers[b], 0.2 + 0.3 * row, 1.0 + prompt
        )
        for prompt, count in enumerate((3, 2, 1))
        for row, (a, b) in enumerate(sides[:count])
    ]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))[1]


def one_step(directory: Path, *, by_prompt: bool, micro: int, ranks: int) -> tuple[float, float, Tensor]:
    """Loss, accuracy and gradient, summed over the ranks."""
    groups = comparison_groups(pairs_of_three_prompts(), by_prompt=by_prompt)
    parts = []
    for rank in range(ranks):
        model = load_reward_model(directory, dtype="float64", trust_remote_code=False)
        engine = OneOfSeveral(model, rank, ranks)
        settings = FitConfig(batch_size=len(groups), micro_batch_size=micro)
        [values] = training_steps(engine, groups, settings, OBJECTIVE, 1, seed=0)
        parts.append((values[LOSS], values[ACCURACY], engine.gradient))
    losses, accuracies, gradients = zip(*parts, strict=True)
    return sum(losses), sum(accuracies), torch.stack(gradients).sum(0)


@pytest.mark.parametrize("by_prompt", [False, True])
def test_ranks_and_micro_batches_change_nothing(by_prompt: bool, directory: Path) -> None:
    """Of six pairs, or three prompts, four ranks are short of two rows, or of one."""
    loss, accuracy, gradient = one_step(directory, by_prompt=by_prompt, micro=64, ranks=1)
    for micro, ranks in ((1, 1), (2, 1), (64, 4), (1, 4), (1, 2)):
        again = one_step(directory, by_prompt=by_prompt, micro=micro, ranks=ranks)
        assert again[:2] == pytest.approx((loss, accuracy), rel=1e-6)
        torch.testing.assert_close(again[2], gradient, rtol=1e-9, atol=1e-12)


def test_the_pairs_of_a_prompt_weigh_together_as_one(directory: Path) -> None:
    """Six pairs: the mean of six losses. By prompt: the mean of three prompts' means, which for three pairs, two and
    one weighs them 1/9, 1/6 and 1/3. Accuracy is a share of pairs either way."""
    model = load_reward_model(directory, dtype="float64", trust_remote_code=False)
    losses, alike = [], []
    for pair in pairs_of_three_prompts():
        with torch.no_grad():
            a, b = (
                model(torch.tensor([(*pair.prompt, *answer)])).logits[0] for answer in (pair.answer_a, pair.answer_b)
            )
        losses.append(OBJECTIVE(a, b, torch.tensor([pair.p]), torch.tensor([pair.weight])).item())
        alike.append(float((a > b).item() == (pair.p > 0.5)) if pair.p != 0.5 else 0.0)
    shares = np.array([1 / 9] * 3 + [1 / 6] * 2 + [1 / 3])
    by_pair = one_step(directory, by_prompt=False, micro=64, ranks=1)
    by_prompt = one_step(directory, by_prompt=True, micro=64, ranks=1)
    assert by_pair[:2] == pytest.approx((np.mean(losses), np.mean(alike)), rel=1e-6)
    assert by_prompt[:2] == pytest.approx((shares @ losses, np.mean(alike)), rel=1e-6)


@given(st.lists(st.floats(0, 9), min_size=1, max_size=20), st.integers(1, 4))
def test_it_stops_after_so_many_measurements_without_a_better_one(losses: list[float], patience: int) -> None:
    stopping = EarlyStopping(patience)
    seen: list[float] = []
    for loss in losses:
        assert not stopping.exhausted
        assert stopping.observe(loss) == (not seen or loss < min(seen))
        seen.append(loss)
        best_at = seen.index(min(seen))
        assert stopping.exhausted == (len(seen) - 1 - best_at >= patience)
        if stopping.exhausted:
            return


def test_without_patience_there_is_always_another() -> None:
    stopping = EarlyStopping(None)
    assert [stopping.observe(loss) for loss in (1.0, 2.0, 3.0, 0.5)] == [True, False, False, True]
    assert not stopping.exhausted
