"""Rewards that add up, through real actors: judges over HTTP, rules in their processes, a learner's rank that reads."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import math
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from aiohttp import web
from loopback_judge import p_first, serving_handler

from actors.call_pool import cause_of
from actors.judge import Judges, start_judges
from actors.reward_mix import RewardMix, RewardWatch
from rlaif_ray import metrics
from rlaif_ray.config import RunConfig, Stopped, UserError
from rlaif_ray.records import Prompt, Rollouts, Scores
from rlaif_ray.reward.bradley_terry import bradley_terry_scores
from tests.small_models import policy_and_tokenizer, scored_rollouts

KEY_VARIABLE = "RLAIF_TEST_JUDGE_KEY"
NAN = math.nan

# What the texts of a question are fenced by: the prompt, and one answer or two.
_FENCED = re.compile(r"begin_\w+\n(.*?)\nend_", re.DOTALL)

RUBRIC = [
    {"name": "short", "weight": 3, "question": "Is it short?", "levels": dict.fromkeys(range(1, 6), "So.")},
    {"name": "long", "weight": 1, "question": "Is it long?", "levels": dict.fromkeys(range(1, 6), "So.")},
]


@dataclasses.dataclass
class Server:
    """Prefers the longer answer; scores one alone by its words, of which the test has 1 to 5; refuses the answer
    that it is told to, or, told none, all."""

    url: str = ""
    latency_s: float = 0.0
    refused: str = "nothing at all"
    questions: list[str] = dataclasses.field(default_factory=list)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        await asyncio.sleep(self.latency_s)
        content = "\n".join(message["content"] for message in body["messages"])
        _, *answers = _FENCED.findall(content)
        if self.refused in answers or not self.refused:
            return web.json_response({"error": {"message": "no", "code": None}}, status=400)
        self.questions.append(content)
        if len(answers) == 2:
            p = p_first(*answers)
            shares = {"1": 0.98 * p, "2": 0.98 * (1 - p)}
        else:
            words = len(answers[0].split())
            shares = {str(6 - words if "Is it short?" in content else words): 0.98, "10": 1e-9}
        top = [{"token": token, "logprob": math.log(share)} for token, share in shares.items()]
        choice = {
            "index": 0,
            "finish_reason": "length",
            "message": {"role": "assistant", "content": top[0]["token"]},
            "logprobs": {"content": [{**top[0], "top_logprobs": top}]},
        }
        usage = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
        return web.json_response({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage})


@pytest.fixture
def server() -> Iterator[Server]:
    judge = Server()
    with serving_handler(judge.complete) as judge.url:
        yield judge


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("policy")
    policy_and_tokenizer()[1].save_pretrained(directory)
    return directory


@dataclasses.dataclass
class World:
    """Two shards, over which the groups x and y of three answers lie across, and what they say."""

    shards: list[Rollouts]
    texts: list[str]
    groups: dict[str, list[int]]
    prompts: list[Prompt]

    @classmethod
    def of(cls) -> World:
        tokenizer = policy_and_tokenizer()[1]
        shards = [
            dataclasses.replace(scored_rollouts(3, seed=seed)[0], group_ids=groups, prompt_ids=groups)
            for seed, groups in ((3, ("x", "x", "y")), (4, ("y", "x", "y")))
        ]
        texts = [tokenizer.decode(shard.answer(row)) for shard in shards for row in range(3)]
        prompts = [Prompt("x", "Say x.", reference="one two three"), Prompt("y", "Say y.")]
        return cls(shards, texts, {"x": [0, 1, 4], "y": [2, 3, 5]}, prompts)

    def sibling_scores(self) -> np.ndarray:
        values = np.empty(6)
        for rows in self.groups.values():
            places = list(itertools.combinations(range(3), 2))
            p = [probability(self.texts[rows[a]], self.texts[rows[b]]) for a, b in places]
            first, second = np.array(places).T
            values[rows] = bradley_terry_scores(first, second, np.array(p), 3)
        return values


WORLD = World.of()
LENGTHS = np.array([len(text.split()) for text in WORLD.texts], dtype=float)
ON_TEN = 2 * (LENGTHS - 1) / 9 - 1
ON_FIVE = 2 * (LENGTHS - 1) / 4 - 1


def probability(a: str, b: str) -> float:
    return 0.5 if a == b else (p_first(a, b) + 1 - p_first(b, a)) / 2


class ModelScores:
    """Plays the reward model: row by row 10, 20, ... but none for the second answer of a shard."""

    def score(self, rollouts: tuple[Any, ...]) -> tuple[Any, ...]:
        values = np.array([10.0, NAN, 30.0], dtype=np.float32)
        return tuple(
            ray.put(Scores(shard.sample_ids, values, np.isfinite(values))) for shard in ray.get(list(rollouts))
        )

    def close(self) -> None: ...


@pytest.fixture
async def start(server: Server, policy: Path, tmp_path: Path) -> AsyncIterator[Any]:
    started: list[Any] = []
    (tmp_path / "rules.py").write_text(
        "def words(prompt, answer, reference):\n    return len(answer.split())\n"
        "def sometimes(prompt, answer, reference):\n    return None if 'six' in answer else 1.0\n"
    )

    def config(mix: list[dict[str, Any]], watch: int = 0, **judge: Any) -> RunConfig:
        for source in mix:
            if "function" in source:
                source["function"] = f"{tmp_path / 'rules.py'}:{source['function']}"
        judge = {
            "model": "loopback",
            "base_url": server.url,
            "api_key_env": KEY_VARIABLE,
            "mode": "choice",
            "actors": {"min": 1, "max": 2, "cpus": 0.1},
            **judge,
        }
        return RunConfig.model_validate(
            {
                "run_dir": "unused",
                "prompts": {"path": "p.jsonl", "reference": "reference"},
                "policy": {"model": "m", "algorithm": "rloo"},
                "judge": judge,
                "reward": {"mix": mix, "watch": watch},
                "ppo": {"answers_per_prompt": 3},
            }
        )

    async def judges_of(config: RunConfig) -> Judges:
        judges = await start_judges(config.judge, seed=0, run="run", ledger_path=tmp_path / "ledger.sqlite")
        started.append(judges)
        return judges

    async def start(mix: list[dict[str, Any]], **judge: Any) -> RewardMix:
        settings = config(mix, **judge)
        reward = RewardMix(
            settings,
            models=ModelScores() if settings.reward.fits_a_model else None,
            judges=await judges_of(settings) if settings.reward.asks_the_judge else None,
            prompts=WORLD.prompts,
            policy_directory=policy,
        )
        started.append(reward)
        await reward.ready()
        return reward

    async def start_watch(watch: int, **judge: Any) -> RewardWatch:
        settings = config([], watch, **judge)
        stage = RewardWatch(settings, judges=await judges_of(settings), prompts=WORLD.prompts, policy_directory=policy)
        started.append(stage)
        await stage.ready()
        return stage

    start.watch = start_watch
    yield start
    for one in started:
        if isinstance(one, Judges):
            await one.stop()
        else:
            one.close()
    await until(lambda: {"reward-mix", "reward-watch"}.isdisjoint(ray.util.list_named_actors()))


async def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.02)


def score(reward: RewardMix, shards: list[Rollouts] = WORLD.shards) -> list[Scores]:
    return ray.get(list(reward.score(tuple(ray.put(shard) for shard in shards))))


def whole(scores: list[Scores], name: str | None = None) -> np.ndarray:
    return np.concatenate([shard.values if name is None else shard.parts[name] for shard in scores])


async def test_sources_add_up_over_shards_and_are_told_apart(start: Any) -> None:
    """Words count 1 each; siblings weigh 2; the score alone is looked at only."""
    reward = await start(
        [
            {"kind": "judge_pairs", "weight": 2.0},
            {"kind": "rule", "function": "words"},
            {"kind": "judge_score", "weight": 0.0},
        ]
    )
    scores = score(reward)
    assert [one.sample_ids for one in scores] == [shard.sample_ids for shard in WORLD.shards]
    assert set(scores[0].parts) == {"judge_pairs", "words", "judge_score"}
    np.testing.assert_allclose(whole(scores, "judge_pairs"), WORLD.sibling_scores(), atol=1e-5)
    np.testing.assert_array_equal(whole(scores, "words"), LENGTHS)
    np.testing.assert_allclose(whole(scores, "judge_score"), ON_TEN, atol=1e-5)
    np.testing.assert_allclose(whole(scores), 2 * WORLD.sibling_scores() + LENGTHS, atol=1e-5)
    assert all(one.valid.all() for one in scores)


async def test_a_rubric_has_a_part_for_each_criterion(start: Any, tmp_path: Path) -> None:
    """Short counts 3 and long 1, and one is the other's opposite."""
    (tmp_path / "rubric.yaml").write_text(json.dumps(RUBRIC))
    reward = await start([{"kind": "rubric", "name": "marks"}], rubric=str(tmp_path / "rubric.yaml"))
    scores = score(reward)
    assert set(scores[0].parts) == {"marks", "marks/short", "marks/long"}
    np.testing.assert_allclose(whole(scores, "marks/long"), ON_FIVE, atol=1e-5)
    np.testing.assert_allclose(whole(scores, "marks/short"), -ON_FIVE, atol=1e-5)
    np.testing.assert_allclose(whole(scores, "marks"), -0.5 * ON_FIVE, atol=1e-5)
    np.testing.assert_allclose(whole(scores), -0.5 * ON_FIVE, atol=1e-5)


async def test_one_shard_is_scored_as_many_are(start: Any) -> None:
    """Its group is what is left of it: two siblings of x, and one answer of y that has none."""
    reward = await start([{"kind": "judge_pairs"}])
    (scores,) = score(reward, WORLD.shards[:1])
    assert scores.valid.tolist() == [True, True, False]
    a, b = WORLD.texts[:2]
    expected = bradley_terry_scores(np.array([0]), np.array([1]), np.array([probability(a, b)]), 2)
    np.testing.assert_allclose(scores.values[:2], expected, atol=1e-5)


async def test_the_reward_model_takes_part(start: Any, server: Server) -> None:
    reward = await start([{"kind": "reward_model", "weight": 0.5}, {"kind": "rule", "function": "sometimes"}])
    scores = score(reward)
    spoken = np.array(["six" not in text for text in WORLD.texts])
    expected = np.where(spoken, [6.0, NAN, 16.0] * 2, NAN)
    np.testing.assert_allclose(whole(scores), expected)
    assert 0 < spoken.sum() < 6
    assert not server.questions


async def test_each_answer_stands_against_the_reference(start: Any) -> None:
    """The prompt y has none, so its answers have no reward."""
    reward = await start([{"kind": "judge_pairs", "against": "reference"}])
    values = whole(score(reward))
    for row in range(6):
        if row in WORLD.groups["x"]:
            assert values[row] == pytest.approx(2 * probability(WORLD.texts[row], "one two three") - 1, abs=1e-5)
        else:
            assert math.isnan(values[row])


async def test_an_answer_that_the_judge_cannot_judge_leaves_its_siblings_theirs(start: Any, server: Server) -> None:
    """Nothing compares it with anyone; the other two of its group are compared with each other."""
    server.refused = WORLD.texts[4]
    assert WORLD.texts.count(server.refused) == 1
    reward = await start([{"kind": "judge_pairs"}])
    values = whole(score(reward))
    assert np.isnan(values).tolist() == [row == 4 for row in range(6)]
    p = probability(WORLD.texts[0], WORLD.texts[1])
    expected = bradley_terry_scores(np.array([0]), np.array([1]), np.array([p]), 2)
    np.testing.assert_allclose(values[:2], expected, atol=1e-5)
    np.testing.assert_allclose(values[[2, 3, 5]], WORLD.sibling_scores()[[2, 3, 5]], atol=1e-5)


@ray.remote
class Rank:
    """Reads scores as a learner's rank does."""

    def read(self, scores: list[Any]) -> list[Scores]:
        return ray.get(scores)


async def test_a_spent_budget_reaches_the_loop_as_what_it_is(start: Any, server: Server) -> None:
    """Through the mix's task and the rank's: a Stopped of one sentence. The budget buys three answers or so."""
    reward = await start(
        [{"kind": "judge_score"}], budget_usd=0.0015, price={"input": 1.0, "output": 2.0}, max_concurrency=1
    )
    scores = reward.score(tuple(ray.put(shard) for shard in WORLD.shards))
    with pytest.raises(ray.exceptions.RayTaskError) as error:
        await Rank.remote().read.remote(list(scores))
    stop = cause_of(error.value)
    assert isinstance(stop, Stopped)
    assert re.search(r"^\d of 6 answers are not judged .*judge\.budget_usd", str(stop))
    assert "\n" not in str(stop)
    assert 0 < len(server.questions) < 6


async def test_going_on_without_labels_leaves_answers_without_a_reward(start: Any) -> None:
    reward = await start(
        [{"kind": "judge_score"}],
        budget_usd=0.0015,
        price={"input": 1.0, "output": 2.0},
        max_concurrency=1,
        when_spent="go_on",
    )
    scores = score(reward)
    valid = np.concatenate([one.valid for one in scores])
    assert 0 < valid.sum() < 6
    assert np.isnan(whole(scores)).tolist() == (~valid).tolist()


async def test_where_no_answer_has_a_reward_the_run_ends_with_the_reason(start: Any, server: Server) -> None:
    """Else the learner would have nothing to learn from, and nothing to say of it."""
    server.refused = ""
    reward = await start([{"kind": "judge_score"}, {"kind": "rule", "function": "words"}])
    with pytest.raises(ray.exceptions.RayTaskError) as error:
        score(reward)
    told = cause_of(error.value)
    assert isinstance(told, UserError)
    assert str(told).startswith("reward: none of 6 answers has a reward (judge_score: HTTP 400")
    assert "\n" not in str(told)


async def test_a_killed_mix_scores_again_and_buys_nothing_twice(start: Any, server: Server) -> None:
    server.latency_s = 0.2
    reward = await start([{"kind": "judge_pairs"}, {"kind": "rule", "function": "words"}], max_concurrency=2)
    pid = await ray.get_actor("reward-mix").__ray_call__.remote(lambda _: os.getpid())
    references = reward.score(tuple(ray.put(shard) for shard in WORLD.shards))
    await until(lambda: len(server.questions) >= 3)
    os.kill(pid, signal.SIGKILL)
    scores = await asyncio.gather(*references)
    np.testing.assert_allclose(whole(list(scores)), WORLD.sibling_scores() + LENGTHS, atol=1e-5)
    assert len(server.questions) == len(set(server.questions))


async def test_a_rule_that_cannot_be_loaded_is_told_at_the_start(start: Any, policy: Path) -> None:
    with pytest.raises(UserError, match=r"reward\.mix: nothing of .*rules\.py cannot be loaded \(AttributeError"):
        await start([{"kind": "rule", "function": "nothing"}])


async def test_the_watch_asks_about_its_sample_alone(start: Any, server: Server) -> None:
    """Rewards that fall with every word, against a judge who scores by the word: rank correlation -1."""
    stage = await start.watch(4)
    scores = [
        Scores(shard.sample_ids, -LENGTHS[3 * k : 3 * k + 3].astype(np.float32), np.array([True, True, k == 0]))
        for k, shard in enumerate(WORLD.shards)
    ]
    measured = await stage.watch(tuple(map(ray.put, WORLD.shards)), tuple(map(ray.put, scores)))
    assert measured[metrics.WATCHED] == 4
    assert measured[metrics.WATCHED_CORRELATION] == pytest.approx(-1.0)
    assert measured[metrics.WATCHED_REWARD_MEAN] == pytest.approx(
        -(9 * (measured[metrics.WATCHED_JUDGE_MEAN] + 1) / 2 + 1), abs=1e-4
    )
    assert len(server.questions) <= 4


async def test_a_watch_that_cannot_be_paid_for_stops_the_run(start: Any) -> None:
    stage = await start.watch(4, budget_usd=0.0, price={"input": 1.0, "output": 2.0})
    scores = [Scores(shard.sample_ids, np.zeros(3, dtype=np.float32), np.ones(3, dtype=bool)) for shard in WORLD.shards]
    with pytest.raises(Stopped, match="4 of 4 answers are not judged"):
        await stage.watch(tuple(map(ray.put, WORLD.shards)), tuple(map(ray.put, scores)))
