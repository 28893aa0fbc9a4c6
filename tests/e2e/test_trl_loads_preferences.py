"""TRL's trainers take a preference file as it lies, and what they take is what we wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset, load_dataset
from judge_records import judgement
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from rlaif_ray.judge.aggregate import combine, opinion_of_orders
from rlaif_ray.preferences.dataset import preference_rows, write_judgements, write_preferences
from rlaif_ray.records import Message, Order, Pair, Preference, Prompt

WORDS = ("<pad>", "<unk>", "<s>", "</s>", "say", "one", "two", "three", "user", "assistant", ":")
CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }} : {{ message['content'] }} {% endfor %}"


def preferences(conversational: bool, count: int = 8) -> list[Preference]:
    """The second of them is a tie."""
    made = []
    for number in range(count):
        content = (Message("user", "say one"),) if conversational else "say one"
        pair = Pair(f"pair-{number}", Prompt(f"prompt-{number}", content), " one", " two three")
        p = 0.5 if number == 1 else 0.8
        judgements = [
            judgement(pair, order, p_first, logprob_first=-0.2, logprob_second=-1.6)
            for order, p_first in ((Order.AB, p), (Order.BA, 1 - p))
        ]
        made.append(combine(pair, [opinion_of_orders(judgements, 1.0)], "log_odds"))
    return made


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    made.chat_template = CHAT_TEMPLATE
    return made


@pytest.fixture(params=["plain", "conversational"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    labelled = preferences(request.param == "conversational")
    write_preferences(tmp_path / "preferences.parquet", preference_rows(labelled, seed=0, held_out=0.1))
    write_judgements(tmp_path / "judgements.parquet", [one for each in labelled for one in each.judgements])
    return tmp_path / "preferences.parquet"


def load(file: Path) -> Dataset:
    return load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(file.parent / "cache"))


def without_ties(file: Path) -> Dataset:
    """A tie has no chosen answer, so a trainer of hard choices is not given it."""
    return load(file).filter(lambda p: p > 0.5, input_columns="p")


def saved_llama(kind: type, directory: Path) -> str:
    """DPO loads its reference model from where the model came from."""
    model = kind(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
            num_labels=1,
        )
    )
    model.save_pretrained(directory)
    return str(directory)


def test_both_files_load_as_datasets(file: Path) -> None:
    rows = load(file)
    assert len(rows) == 8
    assert {"prompt", "chosen", "rejected", "p", "consistent", "rationale", "split"} <= set(rows.column_names)
    assert len(without_ties(file)) == 7
    assert len(load(file.with_name("judgements.parquet"))) == 16


@pytest.mark.parametrize(
    ("trainer", "settings", "kind"),
    [(RewardTrainer, RewardConfig, LlamaForSequenceClassification), (DPOTrainer, DPOConfig, LlamaForCausalLM)],
)
def test_a_trainer_takes_the_file(
    trainer: type, settings: type, kind: type, file: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    training = trainer(
        model=saved_llama(kind, tmp_path / "model"),
        args=settings(
            output_dir=str(tmp_path / "out"),
            max_steps=2,
            per_device_train_batch_size=2,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            disable_tqdm=True,
            max_length=32,
        ),
        train_dataset=without_ties(file),
        processing_class=tokenizer,
    )
    assert training.train().global_step == 2
