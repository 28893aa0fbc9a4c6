from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig, BloomForCausalLM

from rlaif_ray.config import FitConfig, RunConfig, UserError
from rlaif_ray.engines.training import OptimizerSettings, Schedule
from rlaif_ray.fitting import bucketed_batches, optimizer_steps
from rlaif_ray.metrics import LOSS
from rlaif_ray.policy.packing import Ragged
from rlaif_ray.prompts import encode_prompt
from rlaif_ray.records import Demonstration, Prompt
from rlaif_ray.sft import fit_sft, train_on_answers
from rlaif_ray.weights import fingerprint_of, read_weights
from tests.plain_engine import PlainEngine
from tests.small_models import SHAPE, policy_and_tokenizer, write_models

# The answer is the prompt's second word.
DEMONSTRATIONS = [Demonstration(Prompt(f"{a}{b}", f"{a} {b}"), b) for a in "abcdefgh" for b in "abcdefgh"]


def config(directory: Path, policy: dict[str, Any], **sft: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run_dir": directory,
            "prompts": {"path": "p.jsonl"},
            "policy": policy,
            "judge": {"model": "j"},
            "sft": {"demonstrations": "d.jsonl", "epochs": 30, "batch_size": 16, "learning_rate": 1e-2} | sft,
        }
    )


def test_the_policy_learns_the_answers(tmp_path: Path) -> None:
    losses: list[float] = []
    scratch = {"scratch": SHAPE.model_dump(), "max_prompt_tokens": 8, "max_answer_tokens": 4}
    result = fit_sft(
        config(tmp_path, scratch),
        DEMONSTRATIONS,
        tmp_path / "sft",
        PlainEngine,
        lambda step, total, values: losses.append(values[LOSS]),
    )
    assert result.steps == len(losses) == 120
    assert result.loss == losses[-1] < 0.1 * losses[0]
    model, tokenizer = (kind.from_pretrained(tmp_path / "sft") for kind in (AutoModelForCausalLM, AutoTokenizer))
    prompt = torch.tensor([encode_prompt(tokenizer, Prompt("x", "c f"))])
    answer = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=4)
    assert tokenizer.decode(answer[0, prompt.shape[1] :], skip_special_tokens=True) == "f"
    assert answer[0, -1] == tokenizer.eos_token_id


def test_without_demonstrations_the_model_is_taken_as_it_is(tmp_path: Path) -> None:
    given, _ = write_models(tmp_path)
    policy = {"model": str(given), "max_prompt_tokens": 16, "max_answer_tokens": 8}
    result = fit_sft(config(tmp_path, policy), [], tmp_path / "out", PlainEngine, lambda *_: None)
    assert (result.steps, result.loss) == (0, None)
    assert fingerprint_of(read_weights(tmp_path / "out")) == fingerprint_of(read_weights(given))


def test_demonstrations_beyond_the_limits_are_counted_or_refused(tmp_path: Path) -> None:
    scratch = {"scratch": SHAPE.model_dump(), "max_prompt_tokens": 4, "max_answer_tokens": 4}
    long = Demonstration(Prompt("long", "a b c"), "a")
    only = config(tmp_path, scratch, epochs=1)
    kept = fit_sft(only, [*DEMONSTRATIONS, long], tmp_path / "out", PlainEngine, lambda *_: None)
    assert kept.left_out == 1
    with pytest.raises(UserError, match="max_prompt_tokens=4"):
        fit_sft(only, [long], tmp_path / "none", PlainEngine, lambda *_: None)
    assert not (tmp_path / "none").exists()


def test_a_model_that_cannot_be_packed_is_refused(tmp_path: Path) -> None:
    """Bloom's attention is its own, and would see from one sequence into the next."""
    shape = {"hidden_size": 16, "n_layer": 1, "n_head": 2, "vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2}
    BloomForCausalLM(BloomConfig(**shape)).save_pretrained(tmp_path / "bloom")
    with pytest.raises(UserError, match=r"policy\.model=.*bloom: cannot be used .*packed.*; name another"):
        fit_sft(
            config(tmp_path, {"model": str(tmp_path / "bloom")}), [], tmp_path / "out", PlainEngine, lambda *_: None
        )


def test_the_loss_is_that_of_answer_tokens_alone() -> None:
    """One step's loss, re-derived: mean of -log p over both answers' tokens, whatever the prompts."""
    policy, _ = policy_and_tokenizer()
    examples = [([1, 5, 6, 4], [7, 2]), ([1, 8, 4], [9, 10, 2])]
    expected = []
    with torch.no_grad():
        for prompt, answer in examples:
            logprobs = policy(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            expected += [-logprobs[len(prompt) - 1 + t, token].item() for t, token in enumerate(answer)]
    sequences = Ragged.of(*([np.array(example[side]) for example in examples] for side in (0, 1)))
    engine = PlainEngine(policy, OptimizerSettings(1e-3, 1.0, 0, "float32"))
    loss = train_on_answers(
        engine, sequences, FitConfig(batch_size=2, micro_batch_size=1), 1, seed=0, on_step=lambda *_: None
    )
    assert loss == pytest.approx(np.mean(expected), rel=1e-4)


def test_batches_cover_every_pass_once_with_like_lengths_together() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 95)
    batches = list(bucketed_batches(lengths, 10, steps=20, seed=3))
    for epoch in (batches[:10], batches[10:]):
        assert sorted(np.concatenate(epoch)) == list(range(95))
        spread = np.mean([np.ptp(lengths[batch]) for batch in epoch])
        assert spread < 20
    assert [b.tolist() for b in batches[:10]] != [b.tolist() for b in batches[10:]]
    assert optimizer_steps(FitConfig(epochs=1.5, batch_size=10), 95) == 15


def test_the_learning_rate_rises_then_falls_and_is_never_zero() -> None:
    """Two steps of warm-up, ten in all: 1/3, 2/3, 8/8, 7/8 ... 1/8."""
    shares = [Schedule(total=10, warmup=2).share(step) for step in range(10)]
    assert shares == pytest.approx([1 / 3, 2 / 3, *(n / 8 for n in range(8, 0, -1))])
