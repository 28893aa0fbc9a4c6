"""What the report reads of a constitution: rates, by gold where the source knows it, and chains of each kind."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from synthetic_constitution import (
    CHAT_CHAINS,
    LABELS,
    TOY_CHAINS,
    TOY_ROUNDS,
    VERDICTS,
    write_chat_constitution,
    write_toy_constitution,
)

from rlaif_ray.config import UserError
from rlaif_ray.records import Chain
from rlaif_ray.report.reading import read_run
from rlaif_ray.report.revised import ChainKind, Revised
from rlaif_ray.rundir import RunDirectory


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return write_toy_constitution(tmp_path_factory.mktemp("runs") / "toy")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return write_chat_constitution(tmp_path_factory.mktemp("runs") / "chat")


def revised(directory: RunDirectory) -> Revised:
    found = read_run(directory.path).revised
    assert found is not None
    return found


def test_gold_judges_where_the_red_team_source_knows_it(toy: RunDirectory) -> None:
    """The first answers tell all that is asked for, which does harm on every red-team prompt."""
    found = revised(toy)
    assert (found.chains, found.verdicts) == (TOY_CHAINS, VERDICTS - 1)
    assert [one.round for one in found.rounds] == list(range(TOY_ROUNDS + 1))
    assert {one.judged_by for one in found.rounds} == {"gold"}
    harmless = [one.harmless.value for one in found.rounds if one.harmless is not None]
    assert harmless[0] == 0.0
    assert harmless == sorted(harmless)
    assert harmless[-1] > 0.4
    assert sum(one.revisions for one in found.principles) == TOY_CHAINS * TOY_ROUNDS
    assert sum(one.labels for one in found.principles) == LABELS
    assert all(one.agreement is not None for one in found.principles)


def test_elsewhere_phrases_judge(chat: RunDirectory) -> None:
    """Of every five chains the second is confused in round 1, the first is never revised, and all others are revised to
    a refusal of some kind; one in four of the revisions offers nothing beside."""
    found = revised(chat)
    assert {one.judged_by for one in found.rounds} == {"phrases"}
    assert [one.harmless for one in found.rounds] == [None] * 3
    refusals = [one.refusals.value for one in found.rounds if one.refusals is not None]
    assert refusals == pytest.approx([0, 36 / CHAT_CHAINS, 48 / CHAT_CHAINS])
    assert all(one.agreement is None for one in found.principles)


def word_overlap(chain: Chain) -> float:
    """Independently of what is tested: for chains whose words do not repeat."""
    before, after = set(chain.answer.split()), set(chain.revisions[-1].text.split())
    return len(before & after) / len(before | after)


def test_the_most_changed_chains_and_some_of_each_other_kind_are_shown(toy: RunDirectory) -> None:
    shown = revised(toy).shown
    assert [each.kind for each in shown] == [ChainKind.CHANGED] * 4 + [ChainKind.UNCHANGED] * 4 + [ChainKind.BROKEN] * 4
    overlaps = [word_overlap(each.chain) for each in shown[:4]]
    assert overlaps == sorted(overlaps)
    assert overlaps[-1] <= 2 / 4  # one fact of three is left, or two of which one was joined by `sorry`
    assert all(each.chain.revisions[-1].text == each.chain.answer for each in shown[4:8])
    assert revised(toy).shown == shown


def test_a_run_without_chains_has_none(tmp_path: Path) -> None:
    directory = write_toy_constitution(tmp_path)
    for file in directory.chains.iterdir():
        file.unlink()
    directory.chains.rmdir()
    assert read_run(tmp_path).revised is None


def test_a_run_that_was_stopped_before_it_compared_has_its_chains(tmp_path: Path) -> None:
    directory = write_chat_constitution(tmp_path)
    directory.preferences.unlink()
    directory.samples("principles").unlink()
    found = revised(directory)
    assert (found.verdicts, {one.principle for one in found.principles}) == (None, {"no-harm", "privacy"})


def test_a_broken_file_of_chains_is_named(tmp_path: Path) -> None:
    directory = write_chat_constitution(tmp_path)
    (directory.chains / "0001.parquet").write_text("{ broken\n")
    with pytest.raises(UserError, match=r"0001\.parquet: is not a parquet file"):
        read_run(tmp_path)


def test_a_column_that_chains_lack_is_named(tmp_path: Path) -> None:
    directory = write_chat_constitution(tmp_path)
    file = directory.chains / "0000.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["critique"]), file)
    with pytest.raises(UserError, match=r"0000\.parquet: has no column 'critique'"):
        read_run(tmp_path)
