"""The rollout engine against Hugging Face's forward: what it draws, what it scores, and which weights it serves."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import ray
import torch

from actors.spawn import spawn
from rlaif_ray.config import ActorResources
from rlaif_ray.engines.vllm_rollout import TokenRequest
from rlaif_ray.records import FinishReason, Rollouts, WeightVersion
from rlaif_ray.weights import fingerprint_of, read_weights
from tests import served_model
from tests.served_model import (
    CANARY,
    Engine,
    load,
    logprobs_of,
    moved,
    reference,
    requests,
    spoil,
    version_of,
    write_model,
)

# Workers cannot import a test's modules: they must travel whole.
ray.cloudpickle.register_pickle_by_value(served_model)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Any:
    directory = tmp_path_factory.mktemp("model")
    write_model(directory, tied=request.param)
    engine = spawn(Engine, f"engine-{request.param}", ActorResources(cpus=0.1), args=(str(directory),))
    yield directory, lambda work: ray.get(engine.call.remote(work))
    ray.kill(engine)


def check_against(model: Any, rollouts: Rollouts) -> None:
    for row in range(len(rollouts)):
        prompt, answer = rollouts.prompt(row), rollouts.answer(row)
        expected = logprobs_of(model, np.concatenate([prompt, answer]))[len(prompt) - 1 :]
        np.testing.assert_allclose(rollouts.answer_logprobs(row), expected, atol=2e-4)


def test_drawn_answers_carry_the_models_own_log_probabilities(served: Any) -> None:
    directory, call = served
    weights = read_weights(directory)
    model = reference(directory, weights)
    version = version_of(model, weights, 1)
    call(load(version, weights))
    rollouts = call(lambda engine: engine.generate(requests(40)))
    check_against(model, rollouts)
    assert (rollouts.version, rollouts.fingerprint) == (1, version.fingerprint)
    np.testing.assert_array_equal(rollouts.token_versions, np.ones_like(rollouts.answer_tokens))
    for row, reason in enumerate(rollouts.finish_reasons):
        stopped = rollouts.answer(row)[-1] == 2
        assert reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
        assert stopped or len(rollouts.answer(row)) == 8


def test_an_answer_depends_on_its_seed_and_not_on_its_company(served: Any) -> None:
    directory, call = served
    weights = read_weights(directory)
    call(load(version_of(reference(directory, weights), weights, 1), weights))
    together = call(lambda engine: engine.generate(requests(30)))
    apart = [call(lambda engine, one=one: engine.generate([one])) for one in reversed(requests(30))][::-1]
    for row, alone in enumerate(apart):
        np.testing.assert_array_equal(together.answer(row), alone.answer(0))
        np.testing.assert_array_equal(together.answer_logprobs(row), alone.answer_logprobs(0))


def test_prompts_that_no_step_bears_together_are_read_whole(served: Any) -> None:
    """9,600 tokens of prompts, of which a step reads 4,096 or fewer: one that was read in two parts could not have a
    seed on a CPU."""
    directory, call = served
    weights = read_weights(directory)
    call(load(version_of(reference(directory, weights), weights, 1), weights))
    many = [
        TokenRequest(f"s{n}", f"g{n}", f"p{n}", (1, *(4 + (n + 7 * i) % 30 for i in range(23))), n, 1.0, max_tokens=2)
        for n in range(400)
    ]
    together = call(lambda engine: engine.generate(many))
    assert len(together) == 400
    alone = call(lambda engine: engine.generate(many[200:201]))
    np.testing.assert_array_equal(together.answer(200), alone.answer(0))


def test_new_weights_are_served_whole_and_the_old_ones_come_back(served: Any) -> None:
    directory, call = served
    old = read_weights(directory)
    new = moved(old, 0.05)
    new_model = reference(directory, new)
    new_version = version_of(new_model, new, 2)
    old_version = version_of(reference(directory, old), old, 3)
    call(load(old_version, old))
    before = call(lambda engine: engine.generate(requests(20)))
    call(load(new_version, new))
    check_against(new_model, call(lambda engine: engine.generate(requests(20))))
    scored = call(lambda engine: engine.logprobs(before))
    expected = [
        logprobs_of(new_model, np.concatenate([before.prompt(row), before.answer(row)]))[3:] for row in range(20)
    ]
    np.testing.assert_allclose(scored, np.concatenate(expected), atol=2e-4)
    call(load(old_version, old))
    again = call(lambda engine: engine.generate(requests(20)))
    np.testing.assert_array_equal(before.answer_tokens, again.answer_tokens)
    np.testing.assert_array_equal(before.logprobs, again.logprobs)


def test_a_tensor_that_was_corrupted_on_the_way_is_refused(served: Any) -> None:
    directory, call = served
    weights = read_weights(directory)
    version = version_of(reference(directory, weights), weights, 4)
    name = "model.layers.1.mlp.down_proj.weight"
    corrupted = {**weights, name: np.where(np.arange(96) == 5, 0, weights[name]).astype(np.float32)}
    with pytest.raises(Exception, match="arrived with fingerprint"):
        call(load(version, corrupted))


def test_weights_that_arrive_but_are_not_what_is_served_are_refused(served: Any) -> None:
    directory, call = served
    weights = read_weights(directory)
    other = reference(directory, moved(weights, 0.05))
    canary = tuple(logprobs_of(other, np.array(CANARY)).tolist())
    version = WeightVersion(5, fingerprint_of(weights), None, CANARY, canary)
    with pytest.raises(Exception, match="received whole but is not served"):
        call(load(version, weights))


def test_a_replica_that_refused_its_weights_serves_nothing_until_it_has_others(served: Any) -> None:
    directory, call = served
    weights = read_weights(directory)
    version = version_of(reference(directory, weights), weights, 7)
    with pytest.raises(Exception, match="arrived with fingerprint"):
        call(load(version, moved(weights, 0.05)))
    with pytest.raises(Exception, match="this replica is stale"):
        call(lambda engine: engine.generate(requests(1)))
    call(load(version, weights))
    assert len(call(lambda engine: engine.generate(requests(1)))) == 1


def test_a_tensor_that_changes_while_it_is_served_is_noticed_at_the_next_batch(served: Any) -> None:
    directory, call = served
    weights = read_weights(directory)
    call(load(version_of(reference(directory, weights), weights, 8), weights))
    call(lambda engine: engine.generate(requests(4)))
    call(lambda engine: engine._llm.collective_rpc(spoil))
    with pytest.raises(Exception, match="received whole but is not served"):
        call(lambda engine: engine.generate(requests(4)))
    with pytest.raises(Exception, match="this replica is stale"):
        call(lambda engine: engine.generate(requests(4)))
    call(load(version_of(reference(directory, weights), weights, 9), weights))
    call(lambda engine: engine.generate(requests(4)))


def test_temperature_is_part_of_the_log_probabilities(served: Any) -> None:
    directory, call = served
    weights = read_weights(directory)
    model = reference(directory, weights)
    version = version_of(model, weights, 6)
    call(load(version, weights))
    rollouts = call(lambda engine: engine.generate(requests(10, temperature=0.5)))
    for row in range(10):
        tokens = torch.tensor(np.concatenate([rollouts.prompt(row), rollouts.answer(row)]).astype(np.int64))[None]
        with torch.no_grad():
            sharpened = torch.log_softmax(model(input_ids=tokens).logits[0, :-1].float() / 0.5, -1)
        expected = sharpened.gather(-1, tokens[0, 1:, None])[3:, 0].numpy()
        np.testing.assert_allclose(rollouts.answer_logprobs(row), expected, atol=4e-4)
