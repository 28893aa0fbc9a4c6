"""The `rlaif` command. Parsing comes first and heavy imports after it, so that help is instant.

Exit codes: 0 done, 1 failed, 2 the user's input was wrong, 3 stopped by a budget or a guard with everything saved,
130 interrupted with everything saved. This is the one module of the library that may start actors.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rlaif_ray.config import RunConfig
    from rlaif_ray.doctor.examination import Node
    from rlaif_ray.labelling import Labelling
    from rlaif_ray.pipeline import Stage

app = typer.Typer(
    help="Align language models with AI feedback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_DEMO = Path(__file__).parent / "toyworld" / "demo.yaml"

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML config; scripts/configs/ holds examples.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys to set over the config, such as seed=1.")
]


@app.command()
def demo(overrides: Overrides = None) -> None:
    """Run the whole recipe in the toy world, on this machine alone."""
    _run(_DEMO, overrides, local=True)


@app.command()
def run(config: ConfigPath, overrides: Overrides = None) -> None:
    """Run the whole recipe. The same command again goes on where it stopped."""
    _run(config, overrides)


@app.command()
def constitute(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A YAML config; with --check, also a constitution or its examples.")
    ],
    overrides: Overrides = None,
    check: Annotated[bool, typer.Option("--check", help="Say what is wrong with the constitution, and stop.")] = False,
) -> None:
    """Have the policy criticise and revise its answers to red-team prompts by the principles of a constitution."""
    if check:
        _check_constitution(config, overrides)
    else:
        _run(config, overrides, "constitute")


@app.command()
def sft(config: ConfigPath, overrides: Overrides = None) -> None:
    """Teach the policy by demonstrations, or take the given model as it is."""
    _run(config, overrides, "sft")


@app.command()
def collect(config: ConfigPath, overrides: Overrides = None) -> None:
    """Draw answers from the SFT policy and have the judge compare them."""
    _run(config, overrides, "collect")


@app.command()
def fit_reward(config: ConfigPath, overrides: Overrides = None) -> None:
    """Fit the reward model on the collected preferences."""
    _run(config, overrides, "fit-reward")


@app.command()
def train(config: ConfigPath, overrides: Overrides = None) -> None:
    """Train the policy with PPO against the reward model."""
    _run(config, overrides, "train")


@app.command()
def dpo(config: ConfigPath, overrides: Overrides = None) -> None:
    """Train the policy on preferences, with no reward model."""
    _run(config, overrides, "dpo")


@app.command()
def evaluate(config: ConfigPath, overrides: Overrides = None) -> None:
    """Compare the trained policy with SFT on held-out prompts."""
    _run(config, overrides, "evaluate")


@app.command()
def report(config: ConfigPath, overrides: Overrides = None) -> None:
    """Write summary.json and report.html."""
    _run(config, overrides, "report")


@app.command()
def judge(
    pairs: Annotated[
        str, typer.Argument(metavar="PAIRS", help="JSONL, parquet, or a datasets name, with prompt and two responses.")
    ],
    judge_config: Annotated[
        Path, typer.Option("--judge", metavar="CONFIG", help="A config with a `judge` section; any run's will do.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The preferences to write, as parquet.")],
    overrides: Overrides = None,
    use: Annotated[
        Literal["reward", "dpo"],
        typer.Option(help="What they are for: `dpo` leaves out ties and pairs whose orders disagree."),
    ] = "reward",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate calls and cost, and ask nobody.")] = False,
    batch_out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Ask nobody: write OpenAI batch files of the next calls.")
    ] = None,
    batch_in: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Read a batch's output or error file first; repeatable.")
    ] = None,
) -> None:
    """Label a file of pairs. The same command again goes on where it stopped."""
    from rlaif_ray.config import load_judge_config
    from rlaif_ray.job import refuse_relative_outputs
    from rlaif_ray.judge.pair_files import PairFile
    from rlaif_ray.labelling import Labelling

    with _ending_well():
        settings = load_judge_config(judge_config, overrides or ())
        refuse_relative_outputs({"--out": out, "--batch-out": batch_out, "judge.ledger": settings.judge.ledger})
        labelling = Labelling(settings, PairFile(pairs), out, use)
        if batch_in:
            print("\n".join(labelling.take_batches(batch_in)))
        if dry_run:
            print("\n".join(labelling.estimate()))
        elif batch_out is not None:
            print("\n".join(labelling.write_batches(batch_out)))
        else:
            _label(labelling)


@app.command()
def export(
    preferences: Annotated[
        str, typer.Argument(metavar="PREFERENCES", help="A preference file of a run or a labelling, or a full export.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The .parquet or .jsonl file to write.")],
    form: Annotated[
        Literal["trl", "full"],
        typer.Option(help="`trl`: the columns that TRL's trainers read, without ties; `full`: every row and column."),
    ] = "trl",
    conversational: Annotated[
        bool, typer.Option("--conversational", help="Write texts as lists of messages, as chat models take them.")
    ] = False,
) -> None:
    """Write preferences for other tools."""
    from rlaif_ray.job import refuse_relative_outputs
    from rlaif_ray.preferences.export import export_preferences

    refuse_relative_outputs({"--out": out})
    print(export_preferences(preferences, out, form, conversational=conversational))


@app.command()
def doctor(config: ConfigPath, overrides: Overrides = None) -> None:
    """Say what each actor of a run will get here, and whether the run can go. Starts nothing."""
    from rlaif_ray.config import load_config
    from rlaif_ray.doctor.examination import cautions, loads, obstacles, sharing
    from rlaif_ray.doctor.page import page, show
    from rlaif_ray.doctor.plan import actor_plan

    settings = load_config(config, overrides or ())
    nodes, plan = _nodes(), actor_plan(settings)
    found = obstacles(settings, plan, nodes)
    show(page(nodes, plan, loads(plan, nodes), sharing(plan, nodes), cautions(settings, plan, nodes), found))
    if found:
        raise typer.Exit(2)


@app.command()
def serve_reward(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A reward model, or an ensemble, such as RUN/models/reward.")
    ],
    overrides: Overrides = None,
) -> None:
    """Serve a reward model over HTTP, until Ctrl-C."""
    from rlaif_ray.config import load_serve_config

    config = load_serve_config(overrides or ())

    import asyncio

    from actors.reward_server import serve_reward  # noqa: TID251
    from actors.session import ray_session  # noqa: TID251

    with _ending_well(), ray_session(local=False):
        asyncio.run(serve_reward(directory, config, lambda line: print(line, flush=True)))


def main(command: str | None = None) -> None:
    """The console command, or the one of its commands that a job's entry point stands for."""
    from rlaif_ray.config import UserError

    try:
        app(sys.argv[1:] if command is None else [command, *sys.argv[1:]], prog_name="rlaif")
    except UserError as error:
        print(f"rlaif: {error}", file=sys.stderr)
        sys.exit(2)


def _nodes() -> list[Node]:
    """Those of the cluster that the environment names, else this machine."""
    if "RAY_ADDRESS" not in os.environ:
        from rlaif_ray.doctor.machine import this_machine

        return [this_machine()]
    from actors.session import cluster_nodes, ray_session  # noqa: TID251

    with ray_session(local=False):
        return cluster_nodes()


def _check_constitution(path: Path, overrides: Sequence[str] | None) -> None:
    """Of a config, the files that it names; of anything else, the file itself."""
    from rlaif_ray.config import UserError, holds_config, load_config
    from rlaif_ray.constitution.checking import check, check_constitution, check_examples, lines

    if holds_config(path):
        constitution = load_config(path, overrides or ()).constitution
        if constitution is None:
            raise UserError(f"{path} has no constitution; give it a section of that name, or name a file of principles")
        found = [check_constitution(constitution.principles)]
        if constitution.examples is not None:
            found.append(check_examples(constitution.examples))
    else:
        found = [check(str(path))]
    print("\n\n".join("\n".join(lines(one)) for one in found))
    if any(one.errors for one in found):
        raise typer.Exit(2)


@contextmanager
def _ending_well() -> Iterator[None]:
    """Turns what ends a run into its exit code. Everything is saved by then."""
    from asyncio import CancelledError

    from rlaif_ray.config import Stopped

    try:
        yield
    except (KeyboardInterrupt, CancelledError):
        print("rlaif: interrupted; the same command goes on where it stopped", file=sys.stderr)
        raise typer.Exit(130) from None
    except Stopped as stop:
        print(f"rlaif: stopped: {stop}", file=sys.stderr)
        raise typer.Exit(3) from None


def _label(labelling: Labelling) -> None:
    import asyncio

    from actors.exporting import LogExport  # noqa: TID251
    from actors.judge import start_judges  # noqa: TID251
    from actors.session import ray_session, stoppable  # noqa: TID251
    from rlaif_ray.console import Console
    from rlaif_ray.metrics.following import followed

    run = labelling.run

    async def label() -> list[str]:
        async with followed(run.path, [LogExport(run)], console.say):
            judges = await start_judges(
                labelling.config.judge, seed=labelling.config.seed, run=run.id, ledger_path=run.ledger
            )
            return await labelling.label(judges, console)

    with Console(stages=1) as console, ray_session(local=False) as dashboard:
        if dashboard is not None:
            console.say(f"Ray dashboard: {dashboard}")
        lines = asyncio.run(stoppable(label()))
    print("\n".join(lines))


def _run(path: Path, overrides: Sequence[str] | None, only: str | None = None, *, local: bool = False) -> None:
    from rlaif_ray.config import load_config
    from rlaif_ray.job import refuse_relative_outputs

    config = load_config(path, overrides or ())
    refuse_relative_outputs({"run_dir": config.run_dir, "judge.ledger": config.judge.ledger})
    if _already_finished(config, only):
        return
    with _ending_well():
        _run_stages(config, only, local=local)


def _already_finished(config: RunConfig, only: str | None) -> bool:
    """Whether a whole run stands in the directory; says so, and how to start afresh."""
    from rlaif_ray.report.summary import closing_lines, read_summary
    from rlaif_ray.rundir import RunDirectory

    directory = RunDirectory(config.run_dir)
    if only is not None or not directory.summary.exists():
        return False
    directory.open(config)
    print("\n".join(closing_lines(read_summary(directory.path))))
    print(f"This run is finished. To start afresh, remove {directory.path} or set run_dir=ANOTHER or seed=ANOTHER.")
    return True


def _run_stages(config: RunConfig, only: str | None, *, local: bool) -> None:
    import asyncio

    from actors.exporting import LogExport  # noqa: TID251
    from actors.runtime import RayRuntime  # noqa: TID251
    from actors.session import ray_session, stoppable  # noqa: TID251
    from rlaif_ray.console import Console
    from rlaif_ray.metrics.following import followed
    from rlaif_ray.metrics.trackers import trackers_of
    from rlaif_ray.pipeline import Pipeline, Stage, steps_of
    from rlaif_ray.report.summary import Summary, closing_lines
    from rlaif_ray.rundir import RunDirectory

    stage: Stage | None = None if only is None else Stage(only)
    trackers = trackers_of(config)
    run = RunDirectory(config.run_dir)

    async def go(pipeline: Pipeline) -> Summary | None:
        async with followed(run.path, [LogExport(run), *trackers], console.say):
            return await pipeline.run(stage)

    with (
        Console(stages=len(steps_of(config)) if stage is None else 1) as console,
        ray_session(local=local) as dashboard,
    ):
        console.say(f"Run directory: {config.run_dir.resolve()}")
        if dashboard is not None:
            console.say(f"Ray dashboard: {dashboard}")
        runtime = RayRuntime(config, say=console.say)
        summary = asyncio.run(stoppable(go(Pipeline(config, runtime, console))))
    if summary is not None and stage in (None, Stage.REPORT):
        print("\n".join(closing_lines(summary)))
