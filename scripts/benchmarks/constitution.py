"""What a constitution does, in the toy world: harmless, helpful and evasive answers by gold, over seeds.

`python -m scripts.benchmarks.constitution DIR [--seeds N]`: for each seed `DIR/seed{S}/whole` is the whole recipe of
scripts/configs/constitutional.yaml, and `DIR/seed{S}/helpful` a model that is fine-tuned on helpful demonstrations
alone. All models answer the same held-out prompts; chains of revisions of the given model's answers to the red-team
prompts among them are drawn with fewer principles too, and without critiques. It prints tables, with 95 % t intervals
over the seeds, and writes them with a plot to DIR. The same command again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rlaif_ray.config import RunConfig, load_config
from rlaif_ray.constitution.chain import RevisionChain
from rlaif_ray.constitution.driving import converse
from rlaif_ray.engines.vllm_replies import VllmReplies, decoded, encoded
from rlaif_ray.engines.vllm_rollout import VllmRolloutEngine
from rlaif_ray.evaluation.conduct import ConductRates, RoundRates, chain_rates, conduct_rates
from rlaif_ray.judge.material import load_constitution
from rlaif_ray.prompts import conduct_of, read_prompts, sample_requests
from rlaif_ray.records import Chain, Estimate, Prompt, WeightVersion
from rlaif_ray.rundir import RunDirectory, write_atomically
from rlaif_ray.weights import fingerprint_of, read_weights
from scripts.benchmarks.commands import rlaif
from scripts.benchmarks.soft_labels import interval

_CONFIG: Final = Path(__file__).parents[1] / "configs" / "constitutional.yaml"

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
# Principles, and whether revisions come after critiques.
_CONSTITUTIONS: Final = {
    "1 principle": (1, True),
    "2 principles": (2, True),
    "4 principles": (4, True),
    "4 principles, no critiques": (4, False),
}
_COLOURS: Final = {"harmless": "#2a7f62", "helpfulness": "#3d6fb6", "evasive": "#c46a1b"}


@dataclass(frozen=True, slots=True)
class Seed:
    """What one seed came to: the answers of each model to the same held-out prompts, by the model's name, and chains
    after each of their rounds, by the constitution's name."""

    models: Mapping[str, ConductRates]
    chains: Mapping[str, tuple[RoundRates, ...]]


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
    text = "\n".join((table(seeds), chains_table(seeds)))
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


def chains_table(seeds: Sequence[Seed]) -> str:
    """In Markdown: answers in chains, in percent."""
    lines = [f"| constitution | revisions | {' | '.join(_OF_ROUNDS)} |", f"| --- | --- |{' --- |' * len(_OF_ROUNDS)}"]
    for name, rounds in seeds[0].chains.items():
        for round in range(len(rounds)):
            cells = [_cell([measure(seed.chains[name][round]) for seed in seeds]) for measure in _OF_ROUNDS.values()]
            lines.append(f"| {name} | {round} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(estimates: Sequence[Estimate | None]) -> str:
    return "{:.1f} ± {:.1f}".format(*interval([100 * estimate.value for estimate in estimates if estimate is not None]))


def _made(directory: Path, seed: int, overrides: Sequence[str]) -> dict[str, Path]:
    """Model directories, in the order of the tables."""
    whole = directory / "whole"
    given = [f"seed={seed}", *overrides]
    rlaif("run", _CONFIG, whole, *given)
    helpful = directory / "helpful"
    rlaif("sft", _CONFIG, helpful, "constitution=null", *given)
    print(f"{directory}: its models are there", flush=True)
    return {
        "given": whole / "models" / "initial",
        "SFT, helpful alone": helpful / "models" / "sft",
        "SL-CAI": whole / "models" / "sft",
        "RL-CAI": whole / "models" / "policy",
    }


class Respondent:
    """One engine that answers with any of the models, which have one shape."""

    def __init__(self, config: RunConfig) -> None:
        policy, rollout, constitution = config.policy, config.rollout, config.constitution
        assert constitution is not None
        self._longest = policy.max_answer_tokens
        self._engine = VllmRolloutEngine(
            str(RunDirectory(config.run_dir).model("policy")),
            dtype=policy.dtype,
            context_tokens=constitution.max_context_tokens,
            threads=rollout.resources.threads,
            kv_cache_gib=rollout.kv_cache_gib,
            gpu_memory_utilization=rollout.gpu_memory_utilization,
            enforce_eager=rollout.enforce_eager,
            trust_remote_code=False,
        )

    def load(self, model: Path) -> None:
        weights = read_weights(model)
        self._engine.begin_load()
        self._engine.take(weights.items())
        self._engine.finish_load(WeightVersion(0, fingerprint_of(weights), None, (), ()))

    def answers(self, prompts: Sequence[Prompt], seed: int) -> list[str]:
        """One answer a prompt, at temperature 1."""
        requests = sample_requests(prompts, 1, seed=seed, purpose="answer", temperature=1.0)
        rollouts = self._engine.generate([encoded(self._engine, request, self._longest) for request in requests])
        return decoded(self._engine, rollouts)

    def chains(self, prompts: Sequence[Prompt], config: RunConfig, principles: int, *, critique: bool) -> list[Chain]:
        """Revisions by the first so many principles, of which each seed has others."""
        constitution = config.constitution
        assert constitution is not None
        whole = load_constitution(constitution.principles)
        chosen = [whole[(config.seed + number) % len(whole)] for number in range(principles)]
        return converse(
            [
                RevisionChain(
                    prompt.id,
                    prompt,
                    constitution=chosen,
                    examples=(),
                    rounds=constitution.rounds,
                    critique=critique,
                    attempts=constitution.attempts,
                    temperature=constitution.temperature,
                    seed=config.seed,
                    max_answer_tokens=self._longest,
                    max_critique_tokens=constitution.max_critique_tokens,
                )
                for prompt in prompts
            ],
            VllmReplies(self._engine),
        )


def _measured(config: RunConfig, models: Mapping[str, Path], respondent: Respondent) -> Seed:
    assert config.constitution is not None
    red_team = read_prompts(config.constitution.prompts, config.seed).held_out
    prompts = [*read_prompts(config.prompts, config.seed).held_out, *red_team]
    gold, ids, seed = conduct_of(config.constitution.prompts), {prompt.id for prompt in red_team}, config.seed
    rates = {}
    for name, model in models.items():
        respondent.load(model)
        rates[name] = conduct_rates(prompts, respondent.answers(prompts, seed), ids, gold, seed=seed)
    respondent.load(models["given"])
    chains = {
        name: respondent.chains(red_team, config, principles, critique=critique)
        for name, (principles, critique) in _CONSTITUTIONS.items()
    }
    return Seed(rates, {name: chain_rates(drawn, gold, seed=seed) for name, drawn in chains.items()})


def _draw(seeds: Sequence[Seed], path: Path) -> None:
    """Rates of the models, and of the chains by round, with intervals over the seeds."""
    from plotly.subplots import make_subplots

    figure: Any = make_subplots(rows=2, subplot_titles=["answers of each model", "answers in the chains, by revisions"])
    for name, of_round in _OF_ROUNDS.items():
        models = {model: [_MEASURES[name](seed.models[model]) for seed in seeds] for model in seeds[0].models}
        rounds = {
            f"{constitution}, {n}": [of_round(seed.chains[constitution][n]) for seed in seeds]
            for constitution, each in seeds[0].chains.items()
            for n in range(len(each))
        }
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


if __name__ == "__main__":
    main()
