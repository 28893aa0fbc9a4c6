"""SFT and reward fitting through Ray Train, and the reward pool on what they made."""

from __future__ import annotations

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
from rlaif_ray.prompts import encode_prompt
from rlaif_ray.records import Demonstration, LabelledPair, Prompt, RewardData
from rlaif_ray.reward.model import RewardNormalisation
from tests.small_models import SHAPE, WORDS, scored_rollouts

pytestmark = pytest.mark.usefixtures("local_ray")

NAMES = WORDS.split()
DEMONSTRATIONS = [Demonstration(Prompt(f"{a} {b}", f"{a} {b}"), b) for a in NAMES for b in NAMES]


def config(directory: Path, **policy: Any) -> RunConfig:
    fit = {"batch_size": 20, "micro_batch_size": 8, "resources": {"cpus": 0.5}}
    return RunConfig.model_validate(
        {
            "run_dir": directory,
            "prompts": {"path": "p.jsonl"},
            "policy": {"scratch": SHAPE.model_dump(), "max_prompt_tokens": 16, "max_answer_tokens": 8} | policy,
            "judge": {"model": "j"},
            "sft": fit | {"demonstrations": "d.jsonl", "epochs": 20, "learning_rate": 1e-2, "workers": 2},
            "reward": fit | {"epochs": 24, "learning_rate": 1e-2, "actors": {"cpus": 0.5, "count": 2}},
        }
    )


async def test_sft_then_reward_model_then_reward_pool(tmp_path: Path) -> None:
    settings = config(tmp_path)
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

    pool = RewardPool(reward, settings.policy, settings.reward)
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
