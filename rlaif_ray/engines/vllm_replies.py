"""The rollout engine in words: requests are encoded for it, and what it draws is decoded. Chains of revisions ask it
so."""

from __future__ import annotations

from rlaif_ray.constitution.chain import ChainTurn
from rlaif_ray.constitution.driving import ConversationTooLong, Reply
from rlaif_ray.engines.vllm_rollout import Drawing, TokenRequest, VllmRolloutEngine
from rlaif_ray.prompts import encode_prompt
from rlaif_ray.records import Rollouts, SampleRequest


def encoded(engine: VllmRolloutEngine, request: SampleRequest, max_tokens: int) -> TokenRequest:
    """Raises UserError where the prompt is a conversation and the model has no chat template."""
    return TokenRequest(
        request.sample_id,
        request.group_id,
        request.prompt.id,
        tuple(encode_prompt(engine.tokenizer, request.prompt)),
        request.seed,
        request.temperature,
        max_tokens,
    )


def decoded(engine: VllmRolloutEngine, rollouts: Rollouts) -> list[str]:
    """The answers as people and judges read them."""
    return [
        engine.tokenizer.decode(rollouts.answer(row), skip_special_tokens=True).strip() for row in range(len(rollouts))
    ]


class VllmReplies:
    """A rollout engine as a `ReplyEngine`."""

    def __init__(self, engine: VllmRolloutEngine) -> None:
        self._engine = engine
        self._drawings: dict[str, Drawing] = {}

    def ask(self, turn: ChainTurn) -> None:
        request = encoded(self._engine, turn.request, turn.max_tokens)
        length, longest = len(request.prompt) + request.max_tokens, self._engine.context_tokens
        if length > longest:
            raise ConversationTooLong(f"the conversation takes {length} tokens, and the engine no more than {longest}")
        self._drawings[request.sample_id] = self._engine.begin([request])

    def step(self) -> list[Reply]:
        self._engine.step()
        whole = [id for id, drawing in self._drawings.items() if self._engine.is_done(drawing)]
        return [self._reply(id, self._engine.rollouts(self._drawings.pop(id))) for id in whole]

    def _reply(self, sample_id: str, rollouts: Rollouts) -> Reply:
        (text,) = decoded(self._engine, rollouts)
        return Reply(sample_id, text, rollouts.finish_reasons[0])
