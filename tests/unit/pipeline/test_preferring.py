"""DPO's step: which preferences it hands to the trainer, and how."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from preference_records import row

from rlaif_ray.config import RunConfig, UserError
from rlaif_ray.console import Console
from rlaif_ray.pipeline.context import RunContext
from rlaif_ray.pipeline.preferring import prefer
from rlaif_ray.policy.model import load_tokenizer
from rlaif_ray.preferences.dataset import read_preferences, write_preferences
from rlaif_ray.records import LabelledPair
from rlaif_ray.rundir import RunDirectory
from rlaif_ray.samples import Sample, write_samples
from tests.small_models import write_models

Pairs = Sequence[LabelledPair]
STOP = 2


class PlainTrainer:
    """Keeps what it is given to train on."""

    async def fit_dpo(self, train: Pairs, held_out: Pairs, directory: RunDirectory) -> None:
        self.train, self.held_out, self.directory = train, held_out, directory


async def given(run_dir: Path, **dpo: Any) -> tuple[PlainTrainer, str]:
    """What the trainer gets of a run, and what the console says."""
    if not (run_dir / "models").exists():
        write_models(run_dir / "models")
    config = RunConfig.model_validate(
        {
            "run_dir": run_dir,
            "prompts": {"path": "p.jsonl"},
            "policy": {"model": "m", "algorithm": "dpo", "max_prompt_tokens": 5, "max_answer_tokens": 3},
            "judge": {"model": "j"},
            "dpo": dpo,
        }
    )
    trainer, said = PlainTrainer(), io.StringIO()
    context = RunContext(config, trainer, Console(stages=1, stream=said))  # type: ignore[arg-type]
    await prefer(context, context.round(1))
    return trainer, said.getvalue()


def file_of(directory: Path, *rows: dict[str, Any]) -> list[dict[str, str]]:
    path = directory / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [{"path": str(path)}]


def pair(prompt: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": "three", "rejected": "four five", **more}


async def test_a_file_is_read_as_the_policys_tokens_with_its_probabilities(tmp_path: Path) -> None:
    files = file_of(tmp_path, pair("one two", p=0.8, weight=0.5, id="a"), pair("two one", id="b", split="test"))
    trainer, said = await given(tmp_path, preferences=files)
    tokenizer = load_tokenizer(tmp_path / "models" / "sft", trust_remote_code=False)

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    [only] = trainer.train
    assert only.prompt == tuple(tokenizer("one two")["input_ids"])
    assert (only.answer_a, only.answer_b) == ((*ids("three"), STOP), (*ids("four five"), STOP))
    assert (only.p, only.weight) == (0.8, 0.5)
    assert [held_out.p for held_out in trainer.held_out] == [1.0]
    assert "left out" not in said
    # They are kept where a run keeps its own, for the report and for others.
    assert trainer.directory.path == tmp_path
    assert [row.p for row in read_preferences(trainer.directory.preferences)] == [0.8, 1.0]


async def test_hard_labels_are_verdicts(tmp_path: Path) -> None:
    files = file_of(tmp_path, pair("one two", p=0.8), pair("two one", p=0.5), pair("one", p=0.3))
    trainer, said = await given(tmp_path, preferences=files, labels="hard", held_out=0.0)
    assert [one.p for one in trainer.train] == [1.0, 1.0]
    assert "left out" not in said, "a tie is no verdict, and not too long"


async def test_pairs_that_the_policy_cannot_take_are_counted(tmp_path: Path) -> None:
    """Of eight tokens in all: a prompt of two words has four, the second answer three with its stop."""
    files = file_of(tmp_path, pair("one two"), pair("one two three"), pair("one two three four"))
    trainer, said = await given(tmp_path, preferences=files, held_out=0.0)
    assert len(trainer.train) == 2
    assert "1 pairs exceed policy.max_prompt_tokens + policy.max_answer_tokens = 8: left out" in said


async def test_collected_preferences_keep_the_tokens_that_were_drawn(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    drawn = [("a", "three", (7, 7, 3)), ("b", "four five", (8, 3))]
    write_samples(
        directory.samples("collect"),
        [Sample(name, "prompt", "one two", text, (1, 2), tokens, "stop") for name, text, tokens in drawn],
    )
    told = row(prompt="one two", chosen="three", rejected="four five", chosen_sample="a", rejected_sample="b")
    write_preferences(directory.preferences, [told])
    trainer, _ = await given(tmp_path)
    [only] = trainer.train
    assert (only.prompt, only.answer_a, only.answer_b) == ((1, 2), (7, 7, 3), (8, 3))


async def test_a_file_that_cannot_be_used_is_named_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dpo\.preferences: .*missing\.jsonl"):
        await given(tmp_path, preferences=[{"path": str(tmp_path / "missing.jsonl")}])
    with pytest.raises(UserError, match=r"pairs\.jsonl, line 1: p"):
        await given(tmp_path, preferences=file_of(tmp_path, pair("one two", p=7)))
    with pytest.raises(UserError, match=r"dpo\.held_out=1\.0 leaves no usable pair of 1 to train on"):
        await given(tmp_path, preferences=file_of(tmp_path, pair("one two")), held_out=1.0)
