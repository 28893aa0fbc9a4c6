"""The report shows what a run directory holds, says what it does not, and lets no text of a model become markup."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_run import HOSTILE_ANSWER, write_synthetic_run

from rlaif_ray.config import UserError
from rlaif_ray.report.html import write_report
from rlaif_ray.report.reading import read_run
from rlaif_ray.report.summary import Summary, write_summary
from rlaif_ray.rundir import RunDirectory


class Page(HTMLParser):
    """A parsed page: its elements with their attributes, and its text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.text += data

    @property
    def figures(self) -> dict[str, dict[str, object]]:
        return json.loads(self.scripts[0])

    @property
    def panels(self) -> list[str]:
        return [str(attributes["data-figure"]) for _, attributes in self.elements if "data-figure" in attributes]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return write_synthetic_run(tmp_path_factory.mktemp("runs") / "headlines-7")


@pytest.fixture(scope="module")
def page(full: RunDirectory) -> Page:
    return Page(write_report(full.path).read_text())


def test_a_full_run_has_every_figure_and_a_panel_for_each(page: Page) -> None:
    assert {
        "outcomes", "utilities", "frontier", "soft-preferences", "positions", "stage-times",
        "sft-loss", "reward-loss", "reward-accuracy", "ppo-reward_mean", "ppo-kl", "ppo-answer_length",
        "ppo-value_loss", "ppo-clip_fraction", "ppo-entropy", "ppo-logprob_gap", "ppo-explained_variance",
    } <= set(page.figures)  # fmt: skip
    assert sorted(page.panels) == sorted(page.figures)


def test_headline_figures_are_those_of_the_summary(page: Page) -> None:
    text = " ".join(page.text.split())
    for shown in (
        "Win rate against SFT 71.8 %", "69.2 to 74.4 %", "judged by gold", "Labeler alignment 84.2 %",
        "Reward accuracy 88.4 %", "KL from SFT 3.41 nats", "4.9 → 5.6 tokens", "+14 % against SFT", "9 min 21 s",
    ):  # fmt: skip
        assert shown in text


def test_soft_preferences_count_every_pair_once(page: Page) -> None:
    traces = page.figures["soft-preferences"]["traces"]
    assert sum(sum(trace["y"]) for trace in traces) == 894


def test_the_text_of_a_model_stays_text(full: RunDirectory, page: Page) -> None:
    assert HOSTILE_ANSWER in page.text
    assert "<b>flood</b> merger" in page.text
    assert HOSTILE_ANSWER not in full.report.read_text()
    assert "img" not in [tag for tag, _ in page.elements]
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    nonces = {attributes.get("nonce") for attributes in scripts}
    assert len(scripts) == 3
    assert len(nonces) == 2  # the data has none, the two programs share one


def test_nothing_is_fetched(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    policy = next(str(a["content"]) for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'nonce-")


def test_a_lone_summary_makes_a_report_that_says_what_is_not_there(tmp_path: Path) -> None:
    write_summary(Summary(seed=0, wall_s=3.0, stages={}, run_dir=tmp_path))
    page = Page(write_report(tmp_path).read_text())
    assert page.figures == {}
    assert page.text.count("not measured") == 7  # every tile but the wall time, and the verdict
    for name in (
        "config.yaml", "metrics.jsonl", "evaluation.parquet", "collect.parquet", "preferences.parquet",
        "judgements.parquet",
    ):  # fmt: skip
        assert name in page.text


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ('{"choices": [{"message": {"content": "2"}}]}', "2"),
        ('{"choices": []}', '{"choices": []}'),
        ('{"choices": [{"message": {"content": null}}]}', '{"choices": [{"message": {"content": null}}]}'),
        ("1", "1"),
    ],
)
def test_a_reply_is_shown_by_what_it_says_or_else_whole(tmp_path: Path, reply: str, answer: str) -> None:
    directory = write_synthetic_run(tmp_path)
    table = pq.read_table(directory.judgements)
    table = table.set_column(table.column_names.index("raw_reply"), "raw_reply", pa.array([reply] * len(table)))
    pq.write_table(table, directory.judgements)
    judged = read_run(directory.path).judged
    assert judged is not None
    assert judged.shown is not None
    assert judged.shown.answer == answer


def test_a_control_that_asks_nobody_shows_no_prompt(tmp_path: Path) -> None:
    directory = write_synthetic_run(tmp_path)
    table = pq.read_table(directory.judgements)
    nobody = pa.array([""] * len(table))
    pq.write_table(
        table.set_column(table.column_names.index("judge_prompt"), "judge_prompt", nobody), directory.judgements
    )
    page = Page(write_report(directory.path).read_text())
    assert "No prompt: nobody was asked." in page.text


def test_positions_are_counted_over_pairs_with_both_orders_scored(tmp_path: Path) -> None:
    directory = write_synthetic_run(tmp_path)
    # a: the same answer twice; b: always the first; c: always the second; d: undecided; e: one order failed
    verdicts = {"a": (0.9, 0.2), "b": (0.6, 0.7), "c": (0.4, 0.1), "d": (0.5, 0.3), "e": (0.8, None)}
    row = pq.read_table(directory.judgements).to_pylist()[-1]
    rows = [
        {**row, "pair_id": pair, "order": order, "p_first": p, "outcome": "failed" if p is None else "scored"}
        for pair, both in verdicts.items()
        for order, p in zip(("ab", "ba"), both, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), directory.judgements)
    judged = read_run(directory.path).judged
    assert judged is not None
    assert (judged.consistent, judged.always_first, judged.always_second, judged.undecided) == (1, 1, 1, 1)
    assert judged.outcomes["failed"] == 1
    assert judged.mean_p_first == pytest.approx(4.5 / 9)


def test_without_a_summary_there_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"summary\.json does not exist"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "metrics.jsonl",
        "samples/evaluation.parquet",
        "samples/collect.parquet",
        "preferences/preferences.parquet",
        "judgements/judgements.parquet",
    ],
)
def test_a_corrupt_file_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    directory = write_synthetic_run(tmp_path)
    (directory.path / name).write_text("{ broken\n")
    with pytest.raises(UserError, match=re.escape(name)):
        write_report(directory.path)


def test_a_missing_column_is_an_error_that_names_it(tmp_path: Path) -> None:
    directory = write_synthetic_run(tmp_path)
    directory.preferences.write_bytes(directory.samples("collect").read_bytes())
    with pytest.raises(UserError, match=r"preferences\.parquet: has no column 'p'"):
        write_report(directory.path)


def test_a_value_that_is_not_a_number_leaves_a_gap(tmp_path: Path) -> None:
    write_summary(Summary(seed=0, wall_s=3.0, stages={}, run_dir=tmp_path))
    lines = [{"stage": "sft", "step": 1, "total": 2, "time": 1.0, "values": {"loss": None}}]
    lines += [{"stage": "sft", "step": 2, "total": 2, "time": 2.0, "values": {"loss": 0.5}}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = Page(write_report(tmp_path).read_text()).figures
    assert figures["sft-loss"]["traces"][0]["y"] == [None, 0.5]
