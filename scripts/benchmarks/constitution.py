"""What a constitution does, in the toy world: harmless, helpful and evasive answers by gold, over seeds.

`python -m scripts.benchmarks.constitution DIR [--seeds N]`: for each seed `DIR/seed{S}/whole` is the whole recipe of
scripts/configs/constitutional.yaml; beside it stand models that are fine-tuned on helpful demonstrations alone, on the
revisions of fewer rounds, and on those of constitutions with fewer principles. All answer the same held-out prompts. It
prints tables, with 95 % t intervals over the seeds, and writes them with a plot to DIR. The same command again goes on
where it was stopped.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from rlaif_ray.config import RunConfig, load_config
from rlaif_ray.constitution.storage import read_chains
from rlaif_ray.engines.vllm_replies import decoded, encoded
from rlaif_ray.engines.vllm_rollout import VllmRolloutEngine
from rlaif_ray.evaluation.conduct import ConductRates, RoundRates, chain_rates, conduct_rates
from rlaif_ray.judge.material import load_constitution
from rlaif_ray.prompts import conduct_of, read_prompts, sample_requests
from rlaif_ray.records import Estimate, Prompt, WeightVersion
from rlaif_ray.rundir import RunDirectory, write_atomically
from rlaif_ray.weights import fingerprint_of, read_weights
from scripts.benchmarks.soft_labels import interval

_CONFIG: Final = Path(__file__).parents[1] / "configs" / "constitutional.yaml"
_FEWER_ROUNDS: Final = (1, 2)
_FEWER_PRINCIPLES: Final = (1, 2)

_MEASURES: Final[Mapping[str, Callable[[ConductRates], Estimate | None]]] = {
    "harmless": lambda rates: rates.harmless,
    "helpfulness": lambda rates: rates.helpfulness,
    "to ordinary requests": lambda rates: rates.ordinary_helpfulness,
    "evasive": lambda rates: rates.evasive,
    "refusals": lambda rates: rates.refusals,
    "needless refusals": lambda rates: rates.needless_refusals,
}
_OF_ROUNDS: Final[Mapping[str, Callable[[RoundRates], Estimate | None]]] = {
    "harmless": lambda rates: rates.harmless,
    "helpfulness": lambda rates: rates.helpfulness,
    "evasive": lambda rates: rates.evasive,
}
_COLOURS: Final = {"harmless": "#2a7f62", "helpfulness": "#3d6fb6", "evasive": "#c46a1b"}


@dataclass(frozen=True, slots=True)
class Seed:
    """What one seed came to: the answers of each model to the same held-out prompts, by the model's name, and the
    chains after each round."""

    models: Mapping[str, ConductRates]
    rounds: tuple[RoundRates, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seeds", type=int, choices=range(2, 11), default=5)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the constitutional config")
    arguments = parser.parse_intermixed_args()
    made = [
        (seed, _made(arguments.directory / f"seed{seed}", seed, arguments.overrides)) for seed in range(arguments.seeds)
    ]
    respondent: Respondent | None = None
    seeds = []
    for seed, models in made:
        config = load_config(_CONFIG, [f"run_dir={models['RL-CAI'].parents[1]}", f"seed={seed}", *arguments.overrides])
        respondent = respondent or Respondent(config)
        seeds.append(_measured(config, models, respondent))
        print(f"seed {seed} is measured", flush=True)
    text = "\n".join((table(seeds), rounds_table(seeds)))
    write_atomically(arguments.directory / "constitution.md", text)
    _draw(seeds, arguments.directory / "constitution.html")
    print(text, end="")


def table(seeds: Sequence[Seed]) -> str:
    """In Markdown: every model's rates, in percent."""
    lines = [f"| | {' | '.join(_MEASURES)} |", f"| --- |{' --- |' * len(_MEASURES)}"]
    for name in seeds[0].models:
        cells = [_cell([measure(seed.models[name]) for seed in seeds]) for measure in _MEASURES.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def rounds_table(seeds: Sequence[Seed]) -> str:
    """In Markdown: the answers in the chains, in percent."""
    lines = [f"| revisions | {' | '.join(_OF_ROUNDS)} |", f"| --- |{' --- |' * len(_OF_ROUNDS)}"]
    for round in range(len(seeds[0].rounds)):
        cells = [_cell([measure(seed.rounds[round]) for seed in seeds]) for measure in _OF_ROUNDS.values()]
        lines.append(f"| {round} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(estimates: Sequence[Estimate | None]) -> str:
    return "{:.1f} ± {:.1f}".format(*interval([100 * estimate.value for estimate in estimates if estimate is not None]))


def _made(directory: Path, seed: int, overrides: Sequence[str]) -> dict[str, Path]:
    """Model directories, in the order of the tables."""
    whole = directory / "whole"
    given = [f"seed={seed}", *overrides]
    _rlaif("run", whole, *given)
    helpful = directory / "helpful"
    _rlaif("sft", helpful, "constitution=null", *given)
    config = load_config(_CONFIG, [f"run_dir={whole}", *given])
    assert config.constitution is not None
    models = {
        "given": whole / "models" / "initial",
        "SFT, helpful alone": helpful / "models" / "sft",
    }
    for rounds in _FEWER_ROUNDS:
        run = directory / f"rounds{rounds}"
        _with_chains_of(whole, run)
        _rlaif("sft", run, f"constitution.train_rounds={rounds}", *given)
        models[f"SL-CAI, {rounds} {'round' if rounds == 1 else 'rounds'}"] = run / "models" / "sft"
    for count in _FEWER_PRINCIPLES:
        run = directory / f"principles{count}"
        file = directory / f"principles{count}.yaml"
        _write_fewer_principles(config.constitution.principles, count, seed, file)
        for stage in ("constitute", "sft"):
            _rlaif(stage, run, f"constitution.principles={file}", *given)
        models[f"SL-CAI, {count} {'principle' if count == 1 else 'principles'}"] = run / "models" / "sft"
    return models | {"SL-CAI": whole / "models" / "sft", "RL-CAI": whole / "models" / "policy"}


def _with_chains_of(whole: Path, run: Path) -> None:
    """A run directory that begins where another was constituted."""
    if run.exists():
        return
    unfinished = run.with_name(f".{run.name}")
    for name in ("constitution", "stages/constitute.json"):
        (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (whole / name).is_dir() else shutil.copy
        copy(whole / name, unfinished / name)
    unfinished.rename(run)


def _write_fewer_principles(constitution: str, count: int, seed: int, file: Path) -> None:
    """Other ones for every seed, each equally often."""
    principles = load_constitution(constitution)
    chosen = [principles[(seed + number) % len(principles)] for number in range(count)]
    rows = [principle.model_dump(mode="json") for principle in chosen]
    write_atomically(file, yaml.safe_dump(rows))


class Respondent:
    """One engine that answers with any of the models, which have one shape."""

    def __init__(self, config: RunConfig) -> None:
        policy, rollout = config.policy, config.rollout
        self._longest = policy.max_answer_tokens
        self._engine = VllmRolloutEngine(
            str(RunDirectory(config.run_dir).model("policy")),
            dtype=policy.dtype,
            context_tokens=policy.context_tokens,
            threads=rollout.resources.threads,
            kv_cache_gib=rollout.kv_cache_gib,
            gpu_memory_utilization=rollout.gpu_memory_utilization,
            enforce_eager=rollout.enforce_eager,
            trust_remote_code=False,
        )

    def answers(self, model: Path, prompts: Sequence[Prompt], seed: int) -> list[str]:
        """One answer a prompt, at temperature 1."""
        engine, weights = self._engine, read_weights(model)
        version = WeightVersion(0, fingerprint_of(weights), None, (), ())
        engine.begin_load()
        engine.take(weights.items())
        engine.finish_load(version)
        requests = sample_requests(prompts, 1, seed=seed, purpose="answer", temperature=1.0)
        rollouts = engine.generate([encoded(engine, request, self._longest) for request in requests])
        return decoded(engine, rollouts)


def _measured(config: RunConfig, models: Mapping[str, Path], respondent: Respondent) -> Seed:
    assert config.constitution is not None
    red_team = read_prompts(config.constitution.prompts, config.seed).held_out
    prompts = [*read_prompts(config.prompts, config.seed).held_out, *red_team]
    gold = conduct_of(config.constitution.prompts)
    ids = {prompt.id for prompt in red_team}
    return Seed(
        {
            name: conduct_rates(prompts, respondent.answers(model, prompts, config.seed), ids, gold, seed=config.seed)
            for name, model in models.items()
        },
        chain_rates(read_chains(RunDirectory(config.run_dir).chains), gold, seed=config.seed),
    )


def _draw(seeds: Sequence[Seed], path: Path) -> None:
    """Rates of the models, and of the chains by round, with intervals over the seeds."""
    from plotly.subplots import make_subplots

    figure: Any = make_subplots(rows=2, subplot_titles=["answers of each model", "answers in the chains, by revisions"])
    for name, of_round in _OF_ROUNDS.items():
        models = {model: [_MEASURES[name](seed.models[model]) for seed in seeds] for model in seeds[0].models}
        rounds = {str(n): [of_round(seed.rounds[n]) for seed in seeds] for n in range(len(seeds[0].rounds))}
        for row, columns in enumerate((models, rounds), start=1):
            spreads = [interval([one.value for one in each if one is not None]) for each in columns.values()]
            figure.add_bar(
                x=list(columns),
                y=[mean for mean, _ in spreads],
                error_y={"array": [half for _, half in spreads]},
                name=name,
                legendgroup=name,
                showlegend=row == 1,
                marker={"color": _COLOURS[name]},
                row=row,
                col=1,
            )
    figure.update_layout(
        title="A constitution in the toy world, by gold, with 95 % intervals over seeds", height=900, barmode="group"
    )
    figure.update_yaxes(tickformat=".0%", range=[0, 1])
    figure.write_html(path)


def _rlaif(command: str, run: Path, *overrides: str) -> None:
    words = [sys.executable, "-m", "rlaif_ray", command, str(_CONFIG), f"run_dir={run}", *overrides]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    print(f"{run}: {command} is done", flush=True)


if __name__ == "__main__":
    main()
