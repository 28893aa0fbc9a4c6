"""SFT and reward fitting through Ray Train, and the reward pool on what they made."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from actors.reward import RewardPool
from actors.trainer import fit_reward, fit_sft
from rlaif_ray.config import RunConfig, UserError
from rlaif_ray.metrics import ACCURACY, HELD_OUT_ACCURACY, LOSS, MetricsLog
from rlaif_ray.policy.model import PAD
from rlaif_ray.prompts import encode_prompt
from rlaif_ray.records import Demonstration, LabelledPair, Prompt, RewardData
from rlaif_ray.reward.model import RewardNormalisation, load_reward_model, members
from rlaif_ray.reward.scoring import score_sequences
from rlaif_ray.weights import read_weights
from tests.small_models import SHAPE, WORDS, scored_rollouts, write_models

pytestmark = pytest.mark.usefixtures("local_ray")

NAMES = WORDS.split()
DEMONSTRATIONS = [Demonstration(Prompt(f"{a} {b}", f"{a} {b}"), b) for a in NAMES for b in NAMES]


FIT = {"batch_size": 20, "micro_batch_size": 8, "resources": {"cpus": 0.5}}


def config(directory: Path, reward: Any = None, *, workers: int = 1, **policy: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run_dir": directory,
            "prompts": {"path": "p.jsonl"},
            "policy": {"scratch": SHAPE.model_dump(), "max_prompt_tokens": 16, "max_answer_tokens": 8} | policy,
            "judge": {"model": "j"},
            "sft": FIT | {"demonstrations": "d.jsonl", "epochs": 20, "learning_rate": 1e-2, "workers": workers},
            "reward": FIT | {"epochs": 24, "learning_rate": 1e-2, "actors": {"cpus": 0.5, "count": 2}} | (reward or {}),
        }
    )


async def test_sft_then_reward_model_then_reward_pool(tmp_path: Path) -> None:
    settings = config(tmp_path, workers=2)
    paths = {"checkpoints": tmp_path / "checkpoints", "metrics": tmp_path / "metrics.jsonl"}
    sft, reward = tmp_path / "models" / "sft", tmp_path / "models" / "reward"
    trained = await fit_sft(settings, DEMONSTRATIONS, sft, **paths)
    assert trained.steps == 100
    losses = [row.values[LOSS] for row in MetricsLog(paths["metrics"]).read()]
    assert len(losses) == 100
    assert trained.loss == losses[-1] < 0.5 * losses[0]
    AutoModelForCausalLM.from_pretrained(sft)

    tokenizer = AutoTokenizer.from_pretrained(sft)
    ids = {name: tokenizer(name, add_special_tokens=False)["input_ids"][0] for name in NAMES}
    # Of two answers the one that repeats the prompt's second word is better.
    pairs = [
        LabelledPair(
            f"{a} {b}",
            f"{a} {b}",
            tuple(encode_prompt(tokenizer, Prompt("", f"{a} {b}"))),
            (ids[b], tokenizer.eos_token_id),
            (ids[a], tokenizer.eos_token_id),
            0.95,
        )
        for a in NAMES
        for b in NAMES
        if a != b
    ]
    answers = [(*pair.prompt, *pair.answer_a) for pair in pairs] + [(*pair.prompt, *pair.answer_b) for pair in pairs]
    data = RewardData(tuple(pairs[10:]), tuple(pairs[:10]), (), tuple(answers))
    [fitted] = await fit_reward(settings, data, start=sft, directory=reward, **paths)
    assert len(fitted.held_out_margins) == 10
    last = MetricsLog(paths["metrics"]).read()[-1].values
    assert last[ACCURACY] > 0.75
    assert last[HELD_OUT_ACCURACY] == fitted.held_out_accuracy
    normalisation = RewardNormalisation.load(reward)
    assert normalisation.count == len(answers)

    pool = RewardPool(reward, settings, sft, [])
    try:
        shards = [scored_rollouts(rows, seed=rows)[0] for rows in (5, 7, 3)]
        references = tuple(ray.put(shard) for shard in shards)
        scores = ray.get(list(pool.score(references)))
        ray.kill(ray.get_actor("reward-0"), no_restart=False)
        again = ray.get(list(pool.score(references)))
    finally:
        pool.close()
    model = AutoModelForSequenceClassification.from_pretrained(reward)
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    for shard, before, after in zip(shards, scores, again, strict=True):
        assert before.sample_ids == shard.sample_ids
        assert before.valid.all()
        assert before.values.tolist() == after.values.tolist()
        for row in range(len(shard)):
            tokens = np.concatenate([shard.prompt(row), shard.answer(row)])[None].astype(np.int64)
            with torch.no_grad():
                logit = model(torch.tensor(tokens)).logits.item()
            assert before.values[row] == pytest.approx((logit - normalisation.mean) / normalisation.std, abs=1e-5)


def pairs_of_fives(count: int, seed: int, p: float) -> tuple[LabelledPair, ...]:
    """One answer has the token 5, the other has not."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        prompt, a, b = (tuple(random.integers(6, 15, random.integers(1, 5)).tolist()) for _ in range(3))
        made.append(LabelledPair(f"{seed}-{number:03}", f"{number}", prompt, (*a, 5), b, p))
    return tuple(made)


@pytest.mark.long
async def test_an_ensemble_is_pretrained_keeps_its_best_weights_and_goes_on(tmp_path: Path) -> None:
    """Pretrained on true labels and fitted on wrong ones, over two ranks under ZeRO-3: the first measurement is the
    best, and the weights of that step are gathered, put back and saved."""
    sft, _ = write_models(tmp_path / "models")
    pretraining = FIT | {"path": "p.jsonl", "epochs": 4, "learning_rate": 1e-2}
    fit = {"epochs": 4, "learning_rate": 3e-3, "workers": 2, "zero_stage": 3, "evaluate_every": 2, "patience": 2}
    settings = config(tmp_path, fit | {"ensemble": 2, "pretraining": pretraining})
    held_out = pairs_of_fives(12, 2, 0.9)
    answers = tuple((*pair.prompt, *answer) for pair in held_out for answer in (pair.answer_a, pair.answer_b))
    data = RewardData(pairs_of_fives(60, 0, 0.1), held_out, pairs_of_fives(200, 1, 0.9), answers)
    where = {"directory": tmp_path / "reward", "checkpoints": tmp_path / "c", "metrics": tmp_path / "metrics.jsonl"}
    fits = await fit_reward(settings, data, start=sft, **where)
    assert [(fitted.best_step, fitted.steps) for fitted in fits] == [(2, 6), (2, 6)]
    assert fits[0].held_out_margins != fits[1].held_out_margins
    for directory, fitted in zip(members(tmp_path / "reward"), fits, strict=True):
        assert fitted.held_out_accuracy == 1.0
        model = load_reward_model(directory, dtype="float32", trust_remote_code=False)
        values, _ = score_sequences(model, [f"{row:03}" for row in range(24)], answers, max_batch_tokens=256)
        assert values[::2] - values[1::2] == pytest.approx(fitted.held_out_margins, abs=1e-4)
    rows = MetricsLog(where["metrics"]).read()
    stages = {stage: [row for row in rows if row.stage == stage] for stage in dict.fromkeys(row.stage for row in rows)}
    assert list(stages) == ["pretrain-reward", "reward", "pretrain-reward-1", "reward-1"]
    assert [(row.step, row.total) for row in stages["reward"]] == [(step, 12) for step in range(1, 6)] + [(6, 6)]

    kept = (tmp_path / "reward" / "0" / "model.safetensors").stat()
    shutil.rmtree(tmp_path / "reward" / "1")
    assert await fit_reward(settings, data, start=sft, **where) == fits
    assert (tmp_path / "reward" / "0" / "model.safetensors").stat() == kept


async def test_a_given_model_without_a_pad_token_is_tuned_alike_when_it_is_divided(tmp_path: Path) -> None:
    """Its embedding grows by that token while two ranks hold half of it each."""
    given, _ = write_models(tmp_path / "models")
    tokenizer = AutoTokenizer.from_pretrained(given)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(given)
    vocabulary = given / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text().replace(PAD, "<blank>"))
    tuned = {}
    for workers, stage in ((1, 0), (2, 3)):
        into = tmp_path / f"stage{stage}"
        settings = config(tmp_path, workers=workers, scratch=None, model=str(given))
        settings = settings.model_copy(update={"sft": settings.sft.model_copy(update={"zero_stage": stage})})
        await fit_sft(settings, DEMONSTRATIONS, into, checkpoints=into / "c", metrics=into / "metrics.jsonl")
        tuned[stage] = read_weights(into)
    before = read_weights(given)
    assert any(len(tuned[0][name]) > len(weights) for name, weights in before.items())
    for name, weights in tuned[0].items():
        rows = len(before[name])  # the new token's is drawn at random, and trained by nothing
        assert np.abs(weights[:rows] - before[name]).max() > 1e-2
        np.testing.assert_allclose(tuned[3][name][:rows], weights[:rows], atol=2e-3, err_msg=name)


async def test_what_the_user_must_mend_arrives_as_such(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="max_prompt_tokens=2"):
        await fit_sft(
            config(tmp_path, max_prompt_tokens=2),
            DEMONSTRATIONS[:3],
            tmp_path / "sft",
            checkpoints=tmp_path / "checkpoints",
            metrics=tmp_path / "metrics.jsonl",
        )
    assert not (tmp_path / "sft").exists()
