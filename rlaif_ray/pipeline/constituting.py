"""Constituting: the policy answers red-team prompts, and its answers are criticised and revised by principles."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from rlaif_ray.config import ConstitutionConfig
from rlaif_ray.constitution.chain import RevisionChain
from rlaif_ray.constitution.storage import read_chains, write_chains
from rlaif_ray.judge.material import load_constitution, load_revision_examples
from rlaif_ray.pipeline.comparing import one_answer_each
from rlaif_ray.pipeline.context import RunContext
from rlaif_ray.pipeline.steps import Constituted
from rlaif_ray.prompts import sample_requests
from rlaif_ray.records import Chain, Prompt, SampleRequest
from rlaif_ray.report.summary import ConstitutionSummary
from rlaif_ray.samples import Sample, read_samples, write_samples
from rlaif_ray.stages import ReviserPool

_CHAINS_A_FILE = 1_024


async def constitute(context: RunContext) -> Constituted:
    """Fill the run's directory of chains. What is there from before, answers and whole files of chains, is kept.

    Raises UserError where the constitution, its examples or a model cannot be used."""
    config, given = context.config.constitution, context.config.policy.model
    assert config is not None
    assert given is not None  # the config sees to both
    start = _starting(context, config)  # bad files are refused before anything is drawn
    prompts = context.red_team.train
    async with _reviser(context, "initial", given, "policy.model") as pool:
        held_out = one_answer_each(context, context.prompts.held_out, "evaluate-initial")
        await _answered(context, pool, "initial", held_out)
        if config.model is None:
            await _revise(context, pool, [start(prompt, None) for prompt in prompts])
        else:
            requests = sample_requests(
                prompts, 1, seed=context.config.seed, purpose="constitute", temperature=config.temperature
            )
            answers = await _answered(context, pool, "red-team", requests)
    if config.model is not None:
        async with _reviser(context, "reviser", config.model, "constitution.model") as pool:
            chains = [start(prompt, sample.answer) for prompt, sample in zip(prompts, answers, strict=True)]
            await _revise(context, pool, chains)
    return Constituted(constitution=_summary(read_chains(context.run.chains), config))


def _starting(context: RunContext, config: ConstitutionConfig) -> Callable[[Prompt, str | None], RevisionChain]:
    """A prompt's chain before anything is drawn: with its answer, or without."""
    constitution = load_constitution(config.principles)
    examples = () if config.examples is None else load_revision_examples(config.examples)

    def start(prompt: Prompt, answer: str | None) -> RevisionChain:
        return RevisionChain(
            prompt.id,
            prompt,
            constitution=constitution,
            examples=examples,
            rounds=config.rounds,
            critique=config.critique,
            attempts=config.attempts,
            temperature=config.temperature,
            seed=context.config.seed,
            max_answer_tokens=context.config.policy.max_answer_tokens,
            max_critique_tokens=config.max_critique_tokens,
            answer=answer,
        )

    return start


@asynccontextmanager
async def _reviser(context: RunContext, name: str, given: str, key: str) -> AsyncIterator[ReviserPool]:
    """Engines with a given model, of which the run keeps a copy."""
    directory = context.run.model(name)
    if not directory.exists():
        await context.runtime.keep_model(given, key, directory)
    pool = await context.runtime.revisers(directory)
    try:
        yield pool
    finally:
        pool.close()


async def _answered(
    context: RunContext, pool: ReviserPool, name: str, requests: Sequence[SampleRequest]
) -> list[Sample]:
    """One answer a request, drawn once."""
    file = context.run.samples(name)
    if not file.exists():
        _, samples = await context.answers(
            requests, lambda drawn: context.console.advance(drawn, len(requests), f"answers of {name}"), pool=pool
        )
        write_samples(file, samples)
    return read_samples(file)


async def _revise(context: RunContext, pool: ReviserPool, chains: Sequence[RevisionChain]) -> None:
    for number, start in enumerate(range(0, len(chains), _CHAINS_A_FILE)):
        file = context.run.chains / f"{number:04}.parquet"
        some = chains[start : start + _CHAINS_A_FILE]
        if not file.exists():
            drawn = await context.runtime.fetch(pool.converse(some))
            write_chains(file, [chain for shard in drawn for chain in shard])
        context.console.advance(start + len(some), len(chains), "chains of revisions")


def _summary(chains: Sequence[Chain], config: ConstitutionConfig) -> ConstitutionSummary:
    outcomes = Counter(revision.outcome.value for chain in chains for revision in chain.revisions)
    return ConstitutionSummary(
        chains=len(chains),
        rounds=config.rounds,
        revised=outcomes["revised"],
        unchanged=outcomes["unchanged"],
        confused=outcomes["confused"],
        truncated=outcomes["truncated"],
    )
