"""The constitutional recipe as a user starts it: killed while it revises, gone on with, finished."""

from __future__ import annotations

import itertools
import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rlaif_ray.constitution.storage import read_chains
from rlaif_ray.judge.material import load_constitution
from rlaif_ray.preferences.dataset import read_preferences
from rlaif_ray.records import Chain, RevisionOutcome
from rlaif_ray.rundir import RunDirectory
from tests.rlaif_command import Command

RECIPE = Path(__file__).parents[2] / "scripts" / "configs" / "constitutional.yaml"
ROUNDS, RED_TEAM, HELD_OUT = 3, 1_200, 50
SMALL = [
    *("prompts.limit=200", f"prompts.held_out={HELD_OUT}"),
    *(f"constitution.prompts.limit={RED_TEAM}", f"constitution.prompts.held_out={HELD_OUT}"),
    *(f"constitution.rounds={ROUNDS}", "sft.limit=400", "sft.epochs=1"),
    *("collect.prompts=40", "collect.answers_per_prompt=2", "collect.pairs_per_prompt=1"),
    "reward.preferences=[{path: toyworld:discretion, source: human, limit: 40}]",
    *("reward.epochs=1", "reward.batch_size=16", "reward.micro_batch_size=16"),
    *("ppo.iterations=2", "ppo.prompts_per_iteration=16", "ppo.minibatch_size=16", "ppo.value_warmup_iterations=0"),
]


@dataclass(frozen=True)
class Finished:
    """A run, the output of its last command, and when its first file of chains was written, before and after."""

    directory: RunDirectory
    output: str
    written: tuple[int, int]

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads(self.directory.summary.read_text()))

    @property
    def chains(self) -> list[Chain]:
        return read_chains(self.directory.chains)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> Finished:
    folder = tmp_path_factory.mktemp("constitutional")
    directory = RunDirectory(folder / "run")
    words = (str(RECIPE), f"run_dir={directory.path}", *SMALL)
    first = directory.chains / "0000.parquet"
    killed = Command.start("constitute", *words, log=folder / "killed.log", ray_address=ray_address)
    killed.wait_until(first.exists)
    killed.end_by(signal.SIGKILL)
    before = first.stat().st_mtime_ns
    finished = Command.start("run", *words, log=folder / "finished.log", ray_address=ray_address)
    output = finished.finished()
    return Finished(directory, output, (before, first.stat().st_mtime_ns))


def test_chains_that_were_drawn_before_a_kill_are_kept(run: Finished) -> None:
    assert run.written[0] == run.written[1]
    assert len(run.chains) == RED_TEAM - HELD_OUT
    assert {len(chain.revisions) for chain in run.chains} == {ROUNDS}


def test_every_revision_names_its_principle(run: Finished) -> None:
    ids = {principle.id for principle in load_constitution("discretion")}
    assert {revision.principle for chain in run.chains for revision in chain.revisions} == ids
    for chain in run.chains:
        texts = [chain.answer, *(revision.text for revision in chain.revisions)]
        for (before, after), revision in zip(itertools.pairwise(texts), chain.revisions, strict=True):
            assert (before != after) == (revision.outcome is RevisionOutcome.REVISED)


def test_every_judgement_names_its_principle_and_people_are_asked_too(run: Finished) -> None:
    rows = read_preferences(run.directory.preferences)
    assert {row.label_source for row in rows} == {"ai", "human"}
    ids = {principle.id for principle in load_constitution("discretion")}
    drawn = {member.principle for row in rows if row.label_source == "ai" for member in row.members}
    assert drawn
    assert drawn <= ids
    assert set(pq.read_table(run.directory.samples("principles")).column("principle").to_pylist()) <= ids


def test_nothing_is_trained_on_prompts_that_are_held_out(run: Finished) -> None:
    held_out = set(pq.read_table(run.directory.samples("evaluation")).column("prompt_id").to_pylist())
    assert len(held_out) == 2 * HELD_OUT
    assert not held_out & {chain.prompt.id for chain in run.chains}
    compared = [row for row in read_preferences(run.directory.preferences) if row.label_source == "ai"]
    assert not held_out & {row.prompt_id for row in compared}
    assert {row.prompt_id for row in compared} <= {chain.prompt.id for chain in run.chains}


def test_the_summary_tells_the_conduct_of_all_three_models(run: Finished) -> None:
    summary = run.summary
    counts = summary["constitution"]
    assert (counts["chains"], counts["rounds"]) == (RED_TEAM - HELD_OUT, ROUNDS)
    assert sum(counts[outcome.value] for outcome in RevisionOutcome) == (RED_TEAM - HELD_OUT) * ROUNDS
    conduct = summary["conduct"]
    assert list(conduct) == ["initial", "sft", "policy"]
    assert {each["judged_by"] for each in conduct.values()} == {"gold"}
    # Of what was revised, most does no harm; of what the model says by itself, little.
    assert conduct["sft"]["harmless"] > conduct["initial"]["harmless"] + 0.15


def test_the_report_shows_chains(run: Finished) -> None:
    page = run.directory.report.read_text()
    assert run.chains[0].prompt.text.split()[0] in page
    assert "Constitution" in page
    assert "constitute" in run.output
