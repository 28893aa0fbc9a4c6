import asyncio
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from judge_records import pair
from scripted_judge import FAILED, OVER_BUDGET, REFUSED, chat

from rlaif_ray.config import JudgeConfig, UserError
from rlaif_ray.judge.ledger import NotInLedger
from rlaif_ray.judge.panel import Panel
from rlaif_ray.judge.request import Answer, Form, Reply, Request, call_key
from rlaif_ray.records import AnswerToScore, Order, Outcome, Prompt

ADDRESS = "http://127.0.0.1:1/v1"
SECOND = {"model": "second", "base_url": ADDRESS, "mode": "choice"}

RUBRIC = [
    {"name": "right", "weight": 3, "question": "Is it right?", "levels": dict.fromkeys(range(1, 6), "So.")},
    {"name": "clear", "weight": 1, "question": "Is it clear?", "levels": dict.fromkeys(range(1, 6), "So.")},
]

Mind = Callable[[int, Request], str | Answer]


class Judges:
    """Answers as its mind says, and notes what was asked. Each reply is 10 + 2 tokens for $0.5, in a quarter second."""

    def __init__(self, mind: Mind, *, cached: Callable[[Request], bool] = lambda request: False) -> None:
        self._mind = mind
        self._cached = cached
        self.asked: list[tuple[int, Request, str]] = []

    async def __call__(self, judge: int, requests: Sequence[Request], purpose: str) -> list[Answer]:
        await asyncio.sleep(0)
        self.asked.extend((judge, request, purpose) for request in requests)
        return [self._answer(judge, request) for request in requests]

    def count(self, judge: int, purpose: str = "judge") -> int:
        return sum(asked[0] == judge and asked[2] == purpose for asked in self.asked)

    def _answer(self, judge: int, request: Request) -> Answer:
        said = self._mind(judge, request)
        key = call_key(str(judge), "", request)
        if isinstance(said, Answer):
            return dataclasses.replace(said, key=key)
        cached = self._cached(request)
        return Answer(key, Reply(said, 10, 2, 0.5, 0.25, 7.0), cached=cached, attempts=0 if cached else 2)


def config(**changes: Any) -> JudgeConfig:
    return JudgeConfig.model_validate({"model": "first", "base_url": ADDRESS, "mode": "choice", **changes})


def panel(mind: Mind, seed: int = 0, **changes: Any) -> tuple[Panel, Judges]:
    judges = Judges(mind)
    return Panel(config(**changes), seed, judges), judges


def words(request: Request) -> str:
    return "\n".join(message.content for message in request.messages)


def shows_a_first(request: Request) -> bool:
    text = words(request)
    return text.index("answer a") < text.index("answer b")


def chosen(p_first: float) -> str:
    """A choice between 1 and 2 with this probability for the one shown first, and a little for something else."""
    return chat("1" if p_first > 0.5 else "2", {"1": 0.98 * p_first, "2": 0.98 * (1 - p_first), "x": 0.01})


def prefers(p: float) -> Callable[[Request], str]:
    """Says that response_a is better with probability p, wherever it stands."""
    return lambda request: chosen(p if shows_a_first(request) else 1 - p)


def says(*p: float) -> Mind:
    """Each judge's own probability that response_a is better."""
    return lambda judge, request: prefers(p[judge])(request)


def at_a_loss(request: Request) -> str:
    """No label is listed, and the words are no verdict."""
    return chat("Hm.", {"Hm": 0.9, "x": 0.05})


async def test_both_orders_are_asked_and_averaged() -> None:
    """(.9 + 1 - .3) / 2 = .8."""
    asking, judges = panel(lambda judge, request: chosen(0.9 if shows_a_first(request) else 0.3))
    preference = await asking.compare(pair(), "judge")
    assert preference.p == pytest.approx(0.8)
    assert preference.consistent is True
    assert [(one.order, one.p_first) for one in preference.judgements] == [
        (Order.AB, pytest.approx(0.9)),
        (Order.BA, pytest.approx(0.3)),
    ]
    assert judges.count(0) == len(judges.asked) == 2


async def test_a_judge_that_leans_to_a_place_is_inconsistent() -> None:
    """(.9 + 1 - .8) / 2 = .55, and each order names the answer that it shows first."""
    asking, _ = panel(lambda judge, request: chosen(0.9 if shows_a_first(request) else 0.8))
    preference = await asking.compare(pair(), "judge")
    assert preference.p == pytest.approx(0.55)
    assert preference.consistent is False


async def test_a_lower_order_check_asks_a_seeded_share_in_both_orders() -> None:
    async def drawn(seed: int) -> dict[str, list[Order]]:
        asking, _ = panel(lambda judge, request: chosen(0.7), seed, order_check=0.25)
        preferences = [await asking.compare(pair(number), "judge") for number in range(400)]
        for preference in preferences:
            orders = [one.order for one in preference.judgements]
            # With .7 for whichever is first: 1/2 over both orders, .7 or .3 in one.
            expected = {Order.AB: 0.7, Order.BA: 0.3}[orders[0]] if len(orders) == 1 else 0.5
            assert preference.p == pytest.approx(expected)
            assert preference.consistent is (False if len(orders) == 2 else None)
        return {preference.pair.id: [one.order for one in preference.judgements] for preference in preferences}

    orders = await drawn(0)
    counts = Counter(map(tuple, orders.values()))
    # Of 400, 100 in both orders and 150 in either one; five standard deviations are 44 and 49.
    assert 56 < counts[Order.AB, Order.BA] < 144
    assert 101 < counts[Order.AB,] < 199
    assert 101 < counts[Order.BA,] < 199
    assert await drawn(0) == orders
    assert await drawn(1) != orders


async def test_templates_and_principles_are_drawn_by_seed_and_pair() -> None:
    names = ("quality", "helpfulness", "harmlessness")

    async def drawn(seed: int) -> list[set[tuple[str, str | None]]]:
        asking, judges = panel(
            says(0.8), seed, template=names, templates_per_pair=2, principles="principles", principles_per_pair=3
        )
        preferences = [await asking.compare(pair(number), "judge") for number in range(30)]
        assert judges.count(0) == 30 * 2 * 3 * 2
        for preference in preferences:
            assert len(preference.opinions) == 6
            assert preference.p == pytest.approx(0.8)
            for opinion in preference.opinions:
                assert {one.template for one in opinion.judgements} == {opinion.template}
                assert {one.principle for one in opinion.judgements} == {opinion.principle}
        return [{(each.template, each.principle) for each in preference.opinions} for preference in preferences]

    first = await drawn(0)
    assert all(len({template for template, _ in voices}) == 2 for voices in first)
    assert all(len({principle for _, principle in voices}) == 3 for voices in first)
    assert {template for voices in first for template, _ in voices} == set(names)
    assert await drawn(0) == first
    assert await drawn(1) != first


async def test_the_judge_reads_the_principle_that_its_judgement_names(tmp_path: Path) -> None:
    path = tmp_path / "principles.yaml"
    path.write_text("- {id: brief, text: Prefer the shorter.}\n- {id: kind, text: Prefer the kinder.}\n")
    asking, _ = panel(says(0.8), principles=str(path))
    seen = set()
    for number in range(20):
        (opinion,) = (await asking.compare(pair(number), "judge")).opinions
        assert opinion.principle is not None
        text = {"brief": "Prefer the shorter.", "kind": "Prefer the kinder."}
        assert all(text[opinion.principle] in one.judge_prompt for one in opinion.judgements)
        seen.add(opinion.principle)
    assert seen == {"brief", "kind"}


@pytest.mark.parametrize(
    ("combine", "p"),
    [
        # Log-odds of .8 are ln 4, of .5 they are 0: (1 ln 4 + 3 * 0) / 4 is ln sqrt(2), so odds of sqrt(2) to 1.
        ("log_odds", math.sqrt(2) / (1 + math.sqrt(2))),
        # A vote for a of weight 1, and half of one of weight 3.
        ("vote", 2.5 / 4),
    ],
)
async def test_an_ensemble_weighs_its_judges(combine: str, p: float) -> None:
    asking, judges = panel(says(0.8, 0.5), ensemble=[{**SECOND, "weight": 3}], combine=combine)
    preference = await asking.compare(pair(), "judge")
    assert preference.p == pytest.approx(p)
    assert [(each.judge, each.weight, each.p) for each in preference.opinions] == [
        ("first", 1.0, pytest.approx(0.8)),
        ("second", 3.0, pytest.approx(0.5)),
    ]
    assert (judges.count(0), judges.count(1)) == (2, 2)


async def test_a_member_without_a_number_is_kept_and_counts_for_nothing() -> None:
    asking, _ = panel(lambda judge, request: (prefers(0.8), at_a_loss)[judge](request), ensemble=[SECOND])
    preference = await asking.compare(pair(), "judge")
    assert preference.p == pytest.approx(0.8)
    assert [each.outcome for each in preference.opinions] == [Outcome.SCORED, Outcome.ABSTAINED]


async def test_a_cascade_sends_on_what_the_first_judge_finds_hard() -> None:
    asking, judges = panel(says(0.55, 0.9), cascade={"judge": SECOND, "margin": 0.1})
    preference = await asking.compare(pair(), "judge")
    assert preference.p == pytest.approx(0.9)
    assert [each.judge for each in preference.opinions] == ["second"]
    assert [(each.judge, each.p) for each in preference.set_aside] == [("first", pytest.approx(0.55))]
    assert (judges.count(0), judges.count(1)) == (2, 2)


async def test_a_cascade_spares_the_second_judge_what_the_first_is_sure_of() -> None:
    asking, judges = panel(says(0.65, 0.1), cascade={"judge": SECOND, "margin": 0.1})
    preference = await asking.compare(pair(), "judge")
    assert preference.p == pytest.approx(0.65)
    assert not preference.set_aside
    assert judges.count(1) == 0


async def test_a_cascade_sends_on_what_the_first_judge_cannot_score() -> None:
    asking, _ = panel(lambda judge, request: (at_a_loss, prefers(0.9))[judge](request), cascade={"judge": SECOND})
    preference = await asking.compare(pair(), "judge")
    assert preference.p == pytest.approx(0.9)
    assert [each.outcome for each in preference.set_aside] == [Outcome.ABSTAINED]


@pytest.mark.parametrize("second", [REFUSED, FAILED, OVER_BUDGET])
async def test_a_second_judge_without_a_number_leaves_the_firsts(second: Answer) -> None:
    asking, _ = panel(
        lambda judge, request: second if judge else prefers(0.55)(request), cascade={"judge": SECOND, "margin": 0.1}
    )
    preference = await asking.compare(pair(), "judge")
    assert preference.p == pytest.approx(0.55)
    assert [each.judge for each in preference.opinions] == ["first"]
    assert [(each.judge, each.outcome) for each in preference.set_aside] == [("second", second.no_reply)]


async def test_the_fallback_takes_over_when_the_budget_is_spent() -> None:
    fallback = {"model": "local", "mode": "choice"}
    asking, _ = panel(
        lambda judge, request: prefers(0.9)(request) if judge else OVER_BUDGET, fallback=fallback, when_spent="fallback"
    )
    preference = await asking.compare(pair(), "judge")
    assert preference.p == pytest.approx(0.9)
    assert [each.judge for each in preference.opinions] == ["local"]
    assert [each.outcome for each in preference.set_aside] == [Outcome.OVER_BUDGET]


async def test_the_fallback_is_for_the_budget_alone() -> None:
    fallback = {"model": "local", "mode": "choice"}
    asking, judges = panel(
        lambda judge, request: prefers(0.9)(request) if judge else FAILED, fallback=fallback, when_spent="fallback"
    )
    preference = await asking.compare(pair(), "judge")
    assert (preference.outcome, preference.p) == (Outcome.FAILED, None)
    assert judges.count(1) == 0


async def test_no_judgement_is_lost_on_the_way_to_the_fallback() -> None:
    """The first judge abstains, the cascade's cannot be paid, the fallback gives the number."""
    asking, _ = panel(
        lambda judge, request: (at_a_loss(request), OVER_BUDGET, prefers(0.9)(request))[judge],
        cascade={"judge": SECOND},
        fallback={"model": "local"},
        when_spent="fallback",
    )
    preference = await asking.compare(pair(), "judge")
    assert preference.p == pytest.approx(0.9)
    assert [(each.judge, each.outcome) for each in preference.set_aside] == [
        ("first", Outcome.ABSTAINED),
        ("second", Outcome.OVER_BUDGET),
    ]
    assert len(preference.judgements) == 6


def endpoint(logprobs: bool) -> Mind:
    """An API that obeys in every form, and lists log-probabilities or does not."""

    def mind(judge: int, request: Request) -> str:
        first = "answer a" not in words(request) or shows_a_first(request)
        label = "1" if first else "2"
        if request.form is Form.SCHEMA:
            return chat(f'{{"reasoning": "It is longer.", "verdict": "{label}"}}')
        if request.max_tokens > 100:
            return chat("It is longer.")
        return chosen(0.9 if first else 0.1) if logprobs and request.top_logprobs else chat(label)

    return mind


@pytest.mark.parametrize(
    ("logprobs", "template", "mode", "p"),
    [
        (True, "quality", "choice", 0.9),
        (True, "quality-cot", "reasoned", 0.9),
        # One vote for a in each order: (1 + 1/2) / (1 + 1).
        (False, "quality", "stated", 0.75),
        (False, "quality-cot", "stated", 0.75),
    ],
)
async def test_auto_probes_once_and_takes_the_best(logprobs: bool, template: str, mode: str, p: float) -> None:
    asking, judges = panel(endpoint(logprobs), mode="auto", template=template)
    preferences = await asyncio.gather(*(asking.compare(pair(number), "judge") for number in range(20)))
    assert {one.mode for preference in preferences for one in preference.judgements} == {mode}
    assert [preference.p for preference in preferences] == [pytest.approx(p)] * 20
    probing = [request for _, request, purpose in judges.asked if purpose == "probe"]
    assert len(probing) == len(set(probing)) > 0
    assert (len(probing) == 1) is logprobs
    assert judges.count(0) == 40 * (2 if mode == "reasoned" else 1)


@pytest.mark.parametrize("changes", [{"mode": "choice"}, {"mode": "auto", "base_url": None}])
async def test_what_is_known_is_not_probed(changes: dict[str, Any]) -> None:
    asking, judges = panel(endpoint(True), **changes)
    await asking.compare(pair(), "judge")
    assert judges.count(0, "probe") == 0
    assert judges.count(0) == 2


async def test_each_judge_is_asked_by_its_own_probe() -> None:
    asking, judges = panel(
        lambda judge, request: endpoint(judge == 0)(judge, request),
        mode="auto",
        ensemble=[{**SECOND, "mode": "auto"}],
    )
    (first, second) = (await asking.compare(pair(), "judge")).opinions
    assert [one.mode for opinion in (first, second) for one in opinion.judgements] == ["choice"] * 2 + ["stated"] * 2
    assert judges.count(0, "probe") == 1


async def test_an_endpoint_that_answers_nothing_is_one_clear_sentence() -> None:
    asking, _ = panel(lambda judge, request: FAILED, mode="auto")
    with pytest.raises(UserError, match=r"judge\.base_url: first at http://127.0.0.1:1/v1 gives no answer") as error:
        await asking.compare(pair(), "judge")
    assert "timed out 6 times" in str(error.value)


async def test_a_probe_that_cannot_be_paid_leaves_pairs_over_budget() -> None:
    asking, _ = panel(lambda judge, request: OVER_BUDGET, mode="auto")
    preference = await asking.compare(pair(), "judge")
    assert (preference.outcome, preference.p) == (Outcome.OVER_BUDGET, None)
    assert "the budget is spent" in preference.reason


@pytest.mark.parametrize("assume", [True, False])
async def test_an_endpoint_that_was_not_probed_is_assumed_to_support_all_where_so_said(assume: bool) -> None:
    def mind(judge: int, request: Request) -> str:
        if "answer a" not in words(request):
            raise NotInLedger("no probe")
        return prefers(0.8)(request)

    asking = Panel(config(mode="auto"), 0, Judges(mind), assume=assume)
    if assume:
        assert (await asking.compare(pair(), "judge")).p == pytest.approx(0.8)
    else:
        with pytest.raises(NotInLedger):
            await asking.compare(pair(), "judge")


def rubric(tmp_path: Path) -> str:
    path = tmp_path / "rubric.yaml"
    path.write_text(yaml.safe_dump(RUBRIC))
    return str(path)


def marks(scores: dict[tuple[str, str], int], verdict: str | Answer = "") -> Mind:
    """A judge that gives each answer these scores on each criterion, and a pair this verdict."""

    def mind(judge: int, request: Request) -> str | Answer:
        text = words(request)
        if "answer a" in text and "answer b" in text:
            return verdict
        score = scores["a" if "answer a" in text else "b", "right" if "Is it right?" in text else "clear"]
        return chat(str(score), {str(score): 1.0})

    return mind


SCORES = {("a", "right"): 5, ("a", "clear"): 2, ("b", "right"): 3, ("b", "clear"): 4}


@pytest.mark.parametrize("temperature", [1.0, 4.0])
async def test_a_rubric_scores_each_answer_on_each_criterion(tmp_path: Path, temperature: float) -> None:
    """(3 (5 - 3) + 1 (2 - 4)) / (3 + 1) = 1, so p is sigma(1 / temperature)."""
    asking, judges = panel(marks(SCORES), rubric=rubric(tmp_path), rubric_temperature=temperature)
    preference = await asking.compare(pair(), "judge")
    assert preference.p == pytest.approx(1 / (1 + math.exp(-1 / temperature)))
    assert preference.consistent is None
    assert [(one.order, one.criterion, one.score) for one in preference.judgements] == [
        (Order.A, "right", 5),
        (Order.A, "clear", 2),
        (Order.B, "right", 3),
        (Order.B, "clear", 4),
    ]
    assert {one.p_first for one in preference.judgements} == {None}
    assert {one.template for one in preference.judgements} == {"rubric"}
    assert preference.opinions[0].contradiction is None
    assert judges.count(0) == 4


@pytest.mark.parametrize(
    ("verdict", "contradiction"), [(prefers(0.9), False), (prefers(0.2), True), (lambda request: FAILED, None)]
)
async def test_a_rubric_is_checked_against_the_verdict(
    tmp_path: Path, verdict: Callable[[Request], str | Answer], contradiction: bool | None
) -> None:
    def mind(judge: int, request: Request) -> str | Answer:
        text = words(request)
        both = "answer a" in text and "answer b" in text
        return verdict(request) if both else marks(SCORES)(judge, request)

    asking, _ = panel(mind, rubric=rubric(tmp_path), rubric_check=True)
    (opinion,) = (await asking.compare(pair(), "judge")).opinions
    assert opinion.contradiction is contradiction
    assert opinion.p == pytest.approx(1 / (1 + math.exp(-1)))
    assert len(opinion.judgements) == 6


async def test_a_rubric_with_a_missing_score_has_no_number(tmp_path: Path) -> None:
    def mind(judge: int, request: Request) -> str | Answer:
        text = words(request)
        return FAILED if "answer b" in text and "Is it clear?" in text else marks(SCORES)(judge, request)

    asking, _ = panel(mind, rubric=rubric(tmp_path))
    preference = await asking.compare(pair(), "judge")
    assert (preference.outcome, preference.p) == (Outcome.FAILED, None)
    assert preference.reason == "order b: timed out 6 times"


async def test_an_answer_alone_is_scored_by_the_rubric(tmp_path: Path) -> None:
    """5 and 2 on a scale of 1 to 5 are 1 and -.5; their mean with the weights 3 and 1 is 2.5 / 4."""
    asking, judges = panel(marks(SCORES), rubric=rubric(tmp_path))
    score = await asking.rubric(AnswerToScore("answer-1", Prompt("prompt", "Say it."), "answer a"), "reward")
    assert (score.outcome, score.value) == (Outcome.SCORED, pytest.approx(0.625))
    assert score.criteria == {"right": pytest.approx(1.0), "clear": pytest.approx(-0.5)}
    assert [(one.pair_id, one.order, one.criterion, one.score) for one in score.judgements] == [
        ("answer-1", Order.A, "right", 5),
        ("answer-1", Order.A, "clear", 2),
    ]
    assert judges.count(0, "reward") == 2


async def test_an_answer_without_a_mark_on_one_criterion_has_no_score(tmp_path: Path) -> None:
    """The other mark stands."""

    def mind(judge: int, request: Request) -> str | Answer:
        return OVER_BUDGET if "Is it clear?" in words(request) else marks(SCORES)(judge, request)

    asking, _ = panel(mind, rubric=rubric(tmp_path))
    score = await asking.rubric(AnswerToScore("answer-1", Prompt("prompt", "Say it."), "answer a"), "reward")
    assert (score.outcome, score.value) == (Outcome.OVER_BUDGET, None)
    assert score.reason == "clear: the budget is spent"
    assert score.criteria == {"right": pytest.approx(1.0), "clear": None}


async def test_an_answer_alone_is_scored_from_1_to_10() -> None:
    """7 and 9 with equal weights are 8: 2 (8 - 1) / 9 - 1 = 5/9."""
    asking, judges = panel(lambda judge, request: chat("7", {"7": 0.45, "9": 0.45, "x": 0.1}))
    score = await asking.score(AnswerToScore("answer-1", Prompt("prompt", "Say it."), "So it is."), "reward")
    assert (score.outcome, score.value) == (Outcome.SCORED, pytest.approx(5 / 9))
    assert (score.judgement.pair_id, score.judgement.order) == ("answer-1", Order.A)
    assert score.judgement.score == pytest.approx(8)
    assert score.judgement.label_mass == pytest.approx(0.9)
    assert score.judgement.template == "quality-score"
    assert judges.count(0, "reward") == 1


@pytest.mark.parametrize("answer", [FAILED, OVER_BUDGET, REFUSED])
async def test_a_score_that_did_not_come_is_no_number(answer: Answer) -> None:
    asking, _ = panel(lambda judge, request: answer)
    score = await asking.score(AnswerToScore("answer-1", Prompt("prompt", "Say it."), "So it is."), "reward")
    assert (score.outcome, score.value, score.judgement.score) == (answer.no_reply, None, None)
    assert answer.reason in score.reason


async def test_the_coin_flip_asks_nobody() -> None:
    asking, judges = panel(says(0.9), control="coin_flip")
    values = [(await asking.compare(pair(number), "judge")).p for number in range(100)]
    assert set(values) == {0.0, 0.5, 1.0}
    assert not judges.asked


async def test_a_judgement_tells_all_that_led_to_it() -> None:
    """Two calls an order: the reasoning, and the choice on it."""
    judges = Judges(endpoint(True))
    asking = Panel(config(mode="reasoned", template="quality-cot"), 3, judges)
    preference = await asking.compare(pair(), "judge")
    for order, one in zip((Order.AB, Order.BA), preference.judgements, strict=True):
        reason, choice = (
            request for _, request, purpose in judges.asked if purpose == "judge" and of_order(request) is order
        )
        first = 0.9 if order is Order.AB else 0.1
        assert (one.pair_id, one.order, one.outcome, one.reason) == ("pair-0", order, Outcome.SCORED, "")
        assert one.p_first == pytest.approx(first)
        assert one.logprob_first == pytest.approx(math.log(0.98 * first))
        assert one.logprob_second == pytest.approx(math.log(0.98 * (1 - first)))
        assert one.label_mass == pytest.approx(0.98)
        assert (one.censored, one.votes_first, one.votes_second) == (False, None, None)
        assert (one.score, one.criterion, one.principle) == (None, "", None)
        assert (one.rung, one.rationale) == ("logprobs", "It is longer.")
        assert all(text in one.judge_prompt for text in ("Say 0", "answer a 0", "answer b 0", "Rationale:"))
        assert one.raw_reply == chosen(first)
        assert (one.judge, one.model_returned, one.mode) == ("first", "m-2026 fp", "reasoned")
        assert (one.temperature, one.seed, one.template) == (0.0, 3, "quality-cot")
        assert one.ledger_keys == (call_key("0", "", reason), call_key("0", "", choice))
        assert (one.cache_hit, one.attempts) == (False, 4)
        assert (one.prompt_tokens, one.completion_tokens, one.cost_usd) == (20, 4, 1.0)
        assert (one.latency_s, one.created_at) == (0.5, 7.0)


def of_order(request: Request) -> Order:
    return Order.AB if shows_a_first(request) else Order.BA


async def test_a_judgement_is_a_cache_hit_only_where_every_call_was() -> None:
    async def hits(cached: Callable[[Request], bool]) -> list[bool]:
        judges = Judges(endpoint(True), cached=cached)
        asking = Panel(config(mode="reasoned"), 0, judges)
        return [one.cache_hit for one in (await asking.compare(pair(), "judge")).judgements]

    assert await hits(lambda request: True) == [True, True]
    assert await hits(lambda request: not request.top_logprobs) == [False, False]
    assert await hits(lambda request: "answer a" in words(request) and shows_a_first(request)) == [True, False]


async def test_the_hash_names_the_template_and_all_that_is_shown_with_it() -> None:
    async def digest(**changes: Any) -> str:
        asking, _ = panel(says(0.8), **changes)
        return (await asking.compare(pair(), "judge")).judgements[0].template_hash

    plain = await digest()
    assert await digest() == plain
    others = [
        await digest(template="helpfulness"),
        await digest(examples="examples-quality"),
        await digest(criteria="criteria-quality"),
    ]
    assert len({plain, *others}) == 4


async def test_what_is_asked_is_a_function_of_config_seed_and_pair() -> None:
    changes: dict[str, Any] = {
        "template": ["quality", "quality-stepwise", "helpfulness"],
        "examples": "examples-quality",
        "principles": "principles",
        "order_check": 0.5,
        "mode": "stated",
        "samples": 2,
    }

    async def asked(seed: int, numbers: Sequence[int]) -> set[Request]:
        judges = Judges(endpoint(False))
        asking = Panel(config(**changes), seed, judges)
        await asyncio.gather(*(asking.compare(pair(number), "judge") for number in numbers))
        return {request for _, request, _ in judges.asked}

    requests = await asked(0, range(12))
    # In another order, and in two goes.
    assert await asked(0, range(11, -1, -1)) == requests
    assert await asked(0, range(5)) | await asked(0, range(5, 12)) == requests
    assert await asked(1, range(12)) != requests


async def test_what_the_ledger_lacks_is_no_judgement() -> None:
    def mind(judge: int, request: Request) -> str:
        raise NotInLedger("nothing there")

    asking, _ = panel(mind)
    with pytest.raises(NotInLedger):
        await asking.compare(pair(), "judge")


def test_the_judges_of_a_config_have_one_order() -> None:
    assert [
        judge.model
        for judge in config(
            ensemble=[SECOND, {**SECOND, "model": "third"}],
            cascade={"judge": {"model": "dear"}},
            fallback={"model": "local"},
            when_spent="fallback",
        ).judges
    ] == ["first", "second", "third", "dear", "local"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "no-such"}, "no-such"),
        ({"principles": "principles", "principles_per_pair": 1000}, "principles_per_pair"),
        ({"score_template": "rubric"}, r"judge\.score_template"),
        ({"examples": "no-such"}, r"judge\.examples"),
    ],
)
def test_what_is_wrong_in_a_config_is_told_before_anything_is_asked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        panel(says(0.8), **changes)


def test_a_template_must_show_what_the_config_names(tmp_path: Path) -> None:
    template = tmp_path / "bare.j2"
    template.write_text(
        '{% set labels = ["1", "2"] %}\n'
        "{% block user %}\n{{ prompt }}\n\n1:\n{{ first }}\n\n2:\n{{ second }}\n{% endblock %}\n"
    )
    panel(says(0.8), template=str(template))
    with pytest.raises(UserError, match=r"bare\.j2: shows no principles"):
        panel(says(0.8), template=str(template), principles="principles")
