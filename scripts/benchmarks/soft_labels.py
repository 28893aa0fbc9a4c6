"""What soft labels are worth: reward models on soft and on hard labels from the same judgements, in the toy world.

`python -m scripts.benchmarks.soft_labels DIR [--seeds N]`: for each seed a run under `DIR/seed{S}` collects preferences
(one that is there already is used), and reward models are fitted on a quarter, a half and all of its training prompts.
Their accuracy against gold is measured on the pairs of held-out prompts. It prints a table, with 95 % t intervals over
the seeds, and writes it with a learning curve to DIR. The same command again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from rlaif_ray.config import RunConfig, load_config
from rlaif_ray.evaluation.measures import reward_accuracy
from rlaif_ray.preferences.dataset import PreferenceRow, Text, answer_text, read_preferences
from rlaif_ray.preferences.tokens import labelled_pairs
from rlaif_ray.prompts import gold_of
from rlaif_ray.records import LabelledPair, Prompt, RewardData, RewardFit
from rlaif_ray.rundir import RunDirectory
from rlaif_ray.samples import read_samples

Labels = Literal["soft", "hard"]

_CONFIG = Path(__file__).parents[2] / "rlaif_ray" / "toyworld" / "demo.yaml"
_SHARES = (0.25, 0.5, 1.0)
# Of Student's t by its degrees of freedom: 97.5 % lie below.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True, slots=True)
class Point:
    """One share of the training prompts. Accuracies are one a seed, and a seed's two are of the same judgements."""

    share: float
    pairs: int  # with soft labels, of the first seed
    soft: tuple[float, ...]
    hard: tuple[float, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seeds", type=int, choices=range(2, len(_T) + 2), default=5)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the demo's config")
    arguments = parser.parse_intermixed_args()
    runs = [
        _collected(arguments.directory / f"seed{seed}", seed, arguments.overrides) for seed in range(arguments.seeds)
    ]
    fit = _fitter()
    points = [_point(runs, share, fit) for share in _SHARES]
    text = table(points)
    (arguments.directory / "soft_labels.md").write_text(text)
    _draw(points, arguments.directory / "soft_labels.html")
    print(text, end="")


def table(points: Sequence[Point]) -> str:
    """In Markdown."""
    lines = [
        "| training prompts | pairs | soft | hard | soft less hard | by seed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for point in points:
        differences = [soft - hard for soft, hard in zip(point.soft, point.hard, strict=True)]
        cells = [
            f"{point.share:.0%}",
            f"{point.pairs:,}",
            *(f"{mean:.4f} ± {half:.4f}" for mean, half in map(interval, (point.soft, point.hard))),
            "{:+.4f} ± {:.4f}".format(*interval(differences)),
            ", ".join(f"{difference:+.4f}" for difference in differences),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of a sample and half the width of its 95 % t interval."""
    return statistics.mean(values), _T[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def _collected(directory: Path, seed: int, overrides: Sequence[str]) -> RunConfig:
    """The config of a run that has its preferences."""
    given = [f"seed={seed}", f"run_dir={directory}", *overrides]
    for stage in ("sft", "collect"):
        subprocess.run([sys.executable, "-m", "rlaif_ray", stage, str(_CONFIG), *given], check=True)
    return load_config(_CONFIG, given)


Fit = Callable[[RunConfig, RewardData, Path], RewardFit]


def _fitter() -> Fit:
    """Fits as a run does, with DeepSpeed, alone in this process; a model that is there already is kept."""
    from rlaif_ray.engines.deepspeed_engine import DeepSpeedEngine, Rendezvous, join_group
    from rlaif_ray.reward.fitting import fit_reward, read_fit

    join_group(0, 1, Rendezvous("127.0.0.1", 1))

    def fit(config: RunConfig, data: RewardData, directory: Path) -> RewardFit:
        return read_fit(directory) or fit_reward(
            config,
            config.reward,
            data,
            RunDirectory(config.run_dir).model("sft"),
            directory,
            seed=config.seed,
            start_engine=DeepSpeedEngine,
            on_step=lambda step, total, values: None,
        )

    return fit


def _point(runs: Sequence[RunConfig], share: float, fit: Fit) -> Point:
    accuracies: dict[Labels, list[float]] = {"soft": [], "hard": []}
    counts = []
    for config in runs:
        run = RunDirectory(config.run_dir)
        rows = read_preferences(run.preferences)
        held_out = [row for row in rows if row.split == "test"]
        prompts = sorted({row.prompt_id for row in rows if row.split == "train"})
        order = np.random.default_rng(config.seed).permutation(len(prompts))
        used = {prompts[index] for index in order[: round(share * len(prompts))]}
        train = [row for row in rows if row.prompt_id in used]
        for labels, measured in accuracies.items():
            data = _data(run, train, held_out, labels)
            fitted = fit(config, data, run.path / "soft_labels" / f"{labels}-{share:g}")
            measured.append(_accuracy(config, fitted, held_out))
            print(f"seed {config.seed}, {share:.0%}, {labels}: {measured[-1]:.4f}", flush=True)
            counts.append(len(data.train))
    return Point(share, counts[0], tuple(accuracies["soft"]), tuple(accuracies["hard"]))


def _data(
    run: RunDirectory, train: Sequence[PreferenceRow], held_out: Sequence[PreferenceRow], labels: Labels
) -> RewardData:
    from rlaif_ray.reward.initial import starting_encoder

    encoder = starting_encoder(run.model("sft"), trust_remote_code=False)
    samples = {sample.sample_id: sample for sample in read_samples(run.samples("collect"))}

    def pairs(rows: Sequence[PreferenceRow], labels: Labels) -> Sequence[LabelledPair]:
        return labelled_pairs(
            rows,
            samples,
            encoder.tokenizer,
            stop=encoder.stop,
            own_vocabulary=True,
            labels=labels,
            max_tokens=encoder.positions,
        )

    answers = tuple((*sample.prompt_tokens, *sample.answer_tokens) for sample in samples.values())
    return RewardData(tuple(pairs(train, labels)), tuple(pairs(held_out, "soft")), (), answers)


def _accuracy(config: RunConfig, fit: RewardFit, held_out: Sequence[PreferenceRow]) -> float:
    """Against gold; pairs that gold calls equal are left out."""
    gold = gold_of(config.prompts)
    assert gold is not None
    margins = dict(zip(fit.held_out_ids, fit.held_out_margins, strict=True))
    rows = [row for row in held_out if row.pair_id in margins]

    def worth(row: PreferenceRow, answer: Text) -> float:
        return gold(Prompt(row.prompt_id, row.prompt), answer_text(answer))

    agreement = reward_accuracy(
        np.array([margins[row.pair_id] for row in rows]),
        np.array([worth(row, row.chosen) - worth(row, row.rejected) for row in rows]),
        np.ones(len(rows), dtype=bool),
    )
    assert agreement.share is not None
    return agreement.share.value


def _draw(points: Sequence[Point], path: Path) -> None:
    import plotly.graph_objects as go

    figure = go.Figure()
    for name in ("soft", "hard"):
        means, halves = zip(*(interval(getattr(point, name)) for point in points), strict=True)
        figure.add_scatter(
            x=[point.share for point in points],
            y=means,
            error_y={"array": halves},
            name=f"{name} labels",
            mode="lines+markers",
        )
    figure.update_layout(
        title="Reward model's accuracy against gold on held-out prompts, with 95 % intervals over seeds",
        xaxis={"title": "share of the training prompts", "tickformat": ".0%", "tickvals": list(_SHARES)},
        yaxis={"title": "accuracy", "tickformat": ".1%"},
    )
    figure.write_html(path)


if __name__ == "__main__":
    main()
