"""An engine of several workers, each with a share of every layer: what it draws, which weights it serves, and what
comes of it when a worker is lost. Here they are processes on a CPU that meet over gloo, and GPUs are but numbers."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch

from actors.rollout import RolloutPool
from actors.spawn import spawn
from rlaif_ray.config import ActorResources, PolicyConfig, RolloutConfig
from rlaif_ray.records import Prompt, SampleRequest, WeightVersion
from rlaif_ray.weights import NamedArrays, fingerprint_of, read_weights
from tests import served_model
from tests.served_model import Engine, load, logprobs_of, moved, reference, requests, version_of, write_model

# Workers cannot import a test's modules: they must travel whole.
ray.cloudpickle.register_pickle_by_value(served_model)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has this on GPUs"),
    pytest.mark.timeout(900),
]

WORKERS = 2


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[None]:
    """A Ray that counts two GPUs, whatever there is."""
    ray.shutdown()  # other tests of this session may have left one
    ray.init(address="local", num_cpus=8, num_gpus=WORKERS, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write_model(directory, tied=True)
    return directory


@pytest.fixture(scope="module")
def pair(model: Path, two_gpus: None) -> Iterator[Any]:
    """An engine of two workers."""
    engine = spawn(Engine, "pair", ActorResources(cpus=0.1), args=(str(model), WORKERS))
    yield lambda work: ray.get(engine.call.remote(work))
    ray.kill(engine)


def test_two_workers_draw_and_score_what_one_does(pair: Any, model: Path) -> None:
    weights = read_weights(model)
    version = version_of(reference(model, weights), weights, 1)
    single = spawn(Engine, "single", ActorResources(cpus=0.1), args=(str(model), 1))
    pair(load(version, weights))
    drawn = pair(lambda engine: engine.generate(requests(40)))
    ray.get(single.call.remote(load(version, weights)))
    alone = ray.get(single.call.remote(lambda engine: engine.logprobs(drawn)))
    ray.kill(single)
    # Sums over two shares are rounded otherwise than one sum.
    np.testing.assert_allclose(drawn.logprobs, alone, atol=1e-4)
    np.testing.assert_allclose(pair(lambda engine: engine.logprobs(drawn)), alone, atol=1e-4)


def test_new_weights_are_served_by_both_workers_and_the_old_ones_come_back(pair: Any, model: Path) -> None:
    old = read_weights(model)
    new = moved(old, 0.05)
    old_version = version_of(reference(model, old), old, 2)
    new_model = reference(model, new)
    pair(load(old_version, old))
    before = pair(lambda engine: engine.generate(requests(20)))
    pair(load(version_of(new_model, new, 3), new))
    scored = pair(lambda engine: engine.logprobs(before))
    expected = [
        logprobs_of(new_model, np.concatenate([before.prompt(row), before.answer(row)]))[3:] for row in range(20)
    ]
    np.testing.assert_allclose(scored, np.concatenate(expected), atol=2e-4)
    pair(load(old_version, old))
    again = pair(lambda engine: engine.generate(requests(20)))
    np.testing.assert_array_equal(before.answer_tokens, again.answer_tokens)
    np.testing.assert_array_equal(before.logprobs, again.logprobs)


def corrupt_what_the_second_takes(worker: Any) -> None:
    """Runs in vLLM's worker, as the next two do."""
    engine = worker.weight_transfer_engine

    def take(weights: NamedArrays) -> None:
        type(engine).take(
            engine, [(name, array + 1 if name == "model.norm.weight" else array) for name, array in weights]
        )

    if worker.rank == 1:
        engine.take = take


def take_what_comes(worker: Any) -> None:
    vars(worker.weight_transfer_engine).pop("take", None)


def spoil_what_the_second_serves(worker: Any) -> None:
    if worker.rank == 1:
        served_model.spoil(worker)


def test_a_tensor_that_one_worker_receives_corrupted_is_refused(pair: Any, model: Path) -> None:
    weights = read_weights(model)
    version = version_of(reference(model, weights), weights, 4)
    pair(lambda engine: engine._llm.collective_rpc(corrupt_what_the_second_takes))
    with pytest.raises(Exception, match=r"version 4 arrived with fingerprint [0-9a-f]+ at worker 1 of 2"):
        pair(load(version, weights))
    pair(lambda engine: engine._llm.collective_rpc(take_what_comes))
    pair(load(version, weights))
    assert len(pair(lambda engine: engine.generate(requests(1)))) == 1


def test_a_tensor_that_changes_at_one_worker_while_it_is_served_is_noticed(pair: Any, model: Path) -> None:
    weights = read_weights(model)
    pair(load(version_of(reference(model, weights), weights, 5), weights))
    pair(lambda engine: engine._llm.collective_rpc(spoil_what_the_second_serves))
    with pytest.raises(Exception, match="received whole but is not served"):
        pair(lambda engine: engine.generate(requests(4)))


async def test_a_replica_that_loses_a_worker_comes_back_and_draws_the_same(model: Path, two_gpus: None) -> None:
    pool = RolloutPool(
        model,
        PolicyConfig(model=str(model), max_prompt_tokens=8, max_answer_tokens=8),
        RolloutConfig(resources=ActorResources(cpus=0.1, gpus=WORKERS)),
    )
    asked = [SampleRequest(f"s{n}", f"g{n}", Prompt(f"p{n}", f"w5 w{6 + n % 30} w9"), seed=n) for n in range(16)]
    weights = read_weights(model)
    (replica,) = pool._replicas
    try:
        await pool.load(WeightVersion(1, fingerprint_of(weights), model, (), ()))
        (first,) = await asyncio.gather(*pool.generate(asked))
        workers: Sequence[int] = await replica.__ray_call__.remote(worker_processes)
        assert len(workers) == WORKERS
        os.kill(workers[1], signal.SIGKILL)
        (second,) = await asyncio.gather(*pool.generate(asked))
        assert not set(await replica.__ray_call__.remote(worker_processes)) & set(workers)
        (state,) = await pool.states()
        assert (state.serves, state.version, state.losses) == (True, 1, 1)
    finally:
        pool.close()
    np.testing.assert_array_equal(first.answer_tokens, second.answer_tokens)
    assert not any(runs(pid) for pid in workers), "a worker that is left over keeps its GPU"


def worker_processes(actor: Any) -> list[int]:
    return [process.pid for process in multiprocessing.active_children() if process.pid is not None]


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
