"""Two steps of a TRL trainer on a preference file, with a model small enough for a test."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset, load_dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

STEPS = 2
TRAINERS = [(RewardTrainer, RewardConfig, LlamaForSequenceClassification), (DPOTrainer, DPOConfig, LlamaForCausalLM)]

WORDS = ("<pad>", "<unk>", "<s>", "</s>", "say", "one", "two", "three", "user", "assistant", ":")
CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }} : {{ message['content'] }} {% endfor %}"


def small_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def load(file: Path) -> Dataset:
    """A file's rows, parquet or JSONL."""
    kind = {".parquet": "parquet", ".jsonl": "json"}[file.suffix]
    return load_dataset(kind, data_files=str(file), split="train", cache_dir=str(file.parent / "cache"))


def without_ties(file: Path) -> Dataset:
    """A tie has no chosen answer, so a trainer of hard choices is not given it."""
    return load(file).filter(lambda p: p > 0.5, input_columns="p")


def steps_taken(trainer: type, settings: type, kind: type, rows: Dataset, directory: Path) -> int:
    """How far a trainer came on rows, as it is and with its defaults."""
    training = trainer(
        model=_saved_llama(kind, directory / "model"),
        args=settings(
            output_dir=str(directory / "out"),
            max_steps=STEPS,
            per_device_train_batch_size=2,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            disable_tqdm=True,
            max_length=32,
        ),
        train_dataset=rows,
        processing_class=small_tokenizer(),
    )
    return int(training.train().global_step)


def _saved_llama(kind: type, directory: Path) -> str:
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
