import math
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlaif_ray.config import DpoConfig, RunConfig, UserError
from rlaif_ray.dpo import AnswerPairs, DpoResult, fit_dpo, train_on_pairs
from rlaif_ray.engines.training import OptimizerSettings
from rlaif_ray.metrics import ACCURACY, HELD_OUT_ACCURACY, HELD_OUT_LOSS, HELD_OUT_MARGIN, LOSS, MARGIN
from rlaif_ray.records import LabelledPair, Weights
from rlaif_ray.weights import read_weights
from tests.plain_engine import PlainEngine
from tests.small_models import policy_and_tokenizer, write_models

Values = list[Mapping[str, float]]
SETTINGS = OptimizerSettings(1e-3, 1.0, 0, "float32")


def pairs_of_fives(count: int, seed: int) -> list[LabelledPair]:
    """The better answer has the token 5. Prompts of 1 to 4 tokens, answers of 1 to 5; soft labels of some weight."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        prompt, one, other = (tuple(random.integers(6, 15, random.integers(1, 5)).tolist()) for _ in range(3))
        p, weight = random.uniform(0.6, 1.0), random.uniform(0.5, 1.5)
        made.append(LabelledPair(f"{number:03}", f"{number}", prompt, (*one, 5), other, p, weight))
    return made


def train(
    engine: PlainEngine, pairs: list[LabelledPair], held_out: list[LabelledPair], steps: int, **config: Any
) -> tuple[DpoResult, Values]:
    values: Values = []
    result = train_on_pairs(
        engine,
        AnswerPairs.of(pairs),
        AnswerPairs.of(held_out) if held_out else None,
        DpoConfig.model_validate({"batch_size": len(pairs), "micro_batch_size": 3} | config),
        steps,
        seed=0,
        on_step=lambda step, total, metrics: values.append(dict(metrics)),
    )
    return result, values


def logprob(model: Any, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    """log pi(answer | prompt), one sequence at a time."""
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([(*prompt, *answer)])).logits[0].double().log_softmax(-1)
    return sum(logprobs[len(prompt) - 1 + place, token].item() for place, token in enumerate(answer))


def test_the_policy_learns_which_answers_are_better() -> None:
    model, _ = policy_and_tokenizer()
    engine = PlainEngine(model, OptimizerSettings(1e-2, 1.0, 0, "float32"))
    result, values = train(engine, pairs_of_fives(48, 0), pairs_of_fives(24, 1), 40, batch_size=16, beta=0.5)
    assert values[0][LOSS] < 1
    assert values[-1][ACCURACY] > 0.9
    assert values[-1][MARGIN] > 0.5
    assert result.held_out_accuracy is not None
    assert result.held_out_accuracy > 0.9
    assert result.loss == values[-1][LOSS]
    # 48 pairs are three steps a pass: measured after each, and at the end.
    measured = [number for number, row in enumerate(values, start=1) if HELD_OUT_LOSS in row]
    assert measured == [*range(3, 40, 3), 40]


def test_before_the_first_step_the_policy_is_its_reference() -> None:
    """h = 0 for every pair. Sigmoid: ln 2 times the mean weight, whatever the label. IPO: ((2p - 1) / (2 beta))^2."""
    pairs = pairs_of_fives(7, 0)
    for loss, expected in (
        ("sigmoid", np.mean([pair.weight * math.log(2) for pair in pairs])),
        ("ipo", np.mean([pair.weight * ((2 * pair.p - 1) / 0.4) ** 2 for pair in pairs])),
    ):
        model, _ = policy_and_tokenizer()
        _, [values] = train(PlainEngine(model, SETTINGS), pairs, [], 1, loss=loss, beta=0.2)
        assert values[LOSS] == pytest.approx(expected, rel=1e-4)
        assert values[MARGIN] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_figures_are_those_of_plain_forwards(loss: str) -> None:
    """The third step's figures, re-derived with the weights before it, and the held-out ones with those after it; one
    pair is a tie, which enters no accuracy on held-out pairs, and is no hit in training."""
    pairs, held_out = pairs_of_fives(7, 0), pairs_of_fives(5, 1)
    pairs[2] = LabelledPair("tie", "tie", (6,), (7, 8), (9,), 0.5)
    held_out[3] = LabelledPair("tie", "tie", (6,), (7, 8), (9,), 0.5)
    reference, _ = policy_and_tokenizer()
    model, _ = policy_and_tokenizer()
    engine = SteppedEngine(model, SETTINGS)
    _, values = train(engine, pairs, held_out, 3, loss=loss, beta=0.3, label_smoothing=0.1)

    def plain(weights: Weights, rows: list[LabelledPair]) -> tuple[float, list[float]]:
        then, _ = policy_and_tokenizer()
        PlainEngine(then, SETTINGS).load_weights(weights)
        losses, leads = [], []
        for pair in rows:
            a, b = (
                logprob(then, pair.prompt, answer) - logprob(reference, pair.prompt, answer)
                for answer in (pair.answer_a, pair.answer_b)
            )
            p = 0.9 * pair.p + 0.1 * (1 - pair.p)
            if loss == "sigmoid":
                one = p * math.log1p(math.exp(-0.3 * (a - b))) + (1 - p) * math.log1p(math.exp(0.3 * (a - b)))
            else:
                one = (a / len(pair.answer_a) - b / len(pair.answer_b) - (2 * p - 1) / 0.6) ** 2
            losses.append(pair.weight * one)
            leads.append(0.0 if pair.p == 0.5 else 0.3 * (a - b))
        return float(np.mean(losses)), leads

    mean, leads = plain(engine.seen[2], pairs)
    assert values[2][LOSS] == pytest.approx(mean, rel=1e-4)
    assert values[2][ACCURACY] == pytest.approx(np.mean(np.array(leads) > 0))
    assert values[2][MARGIN] == pytest.approx(np.mean(leads), abs=1e-5)
    mean, leads = plain(engine.gather_weights(), held_out)
    decided = leads[:3] + leads[4:]
    assert values[2][HELD_OUT_LOSS] == pytest.approx(mean, rel=1e-4)
    assert values[2][HELD_OUT_ACCURACY] == pytest.approx(np.mean(np.array(decided) > 0))
    assert values[2][HELD_OUT_MARGIN] == pytest.approx(np.mean(decided), abs=1e-5)


class SteppedEngine(PlainEngine):
    """Keeps the weights before each step."""

    def __init__(self, model: Any, settings: OptimizerSettings) -> None:
        super().__init__(model, settings)
        self.seen: list[Weights] = []

    def step(self) -> float:
        self.seen.append({name: array.copy() for name, array in self.gather_weights().items()})
        return super().step()


class Group:
    """What ranks in threads of one process sum over."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size, timeout=60)
        self._parts: list[Tensor] = [torch.zeros(()) for _ in range(size)]

    def sum(self, rank: int, part: Tensor) -> Tensor:
        self._parts[rank] = part
        self._barrier.wait()
        total = torch.stack(self._parts).sum(0)
        self._barrier.wait()
        return total


class OneOfSeveral(PlainEngine):
    """A rank whose group adds up gradients before it takes the step."""

    def __init__(self, model: Any, settings: OptimizerSettings, rank: int, group: Group) -> None:
        super().__init__(model, settings)
        self.rank, self.world_size, self._group = rank, group.size, group

    def sum(self, tensor: Tensor) -> Tensor:
        return self._group.sum(self.rank, tensor)

    def step(self) -> float:
        for parameter in self.module.parameters():
            assert parameter.grad is not None
            parameter.grad = self.sum(parameter.grad)
        return super().step()


@pytest.mark.parametrize(("ranks", "micro"), [(1, 1), (1, 7), (2, 2), (3, 64)])
def test_ranks_and_micro_batches_change_nothing(ranks: int, micro: int) -> None:
    """Of seven pairs, two ranks are short of one row and three of two; four held-out pairs leave one over three."""

    def work(engine: PlainEngine, micro: int) -> tuple[Values, Weights]:
        _, values = train(
            engine, pairs_of_fives(7, 0), pairs_of_fives(4, 1), 3, batch_size=5, micro_batch_size=micro, beta=0.5
        )
        return values, engine.gather_weights()

    group = Group(ranks)
    # Models are seeded through a generator that threads share.
    models = [policy_and_tokenizer()[0].double() for _ in range(ranks + 1)]
    engines = [OneOfSeveral(model, SETTINGS, rank, group) for rank, model in enumerate(models[1:])]
    expected, weights = work(PlainEngine(models[0], SETTINGS), 64)
    with ThreadPoolExecutor(ranks) as pool:
        for values, others in pool.map(lambda engine: work(engine, micro), engines):
            for row, wanted in zip(values, expected, strict=True):
                assert row == pytest.approx(wanted, rel=1e-5, abs=1e-6)
            for name, array in weights.items():
                np.testing.assert_allclose(others[name], array, atol=1e-7)


def config(run_dir: Path, **policy: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run_dir": run_dir,
            "prompts": {"path": "p.jsonl"},
            "policy": {"model": "m", "algorithm": "dpo", **policy},
            "judge": {"model": "j"},
            "dpo": {"batch_size": 4, "epochs": 2, "learning_rate": 1e-3},
        }
    )


def fit(run_dir: Path, start: Path, pairs: list[LabelledPair], **policy: Any) -> tuple[DpoResult, Values]:
    values: Values = []
    result = fit_dpo(
        config(run_dir, **policy),
        pairs,
        [],
        start,
        run_dir / "policy",
        PlainEngine,
        lambda step, total, metrics: values.append(metrics),
    )
    return result, values


def test_what_is_trained_lies_where_it_is_asked_for(tmp_path: Path) -> None:
    """Ten pairs, of which one has equal answers and says nothing: two passes over nine, of three steps each."""
    start, _ = write_models(tmp_path / "models")
    pairs = pairs_of_fives(9, 0)
    result, values = fit(tmp_path, start, [*pairs, LabelledPair("same", "same", (6,), (7,), (7,), 0.5)])
    assert result.steps == len(values) == 6
    assert (result.held_out_loss, result.held_out_accuracy) == (None, None)
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (start, tmp_path / "policy"))
    gained = [
        logprob(after, pair.prompt, pair.answer_a)
        - logprob(before, pair.prompt, pair.answer_a)
        - logprob(after, pair.prompt, pair.answer_b)
        + logprob(before, pair.prompt, pair.answer_b)
        for pair in pairs
    ]
    assert min(gained) > 0


def test_adapters_alone_are_trained_and_merged_in(tmp_path: Path) -> None:
    """The layers that have one move, all else stays; at first adapters change nothing, so the policy is its reference:
    ln 2 times the mean weight."""
    start, _ = write_models(tmp_path / "models")
    pairs = pairs_of_fives(4, 0)
    _, values = fit(tmp_path, start, pairs, lora={"rank": 2, "targets": ["q_proj", "down_proj"]})
    assert values[0][LOSS] == pytest.approx(np.mean([pair.weight for pair in pairs]) * math.log(2), rel=1e-5)
    assert values[-1][LOSS] < values[0][LOSS]
    before, after = read_weights(start), read_weights(tmp_path / "policy")
    assert before.keys() == after.keys()
    moved = {name for name, weights in after.items() if not np.array_equal(weights, before[name])}
    assert moved == {"model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"}


def test_without_a_pair_that_says_anything_there_is_nothing_to_train_on(tmp_path: Path) -> None:
    start, _ = write_models(tmp_path / "models")
    with pytest.raises(UserError, match="nothing to train the policy on"):
        fit(tmp_path, start, [LabelledPair("same", "same", (6,), (7,), (7,), 0.5)])
    assert not (tmp_path / "policy").exists()
