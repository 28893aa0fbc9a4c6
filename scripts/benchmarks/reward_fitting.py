"""How fast the reward model is fitted, beside TRL's reward trainer and a plain PyTorch loop in the same run.

`python -m scripts.benchmarks.reward_fitting [--rounds N] [--steps N] [--threads N]`: pairs a second on a Qwen2 of 2.9M
parameters, in float32 and in bfloat16, on pairs of 2 x 128 tokens and of lengths uniform in 16 to 128. Each contender
has a process of its own, which waits while the others take their turns; ours goes through `training_steps` with
DeepSpeed. Theirs in bfloat16 is autocast over float32 weights, which is what TRL does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from rlaif_ray.engines.training import Dtype
from rlaif_ray.records import LabelledPair

Lengths = Literal["128", "16-128"]

_BATCH = 16
_VOCABULARY = 1024
_LEARNING_RATE = 1e-4
_CONTENDERS = ("ours", "trl", "loop")


@dataclass(frozen=True, slots=True)
class Figures:
    """Pairs a second are medians over rounds, ratios those of each round's two rates."""

    lengths: Lengths
    dtype: Dtype
    ours_per_s: float
    trl_per_s: float
    loop_per_s: float
    to_trl: float
    to_loop: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=16, help="optimizer steps a turn, of which the first is not timed")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    parser.add_argument("--contender", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender is not None:
        _contend(*arguments.contender, steps=arguments.steps)
        return
    figures = []
    for lengths, dtype in itertools.product(get_args(Lengths), get_args(Dtype)):
        figures.append(measure(lengths, dtype, arguments.rounds, arguments.steps, arguments.threads))
        print(figures[-1], flush=True)
    table = Table(*(name.replace("_", " ") for name in asdict(figures[0])), title="Pairs a second of the reward fit")
    for row in figures:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else value for value in asdict(row).values()))
    Console(width=120).print(table)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps([asdict(row) for row in figures], indent=2))


def measure(lengths: Lengths, dtype: Dtype, rounds: int, steps: int, threads: int) -> Figures:
    """The contenders take turns; the first round warms them up."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", __spec__.name, "--steps", str(steps), "--contender", name, lengths, dtype],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in _CONTENDERS
    ]
    turns = [[_turn(process, steps) for process in processes] for _ in range(rounds + 1)][1:]
    for process in processes:
        process.communicate()
    ours, trl, loop = (statistics.median(rates) for rates in zip(*turns, strict=True))
    to_trl = statistics.median(turn[0] / turn[1] for turn in turns)
    to_loop = statistics.median(turn[0] / turn[2] for turn in turns)
    return Figures(lengths, dtype, ours, trl, loop, to_trl, to_loop)


def _turn(process: subprocess.Popen[str], steps: int) -> float:
    """Pairs a second of one turn."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("seconds "):
            return (steps - 1) * _BATCH / float(line.split()[1])
    raise RuntimeError(f"a contender ended with {process.wait()}")


def _contend(name: str, lengths: Lengths, dtype: Dtype, *, steps: int) -> None:
    """Take a turn for each line that comes in, and tell its seconds."""
    take: Callable[..., float] = {"ours": _ours, "trl": _trl, "loop": _loop}[name](lengths, dtype, steps)
    for _ in sys.stdin:
        print("seconds", take(), flush=True)


def _pairs(lengths: Lengths, steps: int) -> list[LabelledPair]:
    """Of random tokens. The first answer is always the better one, as TRL wants it."""
    random = np.random.default_rng(0)

    def tokens() -> tuple[int, ...]:
        size = 128 if lengths == "128" else random.integers(16, 129)
        return tuple(random.integers(1, _VOCABULARY, size).tolist())

    return [LabelledPair(f"{row:05}", f"{row:05}", (), tokens(), tokens(), 1.0) for row in range(steps * _BATCH)]


def _model(dtype: Dtype) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    build: Any = transformers.Qwen2ForSequenceClassification
    settings: Any = transformers.Qwen2Config
    config = settings(
        vocab_size=_VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        pad_token_id=0,
        num_labels=1,
        problem_type="regression",
    )
    return build(config).to(getattr(torch, dtype))


def _ours(lengths: Lengths, dtype: Dtype, steps: int) -> Callable[[], float]:
    from rlaif_ray.config import FitConfig
    from rlaif_ray.engines.deepspeed_engine import DeepSpeedEngine, Rendezvous, join_group
    from rlaif_ray.fitting import optimizer_settings
    from rlaif_ray.reward.comparisons import comparison_groups
    from rlaif_ray.reward.losses import PairObjective
    from rlaif_ray.reward.training import training_steps

    join_group(0, 1, Rendezvous("127.0.0.1", 1))
    settings = FitConfig(batch_size=_BATCH, micro_batch_size=_BATCH, learning_rate=_LEARNING_RATE)
    engine = DeepSpeedEngine(_model(dtype), optimizer_settings(settings, dtype, 1_000_000))
    groups = comparison_groups(_pairs(lengths, steps), by_prompt=False)

    def take() -> float:
        taken = training_steps(engine, groups, settings, PairObjective(), steps, seed=0)
        next(taken)
        begun = time.perf_counter()
        assert len(list(taken)) == steps - 1
        return time.perf_counter() - begun

    return take


def _trl(lengths: Lengths, dtype: Dtype, steps: int) -> Callable[[], float]:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import RewardConfig, RewardTrainer

    from rlaif_ray.policy.model import scratch_tokenizer

    class Clock(TrainerCallback):
        """Reads the time after the first step and after the last."""

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == 1:
                self.begun = time.perf_counter()
            self.seconds = time.perf_counter() - self.begun

    clock = Clock()
    rows = [{"chosen_ids": pair.answer_a, "rejected_ids": pair.answer_b} for pair in _pairs(lengths, steps)]
    trainer = RewardTrainer(
        model=_model("float32"),
        args=RewardConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=_BATCH,
            max_steps=steps,
            learning_rate=_LEARNING_RATE,
            bf16=dtype == "bfloat16",
            gradient_checkpointing=False,
            use_cpu=True,
            report_to=[],
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=scratch_tokenizer(["one"]),
        callbacks=[clock],
    )

    def take() -> float:
        trainer.train()
        return clock.seconds

    return take


def _loop(lengths: Lengths, dtype: Dtype, steps: int) -> Callable[[], float]:
    import torch
    from torch.nn.functional import logsigmoid

    from rlaif_ray.reward.scoring import right_padded

    model = _model("float32").eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, fused=True)
    pairs = _pairs(lengths, steps)

    def take() -> float:
        begun = 0.0
        for start in range(0, steps * _BATCH, _BATCH):
            batch = pairs[start : start + _BATCH]
            sequences = [pair.answer_a for pair in batch] + [pair.answer_b for pair in batch]
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                scores = model(**right_padded(sequences, 0, torch.device("cpu"))).logits.squeeze(-1).float()
            better, worse = scores.chunk(2)
            loss: Any = -logsigmoid(better - worse).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            begun = begun or time.perf_counter()
        return time.perf_counter() - begun

    return take


if __name__ == "__main__":
    main()
