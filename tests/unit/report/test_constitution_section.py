"""The report's section on a constitution: figures, the table by principle, chains side by side, and the caution."""

from pathlib import Path

import pytest
from report_page import Page
from synthetic_constitution import write_chat_constitution, write_toy_constitution
from synthetic_run import HOSTILE_ANSWER, write_synthetic_run

from rlaif_ray.report.html import write_report
from rlaif_ray.report.summary import read_summary, write_summary
from rlaif_ray.rundir import RunDirectory


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Page:
    directory = write_toy_constitution(tmp_path_factory.mktemp("runs") / "toy")
    return Page(write_report(directory.path).read_text())


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return write_chat_constitution(tmp_path_factory.mktemp("runs") / "chat")


@pytest.fixture(scope="module")
def chat(chat_run: RunDirectory) -> Page:
    return Page(write_report(chat_run.path).read_text())


def text(page: Page) -> str:
    return " ".join(page.text.split())


def test_a_run_without_a_constitution_says_nothing_of_one(tmp_path: Path) -> None:
    page = Page(write_report(write_synthetic_run(tmp_path).path).read_text())
    assert "constitution" not in page.sections
    assert "Constitution" not in page.text
    assert not {"conduct", "revision-rates"} & set(page.figures)


def test_every_figure_has_its_panel(toy: Page, chat: Page) -> None:
    for page in (toy, chat):
        assert "constitution" in page.sections
        assert {"conduct", "revision-rates", "revision-outcomes", "revision-words"} <= set(page.figures)
        assert sorted(page.panels) == sorted(page.figures)


def test_models_stand_beside_each_other_with_intervals(toy: Page) -> None:
    initial, sft, policy = toy.figures["conduct"]["traces"]
    assert [one["name"] for one in (initial, sft, policy)] == ["initial model", "SFT on revisions", "policy"]
    assert initial["x"] == ["harmless", "helpful", "evasive", "refusals", "needless refusals"]
    assert [one["y"][0] for one in (initial, sft, policy)] == [0.11, 0.74, 0.92]
    assert policy["error_y"]["array"][:3] == pytest.approx([0.02, 0.01, 0.008])
    assert policy["error_y"]["array"][3:] == [None, None]  # the summary has no interval


def test_rates_by_round_are_golds_where_it_is_known_and_phrases_elsewhere(toy: Page, chat: Page) -> None:
    names = {page: [trace["name"] for trace in page.figures["revision-rates"]["traces"]] for page in (toy, chat)}
    assert names == {toy: ["harmless", "helpful", "evasive", "refusals"], chat: ["evasive", "refusals"]}
    assert "judged by gold" in toy.note_of("revision-rates")
    assert "by their phrases, a heuristic" in chat.note_of("revision-rates")


def test_outcomes_of_rounds_add_up(chat: Page) -> None:
    """Of every five chains, round 1 leaves one unchanged and confuses one; round 2 leaves one unchanged and cuts one
    off."""
    traces = {trace["name"]: trace["x"] for trace in chat.figures["revision-outcomes"]["traces"]}
    assert traces == {
        "revised": pytest.approx([0.6, 0.6]),
        "unchanged": pytest.approx([0.2, 0.2]),
        "confused": pytest.approx([0.2, 0.0]),
        "truncated": pytest.approx([0.0, 0.2]),
    }


def test_tiles_tell_the_policy_beside_the_models_before(toy: Page, chat: Page) -> None:
    for shown in (
        "Harmless 92.0 % 90.0 to 94.0 % · SFT 74.0 %, initial model 11.0 %",
        "Evasive 4.0 % 3.2 to 4.8 % · SFT 3.0 %, initial model 1.0 %",
        "Needless refusals 2.0 % SFT 3.0 %, initial model 2.0 %",
    ):
        assert shown in text(toy)
    assert "Harmless not measured" in text(chat)
    assert "Evasive 19.0 % 17.5 to 20.5 % · SFT 6.0 %, initial model 2.0 % · told by phrases" in text(chat)


def test_a_policy_that_says_less_is_called_so(toy: Page, chat: Page) -> None:
    """Evasive answers rose by 17 points in one run and by 3 in the other."""
    cautions = [
        [attributes for tag, attributes in page.elements if attributes.get("class") == "caution"]
        for page in (toy, chat)
    ]
    assert [len(each) for each in cautions] == [0, 1]
    assert "Harmless by saying nothing? From the initial model to the policy evasive answers rose from 2.0" in text(
        chat
    )
    assert "needless refusals rose" not in text(chat)


def test_principles_are_tabled(toy: Page, chat: Page) -> None:
    header = (
        "Principle Revisions Changed the answer Confused Labels Agrees with gold Sureness Consistent Compared Win rate"
    )
    (start,) = (number for number, cells in enumerate(toy.rows) if " ".join(cells) == header)
    table = toy.rows[start + 1 : start + 5]
    assert [cells[0] for cells in table] == ["cruel", "false", "private", "unsafe"]
    counts = [[int(cells[column].replace(",", "")) for cells in table] for column in (1, 4, 8)]
    assert [sum(each) for each in counts] == [1200, 200, 119]
    # Where only phrases tell, nobody knows what gold would say.
    (start,) = (number for number, cells in enumerate(chat.rows) if " ".join(cells) == header)
    assert [cells[5] for cells in chat.rows[start + 1 : start + 4]] == ["–"] * 3
    assert chat.rows[start + 1][0] == HOSTILE_ANSWER


def test_chains_stand_side_by_side(chat: Page) -> None:
    headings = ("Answer", "Critique 1", "Revision 1", "Critique 2", "Revision 2")
    assert all(part in chat.text for part in headings)
    steps = [attributes for _, attributes in chat.elements if attributes.get("class") == "steps"]
    assert len(steps) == 12
    assert "as before: 256 tokens were not enough" in text(chat)


def test_long_texts_are_folded_and_shown_whole_within(chat: Page) -> None:
    folded = [attributes for tag, attributes in chat.elements if tag == "details" and attributes.get("class") == "long"]
    assert folded
    assert all("open" not in attributes for attributes in folded)
    assert "feel for the next. A drill of one's own" in text(chat)


def test_no_text_of_a_chain_becomes_markup(chat_run: RunDirectory, chat: Page) -> None:
    """The hostile text is a prompt, an answer, a critique, a revision, a reason and a principle."""
    assert chat.text.count(HOSTILE_ANSWER) > 6
    assert f"as before: repeats {HOSTILE_ANSWER}" in text(chat)
    assert HOSTILE_ANSWER not in chat_run.report.read_text()
    assert not {"img", "b"} & {tag for tag, attributes in chat.elements if tag == "img" or attributes.get("onerror")}


def test_without_chains_the_page_says_what_is_not_there(tmp_path: Path) -> None:
    directory = write_chat_constitution(tmp_path)
    for file in directory.chains.iterdir():
        file.unlink()
    directory.chains.rmdir()
    write_summary(read_summary(tmp_path).model_copy(update={"conduct": {}}))
    page = Page(write_report(tmp_path).read_text())
    assert "constitution/chains: answers to red-team prompts and their revisions" in page.text
    assert "constitution" not in page.sections


def test_without_verdicts_the_page_says_so(tmp_path: Path) -> None:
    directory = write_chat_constitution(tmp_path)
    directory.samples("principles").unlink()
    page = Page(write_report(tmp_path).read_text())
    assert "samples/principles.parquet: how the policy fares by each principle" in page.text
