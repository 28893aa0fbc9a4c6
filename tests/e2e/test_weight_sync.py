"""New weights on their way into a pool of two real replicas: what is refused, what waits, and what goes on."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors.rollout import RolloutPool, RolloutWorker
from actors.spawn import spawn
from actors.weight_transfer import WeightSender
from rlaif_ray.config import PolicyConfig, RolloutConfig
from rlaif_ray.loop import OnlineStages, train_on_policy
from rlaif_ray.records import Prompt, Rollouts, SampleRequest, Weights, WeightVersion
from rlaif_ray.stages import WeightMismatch
from rlaif_ray.weights import fingerprint_of, read_weights, to_torch
from tests import served_model
from tests.served_model import logprobs_of, moved, reference, spoil, version_of, write_model

ray.cloudpickle.register_pickle_by_value(served_model)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.usefixtures("local_ray")

LONG = 48  # tokens, the limit of an answer
PATIENCE_S = 200.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write_model(directory, tied=False)
    return directory


def policy(model: Path) -> PolicyConfig:
    return PolicyConfig(model=str(model), max_prompt_tokens=8, max_answer_tokens=LONG)


@pytest.fixture(scope="module")
def pool(model: Path, local_ray: None) -> Iterator[RolloutPool]:
    pool = RolloutPool(model, policy(model), RolloutConfig(replicas=2))
    yield pool
    pool.close()


def published(model: Path, weights: Weights, number: int) -> WeightVersion:
    """As a learner's only rank publishes them, in buckets that cut layers in two."""
    tensors = {name: to_torch(array) for name, array in weights.items()}

    def buckets() -> Any:
        for start in range(3):
            yield dict(list(tensors.items())[start::3])

    sent = WeightSender(buckets, "object_store", rank=0, bucket_bytes=0).publish()
    assert sent is not None
    version = version_of(reference(model, weights), weights, number)
    assert version.fingerprint == sent.fingerprint
    return WeightVersion(number, sent.fingerprint, sent.weights, version.canary_tokens, version.canary_logprobs)


def requests(count: int, first: int = 0) -> list[SampleRequest]:
    return [
        SampleRequest(f"s{n}", f"g{n}", Prompt(f"p{n}", f"w5 w{6 + n % 30} w9"), seed=n)
        for n in range(first, first + count)
    ]


def flip_a_bit_of_what_arrives(worker: Any) -> None:
    """From now on, in this replica, until it is mended."""
    engine = worker._engine
    take = engine.take

    def corrupted(weights: Any) -> None:
        def spoilt() -> Any:
            for name, array in weights:
                if name == "model.layers.1.mlp.down_proj.weight":
                    array = array.copy()
                    array.view(np.uint8).reshape(-1)[100] ^= 1
                yield name, array

        take(spoilt())

    engine.take = corrupted


def mend(worker: Any) -> None:
    del worker._engine.take


@dataclass(frozen=True)
class Halt:
    """Where a replica's next drawing stops, until it may go on. Calls may overtake each other on their way: those that
    are made when this was reached find the replica drawing."""

    folder: Path

    async def reached(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not (self.folder / "reached").exists():
            assert time.monotonic() < deadline, "it does not draw"
            await asyncio.sleep(0.01)

    def let_go(self) -> None:
        (self.folder / "let-go").touch()

    def at_the_beginning(self, worker: Any) -> None:
        """Runs in the replica, as the next does: it does nothing else meanwhile."""

        def begin(requests: Any) -> Any:
            del worker._engine.begin
            self._tell()
            while not self._may_go_on():
                time.sleep(0.01)
            return worker._engine.begin(requests)

        worker._engine.begin = begin

    def after_some_steps(self, worker: Any) -> None:
        """It may load meanwhile, and takes the steps that this needs."""
        step, steps = worker._engine.step, itertools.count()

        def step_or_wait() -> None:
            if next(steps) < 8 or worker._engine.serving is None or self._may_go_on():
                step()
            else:
                self._tell()
                time.sleep(0.001)

        worker._engine.step = step_or_wait

    def _tell(self) -> None:
        (self.folder / "reached").touch()

    def _may_go_on(self) -> bool:
        return (self.folder / "let-go").exists()


@pytest.fixture
def halts(tmp_path: Path) -> list[Halt]:
    """One a replica."""
    folders = [tmp_path / str(number) for number in range(2)]
    for folder in folders:
        folder.mkdir()
    return [Halt(folder) for folder in folders]


class Learner:
    """Takes no steps but to read its batch, as a rank does."""

    def __init__(self, versions: list[WeightVersion]) -> None:
        self._versions = iter(versions)
        self.read: list[list[Rollouts]] = []

    async def publish(self) -> WeightVersion:
        return next(self._versions)

    async def step(self, iteration: int, rollouts: Any, scores: Any) -> dict[str, float]:
        self.read.append(list(await asyncio.gather(*rollouts)))
        return {}

    async def checkpoint(self, iteration: int) -> None:
        pass


class NoReward:
    def score(self, rollouts: Any) -> Any:
        return rollouts

    def close(self) -> None:
        pass


async def run(pool: RolloutPool, learner: Learner, iterations: int) -> None:
    await train_on_policy(
        OnlineStages(pool, NoReward(), learner),
        lambda iteration: requests(8, first=100 * iteration),
        range(iterations),
        checkpoint_every=10,
        on_iteration=lambda iteration, metrics: None,
    )


async def test_answers_however_few_lie_in_the_object_store(model: Path, pool: RolloutPool) -> None:
    """Ray would send small results to the driver, and on from there."""
    await pool.load(published(model, read_weights(model), 1))
    shards = list(pool.generate(requests(2)))
    ray.wait(shards, num_returns=len(shards), fetch_local=False)
    places = ray.experimental.get_object_locations(shards)
    assert all(places[shard]["node_ids"] for shard in shards)


async def test_a_run_goes_on_from_version_to_version_and_refuses_a_replica_that_got_another_tensor(
    model: Path, pool: RolloutPool
) -> None:
    old = read_weights(model)
    new = moved(old, 0.05)
    versions = [published(model, old, 1), published(model, new, 2), published(model, old, 3)]
    learner = Learner(versions)
    await run(pool, learner, 2)
    assert [shard.version for batch in learner.read for shard in batch] == [1, 1, 2, 2]
    assert {shard.fingerprint for shard in learner.read[1]} == {fingerprint_of(new)}

    # One bit of one tensor is another on its way to the second replica.
    await pool._replicas[1].__ray_call__.remote(flip_a_bit_of_what_arrives)
    learner = Learner(versions)
    with pytest.raises(WeightMismatch, match="version 1 arrived with fingerprint"):
        await run(pool, learner, 2)
    assert learner.read == []

    # It serves nothing, until it has whole weights.
    with pytest.raises(WeightMismatch, match="arrived with fingerprint"):
        await pool._replicas[1].generate.remote(requests(1), versions[0])
    await pool._replicas[1].__ray_call__.remote(mend)
    await run(pool, Learner(versions), 1)


def spoil_what_is_served(worker: Any) -> None:
    worker._engine._llm.collective_rpc(spoil)


async def test_a_run_refuses_answers_of_a_replica_whose_tensor_changed_while_it_served(
    model: Path, pool: RolloutPool
) -> None:
    weights = read_weights(model)
    version = published(model, weights, 1)
    await pool.load(version)
    await pool._replicas[1].__ray_call__.remote(spoil_what_is_served)
    learner = Learner([version, version])  # the same bytes: nothing is loaded that would mend it
    with pytest.raises(WeightMismatch, match="received whole but is not served"):
        await run(pool, learner, 1)
    assert learner.read == []


async def test_a_replica_that_serves_another_version_is_an_error(model: Path, pool: RolloutPool) -> None:
    old = read_weights(model)
    one, two = published(model, old, 1), published(model, moved(old, 0.05), 2)
    await pool.load(one)
    await pool._replicas[1].load.remote(two)
    # Either share may be the first to come, and goes to the first replica.
    answers = await asyncio.gather(*pool.generate(requests(8)), return_exceptions=True)
    drawn, refused = sorted(answers, key=lambda answer: isinstance(answer, WeightMismatch))
    assert drawn.version == 1
    assert isinstance(refused, WeightMismatch)
    assert "serves version 2" in str(refused)


async def test_a_load_waits_for_the_answers_that_are_being_drawn(
    model: Path, pool: RolloutPool, halts: list[Halt]
) -> None:
    old = read_weights(model)
    one, two = published(model, old, 1), published(model, moved(old, 0.05), 2)
    await pool.load(one)
    for replica, halt in zip(pool._replicas, halts, strict=True):
        await replica.__ray_call__.remote(halt.at_the_beginning)
    shards = pool.generate(requests(64))
    for halt in halts:
        await halt.reached()
    load = asyncio.ensure_future(pool.load(two))
    assert not (await asyncio.wait([load], timeout=0.2))[0]
    for halt in halts:
        halt.let_go()
    await load
    for rollouts in await asyncio.gather(*shards):
        np.testing.assert_array_equal(rollouts.token_versions, 1)
    for rollouts in await asyncio.gather(*pool.generate(requests(64))):
        np.testing.assert_array_equal(rollouts.token_versions, 2)


async def test_what_a_killed_replica_had_goes_to_the_other_and_it_comes_back_with_the_weights_that_are_wanted(
    model: Path, pool: RolloutPool, halts: list[Halt]
) -> None:
    """The same seeds: the other draws to the bit what the killed one would have."""
    two = published(model, moved(read_weights(model), 0.05), 2)
    await pool.load(two)
    undisturbed = await asyncio.gather(*pool.generate(requests(64)))
    answered = (await pool.states())[0].answered
    pid = await pool._replicas[1].__ray_call__.remote(lambda worker: os.getpid())
    await pool._replicas[1].__ray_call__.remote(halts[1].at_the_beginning)
    shards = pool.generate(requests(64))
    await halts[1].reached()
    os.kill(pid, signal.SIGKILL)
    for before, after in zip(undisturbed, await asyncio.gather(*shards), strict=True):
        np.testing.assert_array_equal(after.token_versions, 2)
        np.testing.assert_array_equal(after.answer_tokens, before.answer_tokens)
        np.testing.assert_array_equal(after.logprobs, before.logprobs)
    first, second = await pool.states()
    assert (second.serves, second.losses) == (False, 1)
    assert first.answered - answered == 64, "all of them"

    # It joins with version 3, which came while it was away, and has proved that before it is asked.
    three = published(model, moved(read_weights(model), 0.1), 3)
    await pool.load(three)
    deadline = time.monotonic() + PATIENCE_S
    while not (await pool.states())[1].serves:
        assert time.monotonic() < deadline, "it does not come back"
        await asyncio.sleep(0.1)
    await pool.load(three)
    shards = pool.generate(requests(64))
    assert [(shard.version, shard.fingerprint) for shard in await asyncio.gather(*shards)] == [
        (3, three.fingerprint)
    ] * 2
    assert (await pool.states())[1].answered == 32 + second.answered


async def test_answers_that_are_kept_go_on_under_new_weights_and_say_so(model: Path, halts: list[Halt]) -> None:
    """The load waits for none of them, as they go on only after it. Tokens that say version 1 have its
    log-probabilities, up to the last before the exchange; the first that says 2 has not. Asked for version 1 after
    that, the replica draws from the newer that it has."""
    old = read_weights(model)
    one, two = published(model, old, 1), published(model, moved(old, 0.2), 2)
    before = reference(model, old)
    rollout = RolloutConfig(on_update="keep")
    replica = spawn(
        RolloutWorker, "keeping", rollout.resources, args=(str(model), policy(model), rollout, "object_store", False)
    )
    try:
        await replica.load.remote(one)
        await replica.__ray_call__.remote(halts[0].after_some_steps)
        drawn = replica.generate.remote(requests(96), one)
        await halts[0].reached()
        await asyncio.wait_for(replica.load.remote(two), PATIENCE_S)
        halts[0].let_go()
        rollouts = await drawn
        later = await replica.generate.remote(requests(8), one)
    finally:
        ray.kill(replica)
    np.testing.assert_array_equal(later.token_versions, 2)
    assert rollouts.version == 1
    exchanged, gaps = 0, []
    for row in range(len(rollouts)):
        start, end = rollouts.answer_offsets[row : row + 2]
        versions = rollouts.token_versions[start:end]
        assert (np.diff(versions) >= 0).all()
        prompt = rollouts.prompt(row)
        expected = logprobs_of(before, np.concatenate([prompt, rollouts.answer(row)]))[len(prompt) - 1 :]
        drawn_before = versions == 1
        assert drawn_before.any()
        np.testing.assert_allclose(rollouts.answer_logprobs(row)[drawn_before], expected[drawn_before], atol=2e-4)
        if not drawn_before.all():
            exchanged += 1
            first = int(np.argmax(versions))
            gaps.append(abs(rollouts.answer_logprobs(row)[first] - expected[first]))
    assert exchanged > len(rollouts) / 2
    assert np.median(gaps) > 0.05
