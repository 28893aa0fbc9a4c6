"""Who is asked what about a pair, and what it adds up to: judges, templates, principles, orders, the cascade.

A panel asks through a function that it is given, so the same code labels through a pool of actors, replays from a
ledger, estimates a cost, and gathers the requests of a batch file. It keeps no state but what each endpoint supports.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from rlaif_ray.config import EndpointConfig, JudgeConfig, UserError
from rlaif_ray.judge.aggregate import combine, opinion_of_orders, opinion_of_rubric, score_of_rubric
from rlaif_ray.judge.asking.ladder import NoCompletion
from rlaif_ray.judge.asking.modes import pair_steps
from rlaif_ray.judge.asking.pointwise import normalised, rubric_p, score_steps
from rlaif_ray.judge.asking.probe import probe
from rlaif_ray.judge.asking.replies import model_returned
from rlaif_ray.judge.asking.terms import Abilities, AskSettings, Mode
from rlaif_ray.judge.control import COIN_FLIP, flip_coin
from rlaif_ray.judge.ledger import NotInLedger
from rlaif_ray.judge.material import Criterion, Principle, draw, load_material
from rlaif_ray.judge.reading import Reading, ScoreReading
from rlaif_ray.judge.request import Answer, Request, Steps
from rlaif_ray.judge.templates import ScoreTemplate, Template, load_score_template, load_template
from rlaif_ray.records import (
    AnswerScore,
    AnswerToScore,
    Judgement,
    Opinion,
    Order,
    Outcome,
    Pair,
    Preference,
    Prompt,
    RubricScore,
)

T = TypeVar("T")

_RUBRIC_TEMPLATE = "rubric"


class Ask(Protocol):
    def __call__(self, judge: int, requests: Sequence[Request], purpose: str) -> Awaitable[Sequence[Answer]]:
        """The answers of one of `config.judges`, in order."""


@dataclass(frozen=True, slots=True)
class _Voice:
    """One member of an ensemble."""

    judge: int
    template: Template
    principle: Principle | None


@dataclass(frozen=True, slots=True)
class _Exchange:
    request: Request
    answer: Answer


class Panel:
    """Compares pairs and scores answers as one judge config says."""

    def __init__(self, config: JudgeConfig, seed: int, ask: Ask, *, assume: bool = False) -> None:
        """`assume`: an endpoint that cannot be asked what it supports is taken to support all.

        Raises UserError where a template or a file of examples, criteria, principles or a rubric is wrong.
        """
        self._config = config
        self._seed = seed
        self._ask = ask
        self._assume = assume
        self._judges = config.judges
        names = (config.template,) if isinstance(config.template, str) else config.template
        self._templates = [load_template(name) for name in names]
        self._score_template = load_score_template(config.score_template)
        self._rubric_template = load_score_template(_RUBRIC_TEMPLATE)
        self._material = load_material(
            examples=config.examples, criteria=config.criteria, rubric=config.rubric, principles=config.principles
        )
        for template in self._templates:
            template.require(self._material)
        _refuse_too_many(config.principles_per_pair, len(self._material.principles), config.principles)
        if self._score_template.rubric:
            raise UserError(
                f"judge.score_template: {config.score_template} asks about a rubric's criterion, and an answer alone "
                "is scored on the whole; name another template"
            )
        self._settings = AskSettings(
            min_label_mass=config.min_label_mass,
            samples=config.samples,
            sample_temperature=config.sample_temperature,
            rationale_tokens=config.rationale_tokens,
            clamp=config.clamp,
        )
        self._probes: dict[int, asyncio.Task[Abilities]] = {}

    async def compare(self, pair: Pair, purpose: str) -> Preference:
        """What the judges hold of a pair. Whatever `ask` raises goes through."""
        if self._config.control == COIN_FLIP:
            flips = [flip_coin(pair, order, self._seed, time.time()) for order in (Order.AB, Order.BA)]
            return combine(pair, [opinion_of_orders(flips, 1.0)], self._config.combine)
        first_judges = range(1 + len(self._config.ensemble))
        preference = await self._compare(pair, first_judges, purpose)
        cascade = self._config.cascade
        if cascade is not None and (preference.p is None or abs(preference.p - 0.5) < cascade.margin):
            preference = await self._escalate(preference, len(first_judges), purpose)
        if self._config.fallback is not None and preference.outcome is Outcome.OVER_BUDGET:
            preference = await self._escalate(preference, len(self._judges) - 1, purpose)
        return preference

    async def score(self, answer: AnswerToScore, purpose: str) -> AnswerScore:
        """The first judge's score of one answer, from 1 to 10, normalised to [-1, 1] (direct RLAIF, Lee et al. 2023,
        section 2.2.2)."""
        (principle,) = self._principles(answer.id, 1)
        template = self._score_template
        question = template.question(answer.prompt, answer.text, material=self._material, principle=principle)
        abilities = await self._abilities(0)
        reading, exchanges = await self._drive(0, score_steps(question, abilities, self._settings), purpose)
        judgement = self._scored(answer.id, Order.A, "", reading, exchanges, 0, template, principle)
        value = None if reading.score is None else normalised(reading.score, template.scale)
        return AnswerScore(reading.outcome, reading.reason, value, judgement)

    async def rubric(self, answer: AnswerToScore, purpose: str) -> RubricScore:
        """The first judge's scores of one answer by the criteria of `judge.rubric`."""
        (judgements,) = await self._by_criterion(answer.id, answer.prompt, ((Order.A, answer.text),), 0, purpose)
        weights = [criterion.weight for criterion in self._material.rubric]
        return score_of_rubric(judgements, weights, self._rubric_template.scale)

    async def _escalate(self, first: Preference, judge: int, purpose: str) -> Preference:
        earlier = (*first.set_aside, *first.opinions)
        second = await self._compare(first.pair, (judge,), purpose, set_aside=earlier)
        if second.p is None and first.p is not None:
            return combine(first.pair, first.opinions, self._config.combine, set_aside=second.opinions)
        return second

    async def _compare(
        self, pair: Pair, judges: Sequence[int], purpose: str, set_aside: Sequence[Opinion] = ()
    ) -> Preference:
        voices = [
            _Voice(judge, template, principle)
            for judge in judges
            for template in draw(self._templates, self._seed, f"templates/{pair.id}", self._config.templates_per_pair)
            for principle in self._principles(pair.id, self._config.principles_per_pair)
        ]
        if len(voices) == 1:  # nobody to wait for beside it, and a task for each pair adds up
            opinions = [await self._opinion(pair, voices[0], purpose)]
        else:
            opinions = await asyncio.gather(*(self._opinion(pair, voice, purpose) for voice in voices))
        return combine(pair, opinions, self._config.combine, set_aside)

    def _principles(self, key: str, count: int) -> Sequence[Principle | None]:
        principles = self._material.principles
        if not principles:
            return (None,)
        weights = [principle.weight for principle in principles]
        return draw(principles, self._seed, f"principles/{key}", count, weights)

    async def _opinion(self, pair: Pair, voice: _Voice, purpose: str) -> Opinion:
        weight = self._judges[voice.judge].weight
        abilities = await self._abilities(voice.judge)
        if not self._material.rubric:
            return opinion_of_orders(await self._verdicts(pair, voice, abilities, purpose), weight)
        shown = ((Order.A, pair.response_a), (Order.B, pair.response_b))
        a, b = await self._by_criterion(pair.id, pair.prompt, shown, voice.judge, purpose)
        weights = [criterion.weight for criterion in self._material.rubric]
        p = rubric_p(
            [judgement.score for judgement in a],
            [judgement.score for judgement in b],
            weights,
            self._config.rubric_temperature,
        )
        verdict = None
        if self._config.rubric_check:
            verdict = opinion_of_orders(await self._verdicts(pair, voice, abilities, purpose), weight)
        return opinion_of_rubric([*a, *b], p, verdict, weight)

    async def _verdicts(self, pair: Pair, voice: _Voice, abilities: Abilities, purpose: str) -> Sequence[Judgement]:
        """A judgement in each presentation order that is asked."""
        return await asyncio.gather(
            *(self._verdict(pair, order, voice, abilities, purpose) for order in self._orders(pair))
        )

    def _orders(self, pair: Pair) -> Sequence[Order]:
        if self._config.order_check >= 1.0:
            return (Order.AB, Order.BA)
        digest = hashlib.sha256(f"orders\0{self._seed}\0{pair.id}".encode()).digest()
        if int.from_bytes(digest[:8], "big") / 2**64 < self._config.order_check:
            return (Order.AB, Order.BA)
        return (Order.AB if digest[8] & 1 else Order.BA,)

    async def _verdict(self, pair: Pair, order: Order, voice: _Voice, abilities: Abilities, purpose: str) -> Judgement:
        question = voice.template.question(pair, order, material=self._material, principle=voice.principle)
        mode = resolved_mode(self._judges[voice.judge], abilities, voice.template)
        steps = pair_steps(mode, abilities, question, self._settings)
        reading, exchanges = await self._drive(voice.judge, steps, purpose)
        return self._judgement(pair.id, order, reading, exchanges, voice.judge, mode, voice.template, voice.principle)

    async def _by_criterion(
        self, id: str, prompt: Prompt, answers: Sequence[tuple[Order, str]], judge: int, purpose: str
    ) -> list[list[Judgement]]:
        """Of each answer, a judgement on each criterion of the rubric."""
        rubric, template = self._material.rubric, self._rubric_template
        abilities = await self._abilities(judge)

        async def judged(order: Order, answer: str, criterion: Criterion) -> Judgement:
            question = template.question(prompt, answer, material=self._material, criterion=criterion)
            reading, exchanges = await self._drive(judge, score_steps(question, abilities, self._settings), purpose)
            return self._scored(id, order, criterion.name, reading, exchanges, judge, template, None)

        judgements = await asyncio.gather(
            *(judged(order, answer, criterion) for order, answer in answers for criterion in rubric)
        )
        return [judgements[start : start + len(rubric)] for start in range(0, len(judgements), len(rubric))]

    async def _abilities(self, judge: int) -> Abilities:
        """What a judge's endpoint supports: asked once, and read from the ledger ever after."""
        endpoint = self._judges[judge]
        if endpoint.base_url is None or Mode(endpoint.mode) is Mode.CHOICE:
            return Abilities()
        task = self._probes.get(judge)
        if task is None:
            task = self._probes[judge] = asyncio.create_task(self._probed(judge))
        return await asyncio.shield(task)  # one pair that is given up must not end the probe for all

    async def _probed(self, judge: int) -> Abilities:
        endpoint = self._judges[judge]
        mode = Mode(endpoint.mode)
        try:
            return (await self._drive(judge, probe(mode), "probe"))[0]
        except NotInLedger:
            if mode is Mode.AUTO and not self._assume:
                raise
            return Abilities()
        except NoCompletion as failure:
            if failure.outcome is Outcome.OVER_BUDGET:
                return Abilities()  # nothing will be asked
            raise UserError(
                f"judge.base_url: {endpoint.model} at {endpoint.base_url} gives no answer that can be read "
                f"({failure}); check the address and the model with a plain chat completion"
            ) from None

    async def _drive(self, judge: int, steps: Steps[T], purpose: str) -> tuple[T, list[_Exchange]]:
        """Ask what a way of asking wants to know, until it has read its answer."""
        exchanges: list[_Exchange] = []
        try:
            requests = next(steps)
            while True:
                answers = await self._ask(judge, requests, purpose)
                exchanges.extend(map(_Exchange, requests, answers))
                requests = steps.send(answers)
        except StopIteration as end:
            return end.value, exchanges

    def _judgement(
        self,
        pair_id: str,
        order: Order,
        reading: Reading,
        exchanges: Sequence[_Exchange],
        judge: int,
        mode: Mode,
        template: Template | ScoreTemplate,
        principle: Principle | None,
        *,
        score: float | None = None,
        criterion: str = "",
    ) -> Judgement:
        replies = [exchange.answer.reply for exchange in exchanges if exchange.answer.reply is not None]
        costs = [reply.cost_usd for reply in replies if reply.cost_usd is not None]
        first = exchanges[0]
        return Judgement(
            pair_id=pair_id,
            order=order,
            outcome=reading.outcome,
            reason=reading.reason,
            p_first=reading.p_first,
            logprob_first=reading.logprob_first,
            logprob_second=reading.logprob_second,
            label_mass=reading.label_mass,
            censored=reading.censored,
            votes_first=reading.votes_first,
            votes_second=reading.votes_second,
            score=score,
            criterion=criterion,
            rung=reading.rung or "",
            rationale=reading.rationale,
            judge_prompt="\n\n".join(message.content for message in first.request.messages),
            raw_reply=replies[-1].text if replies else "",
            judge=self._judges[judge].model,
            model_returned=model_returned(replies[-1].text) if replies else "",
            mode=mode,
            temperature=first.request.temperature,
            seed=self._seed,
            template=template.name,
            template_hash=f"{template.hash}-{self._material.hash}",
            principle=None if principle is None else principle.id,
            ledger_keys=tuple(exchange.answer.key for exchange in exchanges),
            cache_hit=all(exchange.answer.cached for exchange in exchanges),
            attempts=sum(exchange.answer.attempts for exchange in exchanges),
            prompt_tokens=sum(reply.prompt_tokens for reply in replies),
            completion_tokens=sum(reply.completion_tokens for reply in replies),
            cost_usd=sum(costs) if costs else None,
            latency_s=sum(reply.latency_s for reply in replies),
            created_at=replies[-1].created_at if replies else time.time(),
        )

    def _scored(
        self,
        pair_id: str,
        order: Order,
        criterion: str,
        reading: ScoreReading,
        exchanges: Sequence[_Exchange],
        judge: int,
        template: ScoreTemplate,
        principle: Principle | None,
    ) -> Judgement:
        """A judgement on one answer alone."""
        said = Reading(
            reading.outcome, reading.reason, label_mass=reading.mass, rung=reading.rung, rationale=reading.rationale
        )
        return self._judgement(
            pair_id,
            order,
            said,
            exchanges,
            judge,
            Mode.CHOICE if exchanges[0].request.top_logprobs else Mode.STATED,
            template,
            principle,
            score=reading.score,
            criterion=criterion,
        )


def _refuse_too_many(asked: int, there: int, file: str | None) -> None:
    if file is not None and asked > there:
        raise UserError(f"judge.principles_per_pair ({asked}) exceeds the {there} principles of {file}")


def resolved_mode(endpoint: EndpointConfig, abilities: Abilities, template: Template) -> Mode:
    """The way that a pair is asked: what the config says, or the best that the endpoint supports, with reasoning
    where the template asks for it."""
    mode = Mode(endpoint.mode)
    if mode is not Mode.AUTO:
        return mode
    if not abilities.top_logprobs:
        return Mode.STATED
    return Mode.REASONED if template.reasons else Mode.CHOICE
