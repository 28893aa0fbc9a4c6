"""The report shows what a run directory holds, says what it does not, and lets no text of a model become markup."""

import json
import math
import re
from dataclasses import fields
from pathlib import Path

import pytest
from judge_records import judgement, pair
from report_page import Page
from synthetic_run import HOSTILE_ANSWER, write_synthetic_run

from rlaif_ray.config import UserError
from rlaif_ray.evaluation.held_out import HeldOutPair, write_held_out
from rlaif_ray.judge.control import flip_coin
from rlaif_ray.preferences.judgements import write_judgements
from rlaif_ray.records import Judgement, Order, Outcome
from rlaif_ray.report.html import write_report
from rlaif_ray.report.summary import Summary, read_summary, write_summary
from rlaif_ray.rundir import RunDirectory, write_atomically


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return write_synthetic_run(tmp_path_factory.mktemp("runs") / "headlines-7")


@pytest.fixture(scope="module")
def page(full: RunDirectory) -> Page:
    return Page(write_report(full.path).read_text())


def test_a_full_run_has_every_figure_and_a_panel_for_each(page: Page) -> None:
    assert {
        "outcomes", "utilities", "frontier", "soft-preferences", "positions", "rungs", "label-mass", "stage-times",
        "sft-loss", "reward-loss", "reward-accuracy", "ppo-reward_mean", "ppo-kl", "ppo-answer_length",
        "ppo-value_loss", "ppo-clip_fraction", "ppo-entropy", "ppo-logprob_gap", "ppo-explained_variance",
        "ppo-reward/reward_model", "watch-watched_correlation", "pretrain-reward-loss", "rounds-win-rate",
        "held-out-reliability", "held-out-label-margin", "held-out-score-margin", "held-out-length", "held-out-kind",
    } <= set(page.figures)  # fmt: skip
    assert sorted(page.panels) == sorted(page.figures)


def test_headline_figures_are_those_of_the_summary(page: Page) -> None:
    text = " ".join(page.text.split())
    for shown in (
        "Win rate against SFT 71.8 %", "69.2 to 74.4 %", "judged by gold", "Labeler alignment 84.2 %",
        "Reward accuracy 88.4 %", "KL from SFT 3.41 nats", "4.9 → 5.6 tokens", "+14 % against SFT", "9 min 21 s",
    ):  # fmt: skip
        assert shown in text


def test_soft_preferences_count_every_pair_once_and_people_apart(page: Page) -> None:
    counts = {trace["name"]: sum(trace["y"]) for trace in page.figures["soft-preferences"]["traces"]}
    # Of 900 pairs, both judges have no number for 0, 300 and 600: one abstained, the other failed in an order.
    assert sum(counts.values()) == 897 + 120
    assert counts["human labels"] == 120


def test_every_held_out_pair_that_was_scored_is_counted(page: Page) -> None:
    # Of 400 pairs one could not be scored. A quarter has human labels, and a third was collected by each round.
    assert sum(page.figures["held-out-reliability"]["traces"][-1]["y"]) == 399
    (kinds,) = page.figures["held-out-kind"]["traces"]
    assert kinds["y"] == [
        "judge's labels · 299", "human labels · 100", "round 1 · 133", "round 2 · 133", "round 3 · 133",
        "models agree · 100", "models disagree · 100",
    ]  # fmt: skip


def test_the_rounds_are_told(page: Page) -> None:
    assert {"rounds", "reward"} <= page.sections
    assert "3 rounds of collecting, fitting and training" in page.text
    (win_rate,) = page.figures["rounds-win-rate"]["traces"]
    assert win_rate["y"] == pytest.approx([0.618, 0.668, 0.718])
    # Rounds of 40 iterations end after the 40th and the 80th.
    assert [mark["x0"] for mark in page.figures["ppo-kl"]["layout"]["shapes"]] == [40.5, 80.5]


def test_the_policy_that_was_taken_is_marked_and_told(page: Page) -> None:
    """Rounds of 40 iterations, validated every ten, each the best after its thirtieth: 0.5 + 0.06 * 3 + 0.002 * 30 is
    what the last one's won."""
    curve, taken = page.figures["validation"]["traces"]
    assert curve["x"] == list(range(10, 130, 10))
    assert (taken["x"], taken["text"]) == ([30, 70, 110], ["taken: 30", "taken: 70", "taken: 110"])
    assert taken["y"] == [curve["y"][curve["x"].index(iteration)] for iteration in taken["x"]]
    text = " ".join(page.text.split())
    assert (
        "The policy was taken as it was after iteration 110, when it won most on the validation prompts: 74.0" in text
    )
    assert "taken after iteration 110" in text
    assert not [name for name in page.figures if name.startswith("validation-")], "shown once"


def test_a_run_that_was_not_validated_says_nothing_of_it(tmp_path: Path) -> None:
    directory = write_synthetic_run(tmp_path)
    rows = [line for line in directory.metrics.read_text().splitlines() if '"stage": "validation"' not in line]
    directory.metrics.write_text("\n".join(rows) + "\n")
    unmeasured = {"taken_iteration": None, "validation_win_rate": None, "validation_win_rate_ci": None}
    summary = read_summary(tmp_path)
    policy = summary.policy.model_copy(update=unmeasured)
    write_summary(summary.model_copy(update={"policy": policy, "rounds": ()}))
    page = Page(write_report(tmp_path).read_text())
    assert "validation" not in page.figures
    assert "was taken as it was" not in page.text


def test_a_run_from_before_held_out_pairs_were_kept_is_shown_without_them(tmp_path: Path) -> None:
    directory = write_synthetic_run(tmp_path)
    directory.reward_held_out.unlink()
    write_summary(read_summary(tmp_path).model_copy(update={"rounds": ()}))
    page = Page(write_report(tmp_path).read_text())
    assert "reward/held_out.parquet: how well the reward model is calibrated" in page.text
    assert not {name for name in page.figures if name.startswith(("held-out", "rounds"))}
    assert not {"rounds", "reward"} & page.sections
    assert page.figures["ppo-kl"]["layout"]["shapes"] == []


def test_a_timeline_is_named(full: RunDirectory, page: Page, tmp_path: Path) -> None:
    assert "ui.perfetto.dev" not in page.text
    directory = write_synthetic_run(tmp_path)
    write_atomically(directory.timeline(3), "{}")
    text = Page(write_report(tmp_path).read_text()).text
    assert "open timeline/iteration-0000003.json at https://ui.perfetto.dev" in " ".join(text.split())


def test_held_out_pairs_of_which_none_was_scored_are_named_and_not_drawn(tmp_path: Path) -> None:
    write_summary(Summary(seed=0, wall_s=3.0, stages={}, run_dir=tmp_path))
    unscored = HeldOutPair("0", "prompt", 0.9, (math.nan,), 3, 4, None, "ai", 1)
    write_held_out(RunDirectory(tmp_path).reward_held_out, [unscored])
    page = Page(write_report(tmp_path).read_text())
    assert page.figures == {}
    assert "held_out.parquet holds no pair that was scored" in page.text


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
        "judgements.parquet", "held_out.parquet",
    ):  # fmt: skip
        assert name in page.text


def test_the_judges_are_counted_in_a_table(page: Page) -> None:
    # Every judge saw 900 pairs in both orders. Large abstained on 0, 150, ... 750. Small failed in one order of 0, 300
    # and 600, had no budget for the last ten, and answered 0 to 99 before, but for what failed.
    _, large, small, total = page.rows
    assert large[:7] == ["toyworld:judge-largeheadlines", "1,800", "1,788", "12", "0", "0", "0"]
    assert small[:7] == ["example/judge-smallsummary-reasonedprinciple honest", "1,800", "1,777", "0", "3", "20", "199"]
    assert total[:7] == ["All", "3,600", "3,565", "12", "3", "20", "199"]
    # 28 + 1 tokens each; 412 + 96 each but for twenty that were not asked, at $0.000212.
    assert large[10:] == ["52,200", "–", "13 ms"]
    assert small[10:] == ["904,240", "$0.377", "1.8 s"]
    assert "differ by 0.0" in page.text


def test_the_steps_of_the_ladder_are_counted(page: Page) -> None:
    # Of small's judgements 89 pairs each end in 3, 5 and 7; what abstained, failed or was not asked was not read.
    hover = [trace["hovertext"][0] for trace in page.figures["rungs"]["traces"]]
    assert hover == [
        "3,031 log-probabilities", "178 words of the reply", "178 a second call, for the verdict",
        "178 a call confined to the labels", "35 not read",
    ]  # fmt: skip
    scored, unscored = page.figures["label-mass"]["traces"]
    assert sum(scored["y"]) == 3565 - 2 * 178  # words and confined calls have none
    assert sum(unscored["y"]) == 12


def test_reasons_are_counted(page: Page) -> None:
    text = " ".join(page.text.split())
    for shown in (
        "20over budgetthe budget of $0.50 is spent",
        "12abstainedthe two labels have probability …, less than …",
        "3failedno reply after 5 attempts (the last: HTTP 503, upstream overloaded)",
    ):
        assert shown in text


def test_judgements_of_every_outcome_can_be_read(page: Page) -> None:
    folded = [attributes for tag, attributes in page.elements if (attributes.get("class") or "") == "card case"]
    assert ["open" in attributes for attributes in folded] == [True, False, False, False, False, False]
    chips = re.findall(r"orders agree|orders disagree|abstained|failed|over budget", page.text)
    assert set(chips) == {"orders agree", "orders disagree", "abstained", "failed", "over budget"}
    assert "names what happened" in page.text
    assert page.text.count("Order AB: A shown first") == page.text.count("Order BA: B shown first") == 6


def write_judged(path: Path, *judgements: Judgement) -> Page:
    """The page of a run of which nothing but these judgements is left."""
    write_summary(Summary(seed=0, wall_s=3.0, stages={}, run_dir=path))
    directory = RunDirectory(path)
    directory.judgements.parent.mkdir()
    write_judgements(directory.judgements, judgements)
    return Page(write_report(path).read_text())


def test_all_that_is_known_of_a_judgement_is_shown(tmp_path: Path) -> None:
    page = write_judged(
        tmp_path,
        judgement(
            pair(), Order.BA, 0.8, logprob_first=-0.4, logprob_second=-1.75, label_mass=0.82, censored=True,
            votes_first=4, votes_second=1, rung="text", rationale="It is shorter.", judge="j", temperature=0.7,
            model_returned="j-2026 fp_1", mode="stated", template="quality", template_hash="ab-cd", principle="honest",
            prompt_tokens=1200, completion_tokens=31, attempts=3, latency_s=2.25, cost_usd=0.0125, created_at=1.79e9,
            ledger_keys=("1", "2"), raw_reply='{"choices": [{"message": {"content": "So: 1"}}]}',
        ),
    )  # fmt: skip
    assert page.facts == [
        ["template", "quality ab-cd"],
        ["principle", "honest"],
        ["mode", "stated"],
        ["log-probability, first", "-0.4000 nats"],
        ["log-probability, second", "-1.7500 nats"],
        ["censored", "a label was not listed: its log-probability is an upper bound"],
        ["label mass", "82.0 %"],
        ["votes, first to second", "4 : 1"],
        ["read by", "words of the reply"],
        ["model returned", "j-2026 fp_1"],
        ["temperature", "0.7"],
        ["tokens", "1,200 in, 31 out"],
        ["attempts", "3"],
        ["latency", "2.2 s"],
        ["cost", "$0.0125"],
        ["time", "2026-09-21 14:13:20 UTC"],
    ]
    text = " ".join(page.text.split())
    assert "Order BA: B shown first B80.0 % A20.0 % Prompt Which?" in text
    assert "RationaleIt is shorter." in text
    assert "Last reply of 2So: 1" in text


def test_a_judgement_from_the_ledger_and_one_without_a_number_say_so(tmp_path: Path) -> None:
    page = write_judged(
        tmp_path,
        judgement(pair(), Order.AB, 0.8, cache_hit=True, attempts=0),
        judgement(pair(), Order.BA, None, Outcome.ABSTAINED, reason="it <i>declined</i>"),
    )
    assert ["attempts", "0, answered from the ledger"] in page.facts
    assert "it <i>declined</i>" in page.text


def test_scores_of_answers_alone_are_shown_by_criterion(tmp_path: Path) -> None:
    alone = {"p_first": None, "outcome": Outcome.SCORED, "reason": "", "criterion": "brevity"}
    page = write_judged(
        tmp_path,
        judgement(pair(), Order.A, score=7.25, **alone),
        judgement(pair(), Order.B, score=3.0, **alone),
    )
    text = " ".join(page.text.split())
    assert "Answer A alone score 7.25" in text
    assert "Answer B alone score 3.00" in text
    assert ["criterion", "brevity"] in page.facts


def test_no_field_of_a_judgement_becomes_markup(tmp_path: Path) -> None:
    hostile = "\"'></b><img src=x onerror=alert(1)><!--"
    free = [field.name for field in fields(Judgement) if field.type in ("str", "str | None")]
    judgements = [
        judgement(pair(), order, p, outcome, **dict.fromkeys(free, hostile))
        for order, p, outcome in ((Order.AB, 0.7, Outcome.SCORED), (Order.BA, None, Outcome.FAILED))
    ]
    page = write_judged(tmp_path, *judgements)
    assert {"rationale", "model_returned", "raw_reply", "judge_prompt", "reason", "principle"} <= set(free)
    assert page.text.count(hostile) >= 2 * 6
    assert "img" not in [tag for tag, _ in page.elements]


def test_a_control_that_asks_nobody_shows_no_prompt(tmp_path: Path) -> None:
    flips = [flip_coin(pair(), order, 0, 1.0) for order in (Order.AB, Order.BA)]
    page = write_judged(tmp_path, *flips)
    assert "No prompt: nobody was asked." in page.text
    assert {name for name, _ in page.facts} == {"mode", "time"}
    assert "rungs" not in page.figures


def test_where_every_reply_was_read_by_its_log_probabilities_there_is_no_figure_of_it(tmp_path: Path) -> None:
    page = write_judged(tmp_path, *(judgement(pair(), order, 0.6, rung="logprobs") for order in (Order.AB, Order.BA)))
    assert set(page.figures) == {"positions"}


def test_without_judgements_the_page_says_that_there_are_none(tmp_path: Path) -> None:
    assert "judgements.parquet is empty" in write_judged(tmp_path).text


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
        "reward/held_out.parquet",
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
