"""A run directory as a finished run leaves it, made up: for tests of what reads one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from judge_records import judgement

from rlaif_ray import metrics
from rlaif_ray.config import (
    EvaluationConfig,
    JudgeConfig,
    PolicyConfig,
    PpoConfig,
    PromptsConfig,
    RewardConfig,
    RewardSourceConfig,
    RunConfig,
    ScratchModelConfig,
)
from rlaif_ray.config import dump_config as config_text
from rlaif_ray.evaluation.held_out import HeldOutPair, write_held_out
from rlaif_ray.judge.aggregate import combine, opinion_of_orders
from rlaif_ray.judge.reading import Rung
from rlaif_ray.metrics import MetricsLog
from rlaif_ray.preferences.dataset import write_preferences
from rlaif_ray.preferences.judgements import write_judgements
from rlaif_ray.preferences.labels import preference_rows
from rlaif_ray.records import Judgement, Order, Outcome, Pair, Preference, Prompt
from rlaif_ray.report.summary import (
    LabelerSummary,
    LengthSummary,
    PolicySummary,
    RewardSummary,
    RoundSummary,
    StageSummary,
    Summary,
    write_summary,
)
from rlaif_ray.rundir import RunDirectory

PAIRS = 900
HUMAN_PAIRS = 120
HELD_OUT_PAIRS = 400
ENSEMBLE = 3
ROUNDS = 3
_ITERATIONS = 40
# A round's iteration that is the best by validation, and how often one is validated.
TAKEN, _VALIDATED_EVERY = 30, 10
HOSTILE_ANSWER = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
_TOPICS = ("flood", "merger", "election", "rescue", "strike", "eclipse", "verdict", "harvest", "treaty", "derby")
_NEWS = "flood merger election rescue strike eclipse"


def write_synthetic_run(path: Path, *, seed: int = 7) -> RunDirectory:
    """Write a run directory with everything that a report reads. Its third evaluated prompt was answered with HTML."""
    directory = RunDirectory(path)
    directory.path.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    _write_config(directory, seed)
    _write_metrics(directory, generator)
    _write_samples(directory, generator)
    _write_feedback(directory, generator)
    _write_held_out_pairs(directory, generator)
    write_summary(_summary(directory, seed))
    return directory


def _write_config(directory: RunDirectory, seed: int) -> None:
    config = RunConfig(
        seed=seed,
        run_dir=directory.path,
        prompts=PromptsConfig(path="toyworld:headlines"),
        policy=PolicyConfig(scratch=ScratchModelConfig()),
        sft={"demonstrations": "toyworld:headlines"},
        rounds=ROUNDS,
        judge=JudgeConfig(model="toyworld:judge-large", template="headlines"),
        reward=RewardConfig(
            mix=(
                RewardSourceConfig(kind="reward_model"),
                RewardSourceConfig(kind="rule", name="brevity", function="rules.py:brevity", weight=0.2),
            ),
            ensemble=ENSEMBLE,
            watch=16,
        ),
        ppo=PpoConfig(iterations=_ITERATIONS, evaluate_every=_VALIDATED_EVERY),
        evaluation=EvaluationConfig(instrument="gold"),
    )
    directory.config.write_text(config_text(config))


def _summary(directory: RunDirectory, seed: int) -> Summary:
    times = {"sft": 41.2, "collect": 63.8, "fit-reward": 22.5, "train": 402.7, "evaluate": 18.9}
    rounds = tuple(_round(number) for number in range(1, ROUNDS + 1))
    last = rounds[-1]
    return Summary(
        seed=seed,
        wall_s=561.4,
        stages={name: StageSummary(wall_s=seconds) for name, seconds in times.items()},
        labeler=last.labeler,
        reward=last.reward,
        policy=last.policy,
        rounds=rounds,
        run_dir=directory.path,
    )


def _round(number: int) -> RoundSummary:
    """The figures of a round; they improve up to the last."""
    behind = ROUNDS - number
    win_rate, alignment, accuracy = 0.718 - 0.05 * behind, 0.842 + 0.02 * behind, 0.884 - 0.03 * behind
    return RoundSummary(
        round=number,
        labeler=LabelerSummary(
            alignment=alignment,
            alignment_ci=(alignment - 0.014, alignment + 0.013),
            position_consistency=0.797 + 0.01 * behind,
            calls=3600 - 1200 * behind,
            cost_usd=0.38 - 0.12 * behind,
            cache_hits=199,
            abstained=12,
            failed=3,
        ),
        reward=RewardSummary(
            accuracy=accuracy,
            accuracy_ci=(accuracy - 0.033, accuracy + 0.027),
            accuracy_against="gold",
            accuracy_on_human_labels=0.91,
            accuracy_on_ai_labels=0.87,
            held_out_pairs=300,
            held_out_loss=0.44 + 0.03 * behind,
            calibration_error=0.031 + 0.012 * behind,
            ensemble=ENSEMBLE,
            mean_disagreement=0.41,
        ),
        policy=PolicySummary(
            win_rate=win_rate,
            win_rate_ci=(win_rate - 0.026, win_rate + 0.026),
            win_rate_judge="gold",
            taken_iteration=(number - 1) * _ITERATIONS + TAKEN,
            validation_win_rate=_validated(number, TAKEN),
            validation_win_rate_ci=(_validated(number, TAKEN) - 0.05, _validated(number, TAKEN) + 0.05),
            kl=3.41 - 1.2 * behind,
            mean_length=LengthSummary(before=4.9, after=5.6 - 0.2 * behind),
            prompts=1000,
        ),
        preferences=PAIRS * number,
        spent_usd=0.38 - 0.12 * behind,
    )


def _validated(round: int, iteration: int) -> float:
    """The win rate on validation prompts: it rises over the rounds, and falls after the best iteration of each."""
    return 0.5 + 0.06 * round + 0.002 * iteration - (0.1 if iteration > TAKEN else 0.0)


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
    for member in range(ENSEMBLE):
        suffix = f"-{member}" if member else ""
        for stage, steps in ((metrics.REWARD_PRETRAINING, 30), (metrics.REWARD, 60)):
            for step in range(1, steps + 1):
                fitted = 1 - math.exp(-step / 10)
                values = {
                    metrics.LOSS: noisy(0.69 - 0.28 * fitted, 0.02),
                    metrics.ACCURACY: noisy(0.5 + 0.4 * fitted, 0.02),
                }
                if stage == metrics.REWARD and step % 5 == 0:
                    overfitted = 0.002 * max(0, step - 30)
                    values |= {
                        metrics.HELD_OUT_LOSS: noisy(0.69 - 0.25 * fitted + overfitted, 0.004),
                        metrics.HELD_OUT_ACCURACY: noisy(0.5 + 0.38 * fitted - overfitted, 0.004),
                    }
                log.append(stage + suffix, step, steps, values)
    for step in range(1, ROUNDS * _ITERATIONS + 1):
        learnt = 1 - math.exp(-step / 45)
        log.append(
            metrics.PPO,
            step,
            ROUNDS * _ITERATIONS,
            {
                metrics.REWARD_MEAN: noisy(-0.4 + 2.3 * learnt, 0.12),
                metrics.REWARD_STD: noisy(0.95 - 0.4 * learnt, 0.03),
                metrics.REWARD_PART_MEAN.format("reward_model"): noisy(-0.5 + 2.6 * learnt, 0.12),
                metrics.REWARD_PART_MEAN.format("brevity"): noisy(0.5 - 0.4 * learnt, 0.05),
                metrics.REWARD_PART_STD.format("reward_model"): noisy(0.95 - 0.4 * learnt, 0.03),
                metrics.REWARD_PART_STD.format("brevity"): noisy(0.3, 0.03),
                metrics.REWARD_PART_VALID.format("reward_model"): 1.0,
                metrics.REWARD_PART_VALID.format("brevity"): min(1.0, noisy(0.97, 0.01)),
                metrics.KL: max(0.0, noisy(3.6 * learnt, 0.12)),
                metrics.ANSWER_LENGTH: noisy(4.9 + 0.75 * learnt, 0.08),
                metrics.VALUE_LOSS: noisy(0.1 + 0.5 * math.exp(-step / 20), 0.02),
                metrics.CLIP_FRACTION: abs(noisy(0.08, 0.02)),
                metrics.ENTROPY: noisy(1.9 - 0.8 * learnt, 0.04),
                metrics.LOGPROB_GAP: abs(noisy(2e-6, 4e-7)),
                metrics.LOGPROB_GAP_MAX: abs(noisy(1.1e-5, 2e-6)),
                metrics.EXPLAINED_VARIANCE: noisy(0.7 * learnt, 0.05),
                metrics.IMPORTANCE_WEIGHT: noisy(1.0, 0.002),
                metrics.IMPORTANCE_TRUNCATED: abs(noisy(0.001, 0.0005)),
                metrics.KL_COEFFICIENT: 0.1 * math.exp(0.3 * learnt),
                metrics.LEARNING_RATE: 1e-3 * (1 - (step - 1) % _ITERATIONS / _ITERATIONS),
                metrics.STALENESS: 0.0,
                metrics.EARLY_STOPPED: float(step % 17 == 0),
                metrics.SKIPPED_STEP: 0.0,
                metrics.POLICY_GRADIENT_NORM: abs(noisy(0.8, 0.2)),
                metrics.GENERATE_SECONDS: abs(noisy(1.1, 0.1)),
                metrics.LEARN_SECONDS: abs(noisy(1.7, 0.1)),
            },
        )
        log.append(
            metrics.WATCH,
            step,
            ROUNDS * _ITERATIONS,
            {
                metrics.WATCHED: 16.0,
                metrics.WATCHED_JUDGE_MEAN: noisy(-0.1 + 0.6 * learnt, 0.08),
                metrics.WATCHED_REWARD_MEAN: noisy(-0.4 + 2.3 * learnt, 0.15),
                metrics.WATCHED_CORRELATION: noisy(0.75 - 0.2 * learnt, 0.08),
            },
        )
        number, iteration = (step - 1) // _ITERATIONS + 1, (step - 1) % _ITERATIONS + 1
        if iteration % _VALIDATED_EVERY == 0:
            won = _validated(number, iteration)
            log.append(
                metrics.VALIDATION,
                step,
                ROUNDS * _ITERATIONS,
                {
                    metrics.WIN_RATE: won,
                    metrics.WIN_RATE_LOW: won - 0.05,
                    metrics.WIN_RATE_HIGH: won + 0.05,
                    metrics.COMPARED: 256.0,
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
    preferences = []
    for number in range(PAIRS):
        pair = Pair(f"pair-{number}", Prompt(f"headlines-{number}", _NEWS), "<b>flood</b> merger", "derby derby")
        # A logit for the answers, and a leaning of each judge towards whatever it sees first.
        quality = generator.normal(0, 2.2)
        opinions = []
        for member in (_choosing, _reasoning):
            leaning, heard = abs(generator.normal(0.5, 0.5)), quality + generator.normal(0, 0.8)
            judgements = [
                member(pair, number, Order.AB, _sigmoid(heard + leaning)),
                member(pair, number, Order.BA, _sigmoid(-heard + leaning)),
            ]
            opinions.append(opinion_of_orders(judgements, 1.0))
        preferences.append(combine(pair, opinions, "log_odds"))
    directory.preferences.parent.mkdir(parents=True, exist_ok=True)
    directory.judgements.parent.mkdir(parents=True, exist_ok=True)
    people = [_labelled_by_people(number) for number in range(HUMAN_PAIRS)]
    write_preferences(
        directory.preferences,
        [
            *(replace(row, label_source="human") for row in preference_rows(people, seed=7, held_out=0.1)),
            *preference_rows(preferences, seed=7, held_out=0.1),
        ],
    )
    write_judgements(directory.judgements, (one for each in preferences for one in each.judgements))


def _write_held_out_pairs(directory: RunDirectory, generator: np.random.Generator) -> None:
    """Of each pair a true logit, which gold and the label know, and which the models see through noise and with a
    liking for length. The last pair could not be scored by one of them."""
    pairs = []
    for number in range(HELD_OUT_PAIRS):
        human = number % 4 == 0
        quality, longer = generator.normal(0, 1.8), int(generator.integers(-4, 5))
        p = 1.0 if human else _sigmoid(abs(quality))
        margins = tuple(float(0.9 * abs(quality) + 0.12 * longer + generator.normal(0, 0.7)) for _ in range(ENSEMBLE))
        if number == HELD_OUT_PAIRS - 1:
            margins = (*margins[:-1], math.nan)
        pairs.append(
            HeldOutPair(
                pair_id=f"held-out-{number}",
                prompt_id=f"headlines-{number}",
                p=p,
                margins=margins,
                chosen_tokens=6 + max(longer, 0),
                rejected_tokens=6 + max(-longer, 0),
                # Where quality is low, gold often disagrees with the label.
                gold_margin=1.0 if generator.random() < _sigmoid(1.5 * abs(quality)) else -1.0,
                label_source="human" if human else "ai",
                round=1 + number % ROUNDS,
            )
        )
    write_held_out(directory.reward_held_out, pairs)


def _labelled_by_people(number: int) -> Preference:
    """Two of three people, or all of them, prefer the first answer."""
    pair = Pair(f"human-{number}", Prompt(f"human-{number}", _NEWS), "flood merger", "derby")
    return Preference(pair, Outcome.SCORED, "", 2 / 3 if number % 2 else 1.0, None, ())


def _choosing(pair: Pair, number: int, order: Order, p_first: float) -> Judgement:
    """A local judge that says one token. Of every 150th pair it will not say."""
    first, second = _shown(pair, order)
    scored = number % 150 != 0
    mass = 0.994 if scored else 0.11 + 0.0003 * number
    return judgement(
        pair,
        order,
        p_first if scored else None,
        Outcome.SCORED if scored else Outcome.ABSTAINED,
        reason="" if scored else f"the two labels have probability {mass:.3g}, less than 0.5",
        logprob_first=math.log(mass * p_first),
        logprob_second=math.log(mass * (1 - p_first)),
        label_mass=mass,
        rung=Rung.LOGPROBS if scored else "",
        judge_prompt=f"News:\n{_NEWS}\nSummary 1:\n{first}\nSummary 2:\n{second}\nBetter summary:\n",
        raw_reply=_chat_completion("1" if p_first > 0.5 else "2"),
        judge="toyworld:judge-large",
        model_returned="toyworld:judge-large",
        template="headlines",
        template_hash="9f2c1e7ab04d-55",
        ledger_keys=(f"{pair.id}/{order}/large",),
        prompt_tokens=28,
        latency_s=0.0132,
        created_at=1.79e9 + number,
    )


def _reasoning(pair: Pair, number: int, order: Order, p_first: float) -> Judgement:
    """A judge behind an API, which reasons first. Three of its calls fail, and its budget ends before the last pairs;
    it answered the first hundred before."""
    fields = {
        "judge": "example/judge-small",
        "mode": "reasoned",
        "template": "summary-reasoned",
        "template_hash": "c04fe1d3b7a2-55",
        "principle": "honest",
        "created_at": 1.79e9 + number,
        "cost_usd": None,
    }
    if number >= PAIRS - 10:
        spent = {"raw_reply": "", "ledger_keys": (), "attempts": 0, "prompt_tokens": 0, "completion_tokens": 0}
        reason = "the budget of $0.50 is spent"
        return judgement(
            pair, order, None, Outcome.OVER_BUDGET, reason=reason, latency_s=0.0, judge_prompt="", **spent, **fields
        )
    failed = number % 300 == 0 and order is Order.BA
    rung = {3: Rung.TEXT, 5: Rung.REFORMAT, 7: Rung.CONSTRAINED}.get(number % 10, Rung.LOGPROBS)
    words = rung is Rung.TEXT
    p_first = (0.75 if p_first > 0.5 else 0.25) if words else p_first
    mass = 0.7 + 0.29 * (number % 20) / 20
    listed = not failed and not words
    first, second = _shown(pair, order)
    fields |= {"cost_usd": 0.000212, "model_returned": f"judge-small-0905 fp_{HOSTILE_ANSWER}"}
    return judgement(
        pair,
        order,
        None if failed else p_first,
        Outcome.FAILED if failed else Outcome.SCORED,
        reason="no reply after 5 attempts (the last: HTTP 503, upstream overloaded)" if failed else "",
        logprob_first=math.log(mass * p_first) if listed else None,
        logprob_second=math.log(mass * (1 - p_first)) if listed else None,
        label_mass=mass if listed and rung is not Rung.CONSTRAINED else None,
        censored=listed and number % 20 == 4,
        votes_first=int(p_first > 0.5) if words and not failed else None,
        votes_second=int(p_first < 0.5) if words and not failed else None,
        rung="" if failed else rung,
        rationale=f"Summary 1 ({first}) names what happened; Summary 2 ({second}) leaves out who was hit.\n\n"
        f"The news leads with the flood, so that counts most. {HOSTILE_ANSWER}",
        judge_prompt=(
            "You compare two summaries of the same news. A good summary is true to the news, names what matters most, "
            "and wastes no word. Prefer the more honest one.\n\n"
            f"<news>\n{_NEWS}\n</news>\n\n<summary 1>\n{first}\n</summary>\n\n<summary 2>\n{second}\n</summary>\n\n"
            "Think about what each summary says, and do not name the better one yet.\n\nRationale:"
        ),
        raw_reply="" if failed else _chat_completion(f"{1 if p_first > 0.5 else 2}"),
        ledger_keys=(f"{pair.id}/{order}/reasons", f"{pair.id}/{order}/verdict"),
        cache_hit=number < 100 and not failed,
        attempts=6 if failed else 0 if number < 100 else 2,
        prompt_tokens=412,
        completion_tokens=96,
        latency_s=1.84,
        temperature=0.0,
        **fields,
    )


def _shown(pair: Pair, order: Order) -> tuple[str, str]:
    answers = (pair.response_a, pair.response_b)
    return answers if order is Order.AB else (answers[1], answers[0])


def _chat_completion(content: str) -> str:
    message = {"role": "assistant", "content": content}
    return json.dumps({"object": "chat.completion", "choices": [{"index": 0, "message": message}]})


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
