"""The pool over local labelers: the packaged toy judge in vLLM, on one core."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from small_chat_model import write_chat_model

from actors.judge import AnswerToScore, start_judges
from rlaif_ray.config import JudgeConfig
from rlaif_ray.judge.templates import load_template
from rlaif_ray.records import Order, Outcome, Pair, Prompt
from rlaif_ray.toyworld import headlines
from rlaif_ray.toyworld.models import model_path

CONFIG = JudgeConfig.model_validate(
    {"model": "toyworld:judge", "template": "headlines", "actors": {"min": 1, "max": 1, "cpus": 0.5}}
)


def pairs(count: int) -> list[Pair]:
    rng = np.random.default_rng(0)
    return [
        Pair(
            f"pair-{number}",
            prompt,
            headlines.hurried_answer(prompt, rng),
            headlines.hurried_answer(prompt, rng),
        )
        for number, prompt in enumerate(headlines.prompts(count, seed=1))
    ]


def exact_p_first(pair: Pair, order: Order) -> float:
    """The same model, asked by plain transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = model_path("toyworld:judge")
    tokenizer = AutoTokenizer.from_pretrained(path)
    messages = load_template("headlines").question(pair, order).choose()
    text = tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in messages],
        tokenize=False,
        add_generation_prompt=True,
    )
    tokens = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(path)(tokens).logits[0, -1]
    first, second = (float(logits[tokenizer.convert_tokens_to_ids(label)]) for label in ("1", "2"))
    return 1 / (1 + math.exp(second - first))


async def test_labels_are_the_models_own_and_a_second_run_loads_no_model(tmp_path: Path) -> None:
    asked = pairs(300)
    unfit = Pair("unfit", asked[0].prompt, "storm " * 300, "vote")
    judges = await start_judges(CONFIG, seed=0, run="run", ledger_path=tmp_path / "ledger.sqlite")
    *preferences, failed = await judges.label([*asked, unfit], "collect")
    await judges.stop()
    assert failed.outcome is Outcome.FAILED, "alone"
    assert "more than the 255 that fit" in failed.reason
    assert {preference.outcome for preference in preferences} == {Outcome.SCORED}
    for preference in preferences[:3]:
        for judgement in preference.judgements:
            expected = exact_p_first(preference.pair, judgement.order)
            assert judgement.p_first == pytest.approx(expected, abs=1e-4)
            assert judgement.cost_usd is None

    again = await start_judges(
        CONFIG.model_copy(update={"actors": CONFIG.actors.model_copy(update={"min": 0})}),
        seed=0,
        run="run",
        ledger_path=tmp_path / "ledger.sqlite",
    )
    repeated = await again.label(asked, "collect")
    progress = await again.progress()
    await again.stop()
    assert [preference.p for preference in repeated] == [preference.p for preference in preferences]
    assert (progress.calls, progress.cached, progress.actors) == (0, 600, 0)


@pytest.mark.parametrize(("template", "mode"), [("quality-cot", "reasoned"), ("quality", "stated")])
async def test_a_local_labeler_reasons_and_states(tmp_path: Path, template: str, mode: str) -> None:
    """Whatever a model of random weights says, each pair is scored or abstained from, and says why."""
    config = JudgeConfig.model_validate(
        {
            "model": str(write_chat_model(tmp_path / "model")),
            "template": template,
            # A template that reasons makes it so.
            "mode": "auto" if mode == "reasoned" else mode,
            "rationale_tokens": 16,
            "actors": {"min": 1, "max": 1, "cpus": 0.5},
        }
    )
    asked = [Pair(f"pair-{number}", Prompt("prompt", f"Say {number}."), "One. " * number, "Two!") for number in (1, 2)]
    judges = await start_judges(config, seed=0, run="run", ledger_path=tmp_path / "ledger.sqlite")
    preferences = await judges.label(asked, "collect")
    (score,) = await judges.score([AnswerToScore("answer", asked[0].prompt, "One.")], "reward")
    await judges.stop()
    for preference in preferences:
        assert preference.outcome in (Outcome.SCORED, Outcome.ABSTAINED), preference.reason
        assert (preference.p is None) == (preference.outcome is Outcome.ABSTAINED) == bool(preference.reason)
        assert {one.mode for one in preference.judgements} == {mode}
        assert all(one.cost_usd is None and one.completion_tokens > 0 for one in preference.judgements)
        if mode == "reasoned":
            # The model likes to say a label, so the choice after its reasoning is scored.
            assert preference.outcome is Outcome.SCORED
            assert all(one.rationale and len(one.ledger_keys) > 1 for one in preference.judgements)
    assert score.outcome in (Outcome.SCORED, Outcome.ABSTAINED), score.reason
