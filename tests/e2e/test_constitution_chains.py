"""Chains of revisions through a pool of real replicas: the same in any company, and whatever becomes of one of them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from actors.rollout import RolloutPool
from rlaif_ray.config import PolicyConfig, RolloutConfig, ScratchModelConfig
from rlaif_ray.constitution.chain import RevisionChain
from rlaif_ray.judge.material import RevisingPrinciple, RevisionExample
from rlaif_ray.policy.model import save_model, scratch_policy, scratch_tokenizer
from rlaif_ray.records import Chain, Prompt, RevisionOutcome, WeightVersion
from rlaif_ray.weights import fingerprint_of, read_weights
from tests.small_models import WORDS, weights_of

CONTEXT = 160
ANSWER, CRITIQUE = 24, 12  # tokens, which are words
KINDS = ("private", "unsafe", "cruel")
CONSTITUTION = [
    RevisingPrinciple(id=kind, text=kind, critique=f"critique {kind}", revision=f"revise {kind}") for kind in KINDS
]
EXAMPLE = RevisionExample(
    prompt="one two",
    answer="two one",
    critique_request="critique cruel",
    critique="cruel two",
    revision_request="revise cruel",
    revision="one",
)
TEMPLATE = (
    "{% for message in messages %}<bos> {{ message.role }} {{ message.content }} <sep> {% endfor %}"
    "{% if add_generation_prompt %}<bos> assistant{% endif %}"
)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Iterator[RolloutPool]:
    """Of two replicas of an untrained model that chats in words."""
    directory = tmp_path_factory.mktemp("model")
    tokenizer = scratch_tokenizer([WORDS, " ".join(KINDS), "system user assistant critique revise"])
    tokenizer.chat_template = TEMPLATE
    model = scratch_policy(ScratchModelConfig(), tokenizer, positions=CONTEXT, dtype="float32", seed=3)
    model.model.norm.weight.data *= 0.25  # or it would repeat itself without end
    save_model(model, weights_of(model), tokenizer, directory)
    policy = PolicyConfig(model=str(directory), max_prompt_tokens=CONTEXT - ANSWER - 1, max_answer_tokens=ANSWER)
    pool = RolloutPool(directory, policy, RolloutConfig(replicas=2))
    asyncio.run(pool.load(WeightVersion(0, fingerprint_of(read_weights(directory)), directory, (), ())))
    yield pool
    pool.close()


def chain(id: str, **changed: Any) -> RevisionChain:
    settings: dict[str, Any] = {
        "constitution": CONSTITUTION,
        "examples": (EXAMPLE,),
        "rounds": 2,
        "critique": True,
        "attempts": 2,
        "temperature": 1.0,
        "seed": 5,
        "max_answer_tokens": ANSWER,
        "max_critique_tokens": CRITIQUE,
    }
    return RevisionChain(id, Prompt(f"prompt-{id}", "three four five"), **(settings | changed))


def converse(pool: RolloutPool, chains: list[RevisionChain]) -> list[Chain]:
    return [one for shard in ray.get(list(pool.converse(chains))) for one in shard]


def test_chains_are_the_same_alone_and_together(pool: RolloutPool) -> None:
    """Together they are split between two replicas; alone, each has one to itself."""
    ids = [str(number) for number in range(12)]
    together = converse(pool, [chain(id) for id in ids])
    alone = [one for id in ids for one in converse(pool, [chain(id)])]
    assert together == alone
    assert [one.id for one in together] == ids
    assert len({one.answer for one in together}) == len(ids)
    revisions = [revision for one in together for revision in one.revisions]
    outcomes = Counter(revision.outcome for revision in revisions)
    assert outcomes[RevisionOutcome.REVISED]
    assert outcomes[RevisionOutcome.TRUNCATED]
    assert {revision.principle for revision in revisions} == set(KINDS)
    assert all(len(one.answer.split()) <= ANSWER for one in together)
    assert all(len(revision.text.split()) <= ANSWER for revision in revisions)
    assert all(len(revision.critique.split()) <= CRITIQUE for revision in revisions if revision.critique)


def test_every_token_of_a_chain_is_counted(pool: RolloutPool) -> None:
    """Those of replies that were of no use too, and of the ends of what was not cut off. A word is a token."""

    def drawn() -> int:
        asked = [replica.__ray_call__.remote(lambda worker: worker._engine.drawn_tokens) for replica in pool._replicas]
        return sum(ray.get(asked))

    before = drawn()
    chains = converse(pool, [chain(str(number)) for number in range(8)])
    revisions = [revision for one in chains for revision in one.revisions]
    kept = [*(one.answer for one in chains), *(one.text for one in revisions if one.outcome is RevisionOutcome.REVISED)]
    kept += [revision.critique for revision in revisions if revision.critique]
    replies = len(chains) + sum(revision.attempts for revision in revisions)
    assert sum(len(text.split()) for text in kept) < drawn() - before <= replies * max(ANSWER, CRITIQUE)


def test_a_conversation_that_is_too_long_harms_no_other(pool: RolloutPool) -> None:
    """The example takes 6 x 3 tokens of form and 11 words, the prompt 3 + 3, an answer of n words 3 + n, the request
    3 + 2, the critique's beginning 2 and the critique 12: 57 + n, of 160. After it no revision finds room."""
    others = [chain(str(number)) for number in range(4)]
    fitting, long = (chain("long", answer=" ".join(["one"] * words), rounds=1) for words in (103, 104))
    drawn = converse(pool, [*others[:2], fitting, long, *others[2:]])
    (critique,), (refused,) = drawn[2].revisions, drawn[3].revisions
    assert critique.attempts > 0
    reason = "the conversation takes 161 tokens, and the engine no more than 160"
    assert (refused.outcome, refused.reason, refused.attempts) == (RevisionOutcome.TRUNCATED, reason, 0)
    assert [*drawn[:2], *drawn[4:]] == converse(pool, [chain(str(number)) for number in range(4)])


def test_a_replica_that_is_killed_draws_its_chains_again(pool: RolloutPool) -> None:
    ids = [str(number) for number in range(16)]
    undisturbed = converse(pool, [chain(id) for id in ids])
    pid = ray.get(pool._replicas[1].__ray_call__.remote(lambda worker: os.getpid()))
    shards = pool.converse([chain(id) for id in ids])
    os.kill(pid, signal.SIGKILL)
    assert [one for shard in ray.get(list(shards)) for one in shard] == undisturbed
