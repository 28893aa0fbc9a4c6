import contextlib
import json

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scripted_judge import FAILED, LISTS, OVER_BUDGET, REFUSED, WORDS_ONLY, Pairwise, Pointwise, chat, drive, in_turn

from rlaif_ray.judge.asking.ladder import NoCompletion
from rlaif_ray.judge.asking.modes import pair_steps
from rlaif_ray.judge.asking.pointwise import score_steps
from rlaif_ray.judge.asking.probe import probe
from rlaif_ray.judge.asking.terms import Abilities, AskSettings, Mode
from rlaif_ray.judge.reading import Reading, ScoreReading
from rlaif_ray.judge.request import Answer, Request, Steps
from rlaif_ray.records import Outcome

STATED = chat('{"reasoning": "x", "verdict": "1"}')
CHOSEN = chat("1", {"1": 0.8, "2": 0.2})


@pytest.mark.parametrize(
    ("mode", "abilities", "said", "p"),
    [
        (Mode.AUTO, LISTS, [CHOSEN], 0.8),
        (Mode.AUTO, WORDS_ONLY, [STATED], 0.75),
        (Mode.CHOICE, LISTS, [CHOSEN], 0.8),
        (Mode.CHOICE, WORDS_ONLY, [chat("1", finish="length")], 0.75),
        (Mode.REASONED, LISTS, [chat("Hm."), CHOSEN], 0.8),
        (Mode.REASONED, WORDS_ONLY, [chat("Hm."), chat("1")], 0.75),
        (Mode.STATED, LISTS, [STATED], 0.75),
    ],
)
def test_each_mode_asks_in_its_way(mode: Mode, abilities: Abilities, said: list[str], p: float) -> None:
    reading, batches = drive(pair_steps(mode, abilities, Pairwise(), AskSettings()), in_turn(*said))
    assert reading.p_first == pytest.approx(p)
    assert len(batches) == len(said)


# A machine that is busy makes no test fail.
UNHURRIED = hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

tokens = st.sampled_from(["1", " 1", "2", "10", "0", "", "**", "I", "</think>"])
positions = st.lists(st.dictionaries(tokens, st.floats(1e-9, 0.12), min_size=1), max_size=4)
texts = st.sampled_from(
    ["", "1", "Verdict: 2", "Score: 7", "Both.", '{"verdict": "1"}', '{"score": 3}', "</think>", "10"]
)
replies = st.builds(
    lambda text, listed, finish: chat(text, *listed, finish=finish),
    texts | st.text(max_size=20),
    positions,
    st.sampled_from(["stop", "length", "content_filter"]),
)
unread = st.sampled_from(["<html>", "{}", json.dumps({"choices": [{"message": None}]}), chat(None, refusal="No.")])
answers = replies | unread | st.sampled_from([FAILED, OVER_BUDGET, REFUSED])
abilities = st.builds(
    Abilities,
    top_logprobs=st.sampled_from([0, 5, 20]),
    shortest_reply=st.sampled_from([1, 16]),
    temperature=st.booleans(),
)
settings = st.builds(
    AskSettings,
    min_label_mass=st.floats(0, 1),
    samples=st.integers(1, 3),
    clamp=st.none() | st.just((0.4, 0.6)),
)


def drive_with(steps: Steps[Reading] | Steps[ScoreReading], data: st.DataObject, most: int) -> Reading | ScoreReading:
    def judge(request: Request) -> str | Answer:
        assert len(asked) < most
        asked.append(request)
        return data.draw(answers)

    asked: list[Request] = []
    reading, _ = drive(steps, judge)
    assert len(set(asked)) == len(asked)  # nothing is asked twice: a ledger would answer the same
    return reading


@UNHURRIED
@given(st.data(), st.sampled_from(Mode), abilities, settings)
def test_whatever_a_judge_replies_a_pair_ends_scored_or_with_a_reason(
    data: st.DataObject, mode: Mode, abilities: Abilities, settings: AskSettings
) -> None:
    reading = drive_with(pair_steps(mode, abilities, Pairwise(), settings), data, most=9)
    assert isinstance(reading, Reading)
    assert (reading.outcome is Outcome.SCORED) == (reading.p_first is not None) == (not reading.reason)
    if reading.p_first is not None:
        assert 0 <= reading.p_first <= 1
        assert reading.rung is not None


@UNHURRIED
@given(st.data(), abilities, settings, st.sampled_from([(1, 10), (1, 5), (0, 100), (10, 20)]))
def test_whatever_a_judge_replies_a_score_is_on_the_scale_or_there_is_a_reason(
    data: st.DataObject, abilities: Abilities, settings: AskSettings, scale: tuple[int, int]
) -> None:
    reading = drive_with(score_steps(Pointwise(scale=scale), abilities, settings), data, most=40)
    assert isinstance(reading, ScoreReading)
    assert (reading.outcome is Outcome.SCORED) == (reading.score is not None) == (not reading.reason)
    if reading.score is not None:
        assert scale[0] <= reading.score <= scale[1] + 1e-9


@UNHURRIED
@given(st.data(), st.sampled_from(Mode))
def test_whatever_an_endpoint_replies_the_probe_ends(data: st.DataObject, mode: Mode) -> None:
    calls = 0

    def judge(request: Request) -> str | Answer:
        nonlocal calls
        calls += 1
        return data.draw(replies | unread | st.just(REFUSED))

    with contextlib.suppress(NoCompletion):
        abilities, _ = drive(probe(mode), judge)
        assert abilities.shortest_reply in {1, 16, 4096}
    assert calls <= 20


@UNHURRIED
@given(st.dictionaries(st.sampled_from(["1", " 1", "2", "I"]), st.floats(1e-6, 0.25), min_size=1))
def test_exchanging_the_labels_mirrors_the_probability(position: dict[str, float]) -> None:
    p = [
        drive(
            pair_steps(Mode.CHOICE, LISTS, Pairwise(labels=labels), AskSettings(min_label_mass=0.0)),
            lambda request: chat("I", position),
        )[0].p_first
        for labels in (("1", "2"), ("2", "1"))
    ]
    assert (p[0] is None and p[1] is None) or sum(share or 0.0 for share in p) == pytest.approx(1)
