"""Many chains at once over an engine: as soon as a chain has its reply, it asks on, so that none waits for another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rlaif_ray.constitution.chain import ChainTurn, RevisionChain
from rlaif_ray.records import Chain, FinishReason


class ConversationTooLong(Exception):
    """A conversation and its reply take more tokens than the engine does. Its text has the numbers."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What was drawn for a request (engine -> chain)."""

    sample_id: str
    text: str
    finish_reason: FinishReason


class ReplyEngine(Protocol):
    """Draws replies side by side."""

    def ask(self, turn: ChainTurn) -> None:
        """Begin to draw. Raises ConversationTooLong, with nothing begun."""

    def step(self) -> Sequence[Reply]:
        """Draw a little more of every reply; returns those that are whole now."""


def converse(chains: Sequence[RevisionChain], engine: ReplyEngine) -> list[Chain]:
    """Draw the chains to their ends. Each begins with what it has to ask next."""
    waiting: dict[str, RevisionChain] = {}

    def go_on(chain: RevisionChain) -> None:
        while (turn := chain.next()) is not None:
            try:
                engine.ask(turn)
            except ConversationTooLong as error:
                chain.refuse(str(error))
            else:
                waiting[turn.request.sample_id] = chain
                return

    for chain in chains:
        go_on(chain)
    while waiting:
        for reply in engine.step():
            chain = waiting.pop(reply.sample_id)
            chain.hear(reply.text, reply.finish_reason)
            go_on(chain)
    return [chain.record() for chain in chains]
