"""Constituting: the policy answers red-team prompts, and its answers are criticised and revised by principles."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from rlaif_ray.config import ConstitutionConfig, UserError
from rlaif_ray.constitution.chain import RevisionChain
from rlaif_ray.constitution.storage import read_chains, write_chains
from rlaif_ray.judge.material import load_constitution, load_revision_examples
from rlaif_ray.pipeline.comparing import one_answer_each
from rlaif_ray.pipeline.context import RunContext
from rlaif_ray.pipeline.steps import Constituted
from rlaif_ray.policy.given import has_chat_template
from rlaif_ray.prompts import sample_requests
from rlaif_ray.records import Chain, FinishReason, Prompt, SampleRequest
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
    async with _engines(context, "initial", given, "policy.model", converse=config.model is None) as pool:
        held_out = one_answer_each(context, context.prompts.held_out, "evaluate-initial")
        await _answered(context, pool, "initial", held_out)
        if config.model is None:
            await _revise(context, pool, [start(prompt) for prompt in prompts])
        else:
            requests = sample_requests(
                prompts, 1, seed=context.config.seed, purpose="constitute", temperature=config.temperature
            )
            answers = await _answered(context, pool, "red-team", requests)
    if config.model is not None:
        async with _engines(context, "reviser", config.model, "constitution.model", converse=True) as pool:
            chains = [start(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
            await _revise(context, pool, chains)
    return Constituted(constitution=_summary(read_chains(context.run.chains), config))


def _starting(context: RunContext, config: ConstitutionConfig) -> Callable[..., RevisionChain]:
    """What makes a prompt's chain: with an answer of another model, or before one is drawn."""
    constitution = load_constitution(config.principles)
    examples = () if config.examples is None else load_revision_examples(config.examples)

    def start(prompt: Prompt, answer: Sample | None = None) -> RevisionChain:
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
            answer=None if answer is None else answer.answer,
            cut_off=answer is not None and answer.finish_reason == FinishReason.LENGTH,
        )

    return start


@asynccontextmanager
async def _engines(
    context: RunContext, name: str, given: str, key: str, *, converse: bool
) -> AsyncIterator[ReviserPool]:
    """Engines with a given model, of which the run keeps a copy.

    Raises UserError where it is to converse and cannot."""
    directory = context.run.model(name)
    if not directory.exists():
        await context.runtime.keep_model(given, key, directory)
    trusted = context.config.policy.trust_remote_code
    if converse and not has_chat_template(directory, trust_remote_code=trusted):
        raise UserError(
            f"{key}={given}: its tokenizer has no chat template, so it cannot be asked to criticise its own answer; "
            "name a chat model"
        )
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
