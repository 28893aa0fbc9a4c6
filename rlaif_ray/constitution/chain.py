"""A chain of revisions as a state machine: what it asks next, and what it makes of each reply (Bai et al. 2022,
Constitutional AI, section 3.1).

It knows conversations and no tokens, and nothing of who replies. Given the same replies it asks the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from rlaif_ray.config import UserError
from rlaif_ray.constitution.roles import unannounced, why_no_critique, why_no_revision
from rlaif_ray.judge.hygiene import normalised
from rlaif_ray.judge.material import RevisingPrinciple, RevisionExample, draw
from rlaif_ray.prompts import sample_requests
from rlaif_ray.records import Chain, FinishReason, Message, Prompt, Revision, RevisionOutcome, SampleRequest


@dataclass(frozen=True, slots=True)
class ChainTurn:
    """A reply that a chain asks for: to which conversation, by which seed, and of how many tokens at most."""

    request: SampleRequest
    max_tokens: int


class _Step(StrEnum):
    ANSWER = "answer"
    CRITIQUE = "critique"
    REVISION = "revision"


class RevisionChain:
    """An answer to a prompt and its revisions, while they are drawn.

    Each round begins anew from the prompt and the answer as it stands, and has a principle of its own. A reply that is
    cut off or mistakes what was asked is drawn anew; after `attempts` of them the answer stays as it was, and the next
    round begins. With `answer`, another model's, the first answer is not drawn; `cut_off` says that it is not whole.
    Seeds come from the run's seed, the chain's id and the place in it, so that a chain is the same in any company.
    """

    def __init__(
        self,
        id: str,
        prompt: Prompt,
        *,
        constitution: Sequence[RevisingPrinciple],
        examples: Sequence[RevisionExample],
        rounds: int,
        critique: bool,
        attempts: int,
        temperature: float,
        seed: int,
        max_answer_tokens: int,
        max_critique_tokens: int,
        answer: str | None = None,
        cut_off: bool = False,
    ) -> None:
        self.id = id
        self._prompt = prompt
        self._constitution = constitution
        self._examples = examples
        self._rounds = rounds
        self._criticises = critique
        self._attempts = attempts
        self._temperature = temperature
        self._seed = seed
        self._max_answer_tokens = max_answer_tokens
        self._max_critique_tokens = max_critique_tokens
        self._answer = answer
        self._cut_off = cut_off
        self._revisions: list[Revision] = []
        # Of the round under way.
        self._critique: str | None = None
        self._replies = 0
        self._useless_replies = 0  # to what is asked now

    def next(self) -> ChainTurn | None:
        """What to ask now; None where the chain is whole. Asks the same until a reply is heard."""
        step = self._step()
        if step is None:
            return None
        # The answer is drawn as the policy answers anybody, without examples.
        conversation = self._prompt if step is _Step.ANSWER else Prompt(self._prompt.id, self._conversation())
        (request,) = sample_requests(
            [conversation],
            1,
            seed=self._seed,
            purpose=f"constitute/{self.id}/{self._round}/{step}/{self._useless_replies}",
            temperature=self._temperature,
        )
        return ChainTurn(request, self._max_tokens(step))

    def hear(self, reply: str, finish_reason: FinishReason) -> None:
        """The reply to what was asked."""
        step = self._step()
        assert step is not None  # a whole chain asks nothing
        if step is _Step.ANSWER:
            self._answer, self._cut_off = reply, finish_reason is FinishReason.LENGTH
            return
        self._replies += 1
        if finish_reason is FinishReason.LENGTH:
            self._useless(RevisionOutcome.TRUNCATED, f"the {step} was cut off at {self._max_tokens(step)} tokens")
        elif step is _Step.CRITIQUE:
            self._hear_critique(reply)
        else:
            self._hear_revision(unannounced(reply))

    def refuse(self, reason: str) -> None:
        """What was asked cannot be answered, whatever the seed: the round ends. Raises UserError where it was the
        prompt."""
        if self._answer is None:
            raise UserError(f"constitution.max_context_tokens: prompt {self._prompt.id}: {reason}; raise it")
        self._end_round(RevisionOutcome.TRUNCATED, reason)

    def record(self) -> Chain:
        """The chain as far as it is. Raises ValueError where not even an answer was drawn."""
        if self._answer is None:
            raise ValueError(f"chain {self.id} has no answer yet")
        return Chain(self.id, self._prompt, self._answer, tuple(self._revisions))

    @property
    def _round(self) -> int:
        return len(self._revisions) + 1

    @property
    def _principle(self) -> RevisingPrinciple:
        weights = [principle.weight for principle in self._constitution]
        (principle,) = draw(self._constitution, self._seed, f"constitution/{self.id}/{self._round}", 1, weights)
        return principle

    @property
    def _text(self) -> str:
        """The answer as it stands."""
        assert self._answer is not None
        return self._revisions[-1].text if self._revisions else self._answer

    @property
    def _revised(self) -> bool:
        return any(revision.outcome is RevisionOutcome.REVISED for revision in self._revisions)

    def _step(self) -> _Step | None:
        if self._answer is None:
            return _Step.ANSWER
        if self._round > self._rounds:
            return None
        return _Step.CRITIQUE if self._criticises and self._critique is None else _Step.REVISION

    def _max_tokens(self, step: _Step) -> int:
        return self._max_critique_tokens if step is _Step.CRITIQUE else self._max_answer_tokens

    def _hear_critique(self, reply: str) -> None:
        confusion = why_no_critique(reply, answer=self._text, request=self._principle.critique)
        if confusion is not None:
            self._useless(RevisionOutcome.CONFUSED, confusion)
        else:
            self._critique, self._useless_replies = reply, 0

    def _hear_revision(self, reply: str) -> None:
        if normalised(reply) == normalised(self._text):
            if self._cut_off and not self._revised:
                self._end_round(RevisionOutcome.TRUNCATED, "the revision is the answer as it was, which was cut off")
            else:
                self._end_round(RevisionOutcome.UNCHANGED, "the revision is the answer as it was")
            return
        requests = (self._principle.critique, self._principle.revision)
        confusion = why_no_revision(reply, critique=self._critique, requests=requests)
        if confusion is not None:
            self._useless(RevisionOutcome.CONFUSED, confusion)
        else:
            self._end_round(RevisionOutcome.REVISED, "", reply)

    def _useless(self, outcome: RevisionOutcome, reason: str) -> None:
        self._useless_replies += 1
        if self._useless_replies == self._attempts:
            self._end_round(outcome, reason)

    def _end_round(self, outcome: RevisionOutcome, reason: str, revision: str | None = None) -> None:
        text = self._text if revision is None else revision
        principle = self._principle.id
        self._revisions.append(
            Revision(self._round, principle, self._critique, text, outcome, reason, attempts=self._replies)
        )
        self._critique, self._replies, self._useless_replies = None, 0, 0

    def _conversation(self) -> tuple[Message, ...]:
        """The examples, the prompt, the answer as it stands, and the critique, where there is one, up to a request."""
        principle = self._principle
        content = self._prompt.content
        asked = (Message("user", content),) if isinstance(content, str) else content
        instructed = sum(message.role == "system" for message in asked[:1])  # templates want it first
        turns = [
            *asked[:instructed],
            *(message for example in self._examples for message in self._worked(example)),
            *asked[instructed:],
            Message("assistant", self._text),
        ]
        if self._criticises:
            turns.append(Message("user", principle.critique))
        if self._critique is not None:
            turns.append(Message("assistant", self._critique))
        if self._critique is not None or not self._criticises:
            turns.append(Message("user", principle.revision))
        return tuple(turns)

    def _worked(self, example: RevisionExample) -> list[Message]:
        criticism = [Message("user", example.critique_request), Message("assistant", example.critique)]
        return [
            Message("user", example.prompt),
            Message("assistant", example.answer),
            *(criticism if self._criticises else []),
            Message("user", example.revision_request),
            Message("assistant", example.revision),
        ]
