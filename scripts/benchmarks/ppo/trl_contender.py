"""TRL 1.12's PPO trainer as a contender. It runs in an environment of its own and knows nothing of the rest.

`python trl_contender.py DIRECTORY SETTINGS`: SETTINGS are a JSON object. A line on stdin is a turn, one update of the
trainer's own `train()`; what it took follows on stdout. With `--replay FILE` it trains once on the answers in that file
instead, in the order that stands there, and writes to DIRECTORY/replayed what it computed on the way.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

_MOST_UPDATES = 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("settings", type=json.loads)
    parser.add_argument("--replay", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.replay is not None:
        replay(arguments.directory, arguments.settings, np.load(arguments.replay))
    else:
        contend(arguments.directory, arguments.settings)


def contend(directory: Path, settings: dict[str, Any]) -> None:
    turns = Turns()
    drawn = ppo_trainer.batch_generation

    def batch_generation(*args: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        sequences, logits = drawn(*args, **options)
        turns.generate_s = time.perf_counter() - begun
        answers = sequences[:, settings["prompt_tokens"] :]
        ended = answers == tokenizer.eos_token_id if settings["stops"] else torch.zeros_like(answers, dtype=torch.bool)
        # What comes after the first stop token is filler.
        turns.tokens = int((ended.cumsum(1) - ended.int() == 0).sum())
        return sequences, logits

    ppo_trainer.batch_generation = batch_generation
    tokenizer = AutoTokenizer.from_pretrained(directory / "policy")
    trainer = build(directory, settings, tokenizer, _MOST_UPDATES, Waiting(tokenizer, turns))
    trainer.optimizer.optimizer.register_step_post_hook(turns.count_step)
    trainer.train()


@dataclass
class Turns:
    """Counts one turn's work and tells of it when the next one is wanted."""

    begun: float | None = None
    tokens: int = 0
    generate_s: float = 0.0
    steps: int = 0

    def next(self) -> None:
        """Tell of the turn that is over, and wait for the next. Ends the process where there is none."""
        if self.begun is not None:
            seconds = time.perf_counter() - self.begun
            turn = {
                "seconds": seconds,
                "tokens": self.tokens,
                "steps": self.steps,
                "parts": {"generate": self.generate_s, "rest": seconds - self.generate_s},
                "peak_mib": {"trl": peak_mib()},
            }
            print("\nturn", json.dumps(turn), flush=True)
        if not sys.stdin.readline():
            sys.exit()
        self.steps = 0
        self.begun = time.perf_counter()

    def count_step(self, *_: Any) -> None:
        self.steps += 1


class Waiting(DataCollatorWithPadding):
    """The trainer asks for a batch at the start of every update: that is where it waits for its turn."""

    def __init__(self, tokenizer: Any, turns: Turns) -> None:
        super().__init__(tokenizer)
        self.turns = turns

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        self.turns.next()
        return super().__call__(features)


def replay(directory: Path, settings: dict[str, Any], given: Any) -> None:
    """One update on given answers (B, A) to the prompts (B, P), in the given order (B,)."""
    tokenizer = AutoTokenizer.from_pretrained(directory / "policy")
    place_of = {tuple(prompt): row for row, prompt in enumerate(given["prompts"].tolist())}
    rows: list[int] = []  # of the file, in the order of the trainer's batch

    def batch_generation(model: Any, queries: Any, chunk: int, pad_id: int, config: Any) -> tuple[Any, Any]:
        rows.extend(place_of[tuple(query)] for query in queries.tolist())
        sequences = torch.cat([queries, torch.from_numpy(given["answers"][rows]).to(queries)], 1)
        logits = ppo_trainer.forward(model, sequences, pad_id).logits[:, queries.shape[1] - 1 : -1]
        return sequences, logits

    ppo_trainer.batch_generation = batch_generation
    said = Recorded(ppo_trainer.selective_log_softmax)
    rewards = Recorded(ppo_trainer.get_reward)
    whitened = Recorded(ppo_trainer.masked_whiten)
    ppo_trainer.selective_log_softmax, ppo_trainer.get_reward, ppo_trainer.masked_whiten = said, rewards, whitened
    trainer = build(directory, settings, tokenizer, 1, DataCollatorWithPadding(tokenizer))
    logged: dict[str, float] = {}
    trainer.log = lambda metrics, *_: logged.update(metrics)
    # The one permutation that the trainer draws with NumPy is the order of the update.
    np.random.permutation = lambda count: np.array([rows.index(row) for row in given["order"].tolist()])
    trainer.train()
    out = directory / "replayed"
    out.mkdir()
    place = np.argsort(rows)
    first = given["prompts"].shape[1] - 1
    np.savez(
        out / "computed.npz",
        logprobs=said.results[0].numpy()[place],
        reference_logprobs=said.results[1].numpy()[place],
        values=rewards.results[0][0][:, first:-1, 0].numpy()[place],
        scores=rewards.results[1][1].numpy()[place],
        advantages=whitened.results[0].numpy()[place],
        policy_loss=logged["loss/policy_avg"],
        value_loss=logged["loss/value_avg"],
    )
    trainer.model.policy.save_pretrained(out / "policy")


@dataclass
class Recorded:
    """A function that keeps what it returned."""

    function: Callable[..., Any]
    results: list[Any] = field(default_factory=list)

    def __call__(self, *args: Any, **options: Any) -> Any:
        result = self.function(*args, **options)
        kept = result if isinstance(result, tuple) else (result,)
        copies = tuple(tensor.detach().clone() for tensor in kept)
        self.results.append(copies if isinstance(result, tuple) else copies[0])
        return result


def build(directory: Path, settings: dict[str, Any], tokenizer: Any, updates: int, collator: Any) -> Any:
    prompts = [row["input_ids"] for row in json.loads((directory / "prompts.json").read_text())]
    reward, value = (AutoModelForSequenceClassification.from_pretrained(directory / "reward") for _ in range(2))
    return PPOTrainer(
        args=PPOConfig(
            output_dir=str(directory / "trl"),
            # The whole batch a device, without accumulation: else accelerate would step once for all minibatches.
            per_device_train_batch_size=len(prompts),
            gradient_accumulation_steps=1,
            num_mini_batches=settings["steps"],
            num_ppo_epochs=1,
            total_episodes=updates * len(prompts),
            response_length=settings["answer_tokens"],
            stop_token="eos" if settings["stops"] else None,
            temperature=1.0,
            learning_rate=settings["learning_rate"],
            lr_scheduler_type="constant",
            # Each of our two models has its own loss; AdamW undoes a common factor.
            vf_coef=1.0,
            num_sample_generations=0,
            use_cpu=not torch.cuda.is_available(),
            # Mixed precision comes from accelerate's environment; the trainer ignores this flag.
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(directory / "policy"),
        ref_model=AutoModelForCausalLM.from_pretrained(directory / "reference"),
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        data_collator=collator,
    )


def peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
