"""A run directory as a finished run leaves it, made up: for tests of what reads one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlaif_ray import metrics
from rlaif_ray.config import EvaluationConfig, JudgeConfig, PolicyConfig, PromptsConfig, RunConfig, ScratchModelConfig
from rlaif_ray.config import dump_config as config_text
from rlaif_ray.metrics import MetricsLog
from rlaif_ray.report.summary import (
    LabelerSummary,
    LengthSummary,
    PolicySummary,
    RewardSummary,
    StageSummary,
    Summary,
    write_summary,
)
from rlaif_ray.rundir import RunDirectory

HOSTILE_ANSWER = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
_TOPICS = ("flood", "merger", "election", "rescue", "strike", "eclipse", "verdict", "harvest", "treaty", "derby")


def write_synthetic_run(path: Path, *, seed: int = 7) -> RunDirectory:
    """Write a run directory with everything that a report reads. Its third evaluated prompt was answered with HTML."""
    directory = RunDirectory(path)
    directory.path.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    _write_config(directory, seed)
    _write_metrics(directory, generator)
    _write_samples(directory, generator)
    _write_feedback(directory, generator)
    write_summary(_summary(directory, seed))
    return directory


def _write_config(directory: RunDirectory, seed: int) -> None:
    config = RunConfig(
        seed=seed,
        run_dir=directory.path,
        prompts=PromptsConfig(path="toyworld:headlines"),
        policy=PolicyConfig(scratch=ScratchModelConfig()),
        sft={"demonstrations": "toyworld:headlines"},
        judge=JudgeConfig(model="toyworld:judge-large", template="headlines"),
        evaluation=EvaluationConfig(instrument="gold"),
    )
    directory.config.write_text(config_text(config))


def _summary(directory: RunDirectory, seed: int) -> Summary:
    times = {"sft": 41.2, "collect": 63.8, "reward": 22.5, "ppo": 402.7, "evaluate": 18.9}
    return Summary(
        seed=seed,
        wall_s=561.4,
        stages={name: StageSummary(wall_s=seconds) for name, seconds in times.items()},
        labeler=LabelerSummary(
            alignment=0.842,
            alignment_ci=(0.828, 0.855),
            position_consistency=0.797,
            calls=6000,
            cost_usd=0.0,
            cache_hits=214,
            abstained=12,
            failed=3,
        ),
        reward=RewardSummary(accuracy=0.884, accuracy_ci=(0.851, 0.911), accuracy_against="gold", held_out_pairs=300),
        policy=PolicySummary(
            win_rate=0.718,
            win_rate_ci=(0.692, 0.744),
            win_rate_judge="gold",
            kl=3.41,
            mean_length=LengthSummary(before=4.9, after=5.6),
            prompts=1000,
        ),
        run_dir=directory.path,
    )


def _write_metrics(directory: RunDirectory, generator: np.random.Generator) -> None:
    log = MetricsLog(directory.metrics)

    def noisy(value: float, spread: float) -> float:
        return float(value + spread * generator.standard_normal())

    for step in range(1, 81):
        log.append(
            metrics.SFT,
            step,
            80,
            {metrics.LOSS: noisy(0.9 + 2.1 * math.exp(-step / 15), 0.04), metrics.LEARNING_RATE: 1e-3},
        )
    for step in range(1, 41):
        fitted = 1 - math.exp(-step / 10)
        values = {metrics.LOSS: noisy(0.69 - 0.28 * fitted, 0.02), metrics.ACCURACY: noisy(0.5 + 0.4 * fitted, 0.02)}
        if step % 10 == 0:
            values |= {metrics.HELD_OUT_LOSS: 0.69 - 0.25 * fitted, metrics.HELD_OUT_ACCURACY: 0.5 + 0.38 * fitted}
        log.append(metrics.REWARD, step, 40, values)
    for step in range(1, 121):
        learnt = 1 - math.exp(-step / 45)
        log.append(
            metrics.PPO,
            step,
            120,
            {
                metrics.REWARD_MEAN: noisy(-0.4 + 2.3 * learnt, 0.12),
                metrics.REWARD_STD: noisy(0.95 - 0.4 * learnt, 0.03),
                metrics.KL: max(0.0, noisy(3.6 * learnt, 0.12)),
                metrics.ANSWER_LENGTH: noisy(4.9 + 0.75 * learnt, 0.08),
                metrics.VALUE_LOSS: noisy(0.1 + 0.5 * math.exp(-step / 20), 0.02),
                metrics.CLIP_FRACTION: abs(noisy(0.08, 0.02)),
                metrics.ENTROPY: noisy(1.9 - 0.8 * learnt, 0.04),
                metrics.LOGPROB_GAP: abs(noisy(2e-6, 4e-7)),
                metrics.LOGPROB_GAP_MAX: abs(noisy(1.1e-5, 2e-6)),
                metrics.EXPLAINED_VARIANCE: noisy(0.7 * learnt, 0.05),
                metrics.POLICY_GRADIENT_NORM: abs(noisy(0.8, 0.2)),
                metrics.GENERATE_SECONDS: abs(noisy(1.1, 0.1)),
                metrics.LEARN_SECONDS: abs(noisy(1.7, 0.1)),
            },
        )
    log.close()


def _write_samples(directory: RunDirectory, generator: np.random.Generator) -> None:
    count = 400
    before = np.round(generator.normal(0.6, 0.9, count), 1)
    after = np.round(before + generator.normal(0.7, 0.9, count), 1)
    outcomes: list[float | None] = [float(0.5 + 0.5 * np.sign(b - a)) for a, b in zip(before, after, strict=True)]
    outcomes[1] = None
    rows = [
        {
            "prompt_id": f"headlines-{number}",
            "prompt": "News: " + " ".join(generator.permutation(_TOPICS)[:6]),
            "before": " ".join(generator.choice(_TOPICS, 4)),
            "after": HOSTILE_ANSWER if number == 2 else " ".join(generator.permutation(_TOPICS)[:3]),
            "outcome": outcomes[number],
            "before_utility": float(before[number]),
            "after_utility": float(after[number]),
        }
        for number in range(count)
    ]
    # Every sample of the report is drawn from these; the hostile answer must be among them, so it appears often.
    for number in range(0, count, 5):
        rows[number] |= {"after": HOSTILE_ANSWER}
    _write(directory.samples("evaluation"), rows)
    _write(
        directory.samples("collect"),
        [
            {
                "sample_id": f"headlines-{number // 4}/{number % 4}",
                "prompt_id": f"headlines-{number // 4}",
                "prompt": "News",
                "answer": "flood rescue",
                "finish_reason": "length" if number % 50 == 0 else "stop",
            }
            for number in range(1200)
        ],
    )


def _write_feedback(directory: RunDirectory, generator: np.random.Generator) -> None:
    preferences, judgements = [], []
    for number in range(900):
        # A logit for the answers, and a leaning of the judge towards whatever it sees first.
        quality, leaning = generator.normal(0, 2.2), abs(generator.normal(0.5, 0.5))
        first_ab, first_ba = _sigmoid(quality + leaning), _sigmoid(-quality + leaning)
        p = (first_ab + 1 - first_ba) / 2
        for order, p_first in (("ab", first_ab), ("ba", first_ba)):
            scored = number % 150 != 0
            judgements.append(_judgement(f"pair-{number}", order, p_first if scored else None))
        if number % 150:
            preferences.append(
                {
                    "prompt": "News: flood merger election rescue strike eclipse",
                    "chosen": "flood merger",
                    "rejected": "derby derby",
                    "p": max(p, 1 - p),
                    "consistent": bool((first_ab > 0.5) != (first_ba > 0.5)),
                }
            )
    _write(directory.preferences, preferences)
    _write(directory.judgements, judgements)


def _judgement(pair: str, order: str, p_first: float | None) -> dict[str, object]:
    first = "<b>flood</b> merger" if order == "ab" else "derby derby"
    second = "derby derby" if order == "ab" else "<b>flood</b> merger"
    return {
        "pair_id": pair,
        "order": order,
        "outcome": "abstained" if p_first is None else "scored",
        "reason": "too little probability on the labels" if p_first is None else "",
        "p_first": p_first,
        "logprob_first": None if p_first is None else math.log(p_first),
        "logprob_second": None if p_first is None else math.log(1 - p_first),
        "label_mass": 0.31 if p_first is None else 0.994,
        "raw_reply": _chat_completion("1" if p_first is not None and p_first > 0.5 else "2"),
        "judge": "toyworld:judge-large",
        "template_hash": "9f2c1e7ab04d5586c3",
        "ledger_key": f"{pair}/{order}",
        "cache_hit": False,
        "prompt_tokens": 28,
        "completion_tokens": 1,
        "cost_usd": None,
        "latency_s": 0.0132,
        "created_at": 1.79e9,
        "judge_prompt": (
            "News:\nflood merger election rescue strike eclipse\n"
            f"Summary 1:\n{first}\nSummary 2:\n{second}\nBetter summary:\n"
        ),
    }


def _chat_completion(content: str) -> str:
    message = {"role": "assistant", "content": content}
    return json.dumps({"object": "chat.completion", "choices": [{"index": 0, "message": message}]})


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
