"""Many chains over one engine: none waits for another, and none is harmed by another."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.constitution.chain import ChainTurn, RevisionChain
from rlaif_ray.constitution.driving import ConversationTooLong, Reply, converse
from rlaif_ray.judge.material import RevisingPrinciple
from rlaif_ray.records import Chain, FinishReason, Prompt, RevisionOutcome

PRINCIPLE = RevisingPrinciple(id="private", text="private", critique="critique private", revision="revise private")
REPLIES = ("storm vote", "private storm", "sorry vote")  # an answer, a critique, a revision
ROUNDS = 2


class ScriptedEngine:
    """Takes `steps[prompt id]` steps for each reply, however many it draws at once."""

    def __init__(self, steps: dict[str, int], *, longest: int = 100) -> None:
        self.steps = steps
        self.longest = longest
        self.now = 0
        self.under_way: dict[str, tuple[int, ChainTurn]] = {}
        self.asked_at: dict[str, list[int]] = {prompt: [] for prompt in steps}

    def ask(self, turn: ChainTurn) -> None:
        prompt = turn.request.prompt
        if len(prompt.text) > self.longest:
            raise ConversationTooLong(f"takes {len(prompt.text)} characters")
        self.asked_at[prompt.id].append(self.now)
        self.under_way[turn.request.sample_id] = (self.now + self.steps[prompt.id], turn)

    def step(self) -> Sequence[Reply]:
        assert self.under_way, "a step with nothing to draw"
        self.now += 1
        done = [id for id, (at, _) in self.under_way.items() if at == self.now]
        return [self._reply(id, self.under_way.pop(id)[1]) for id in done]

    def _reply(self, id: str, turn: ChainTurn) -> Reply:
        text = turn.request.prompt.text
        kind = 2 if text.endswith("revise private") else 1 if text.endswith("critique private") else 0
        return Reply(id, f"{REPLIES[kind]} {turn.request.seed}", FinishReason.STOP)


def chain(id: str, prompt: str = "tell storm vote") -> RevisionChain:
    return RevisionChain(
        id,
        Prompt(id, prompt),
        constitution=[PRINCIPLE],
        examples=(),
        rounds=ROUNDS,
        critique=True,
        attempts=3,
        temperature=1.0,
        seed=0,
        max_answer_tokens=8,
        max_critique_tokens=8,
    )


def test_a_slow_chain_holds_up_nobody() -> None:
    """An answer and two rounds are five replies: a quick chain asks at 0, 1, 2, 3, 4, and the slow one, in the midst
    of them, every ten steps, so that all is over after the fifty steps that it takes alone."""
    steps = {**{f"quick-{number}": 1 for number in range(20)}, "slow": 10, "last": 1}
    engine = ScriptedEngine(steps, longest=10_000)
    drawn = converse([chain(id) for id in steps], engine)
    assert [one.id for one in drawn] == list(steps)
    assert all(len(one.revisions) == ROUNDS for one in drawn)
    assert engine.asked_at.pop("slow") == [0, 10, 20, 30, 40]
    assert all(times == [0, 1, 2, 3, 4] for times in engine.asked_at.values())
    assert engine.now == 50


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_chains_are_the_same_in_any_company(steps: list[int]) -> None:
    paces = {f"chain-{number}": pace for number, pace in enumerate(steps)}
    together = converse([chain(id) for id in paces], ScriptedEngine(paces, longest=10_000))
    alone: list[Chain] = []
    for id in paces:
        alone += converse([chain(id)], ScriptedEngine(paces, longest=10_000))
    assert together == alone


def test_a_conversation_that_is_too_long_ends_its_rounds_and_no_other_chain() -> None:
    """Of 300 characters, a prompt of 245 leaves room for an answer, but none for a request after it."""
    long = "tell " + "storm " * 40
    drawn = converse([chain("long", long), chain("short")], ScriptedEngine({"long": 1, "short": 1}, longest=300))
    assert drawn[0].answer.startswith("storm vote")
    assert [one.outcome for one in drawn[0].revisions] == [RevisionOutcome.TRUNCATED] * ROUNDS
    assert all(one.reason.startswith("takes ") and one.attempts == 0 for one in drawn[0].revisions)
    assert [one.outcome for one in drawn[1].revisions] == [RevisionOutcome.REVISED] * ROUNDS


def test_nothing_to_draw_is_nothing_to_do() -> None:
    assert converse([], ScriptedEngine({})) == []
