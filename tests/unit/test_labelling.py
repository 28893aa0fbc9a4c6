from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from judge_records import pair, preference
from scripted_judge import chat

from rlaif_ray.config import JudgeRunConfig, Stopped, UserError
from rlaif_ray.console import Console
from rlaif_ray.judge.ledger import Ledger, LedgerTotals
from rlaif_ray.judge.progress import JudgeProgress
from rlaif_ray.labelling import Labelling, Use
from rlaif_ray.preferences.dataset import read_preferences
from rlaif_ray.preferences.judgements import read_judgements
from rlaif_ray.records import Outcome, Pair, Preference

# Probabilities of the answer shown first, in each order, or why there are none.
HELD: dict[str, tuple[float | None, float | None, Outcome | None]] = {
    "pair-0": (0.9, 0.2, None),  # p = .85
    "pair-1": (0.9, 0.8, None),  # p = .55, inconsistent
    "pair-2": (0.5, 0.5, None),  # p = .5
    "pair-3": (None, None, Outcome.ABSTAINED),
    "pair-4": (None, None, Outcome.FAILED),
    "pair-5": (0.2, 0.9, None),  # p = .15
    "pair-6": (None, None, Outcome.OVER_BUDGET),
}
PAIRS = [
    *(pair(number) for number in range(6)),
    pair(7, response_a="just the same", response_b="just  the same "),
    pair(8, response_a="nearly the same " * 8, response_b="nearly the same " * 8 + "!"),
    pair(9, response_a="", response_b=" "),
]


class FakeJudges:
    def __init__(self) -> None:
        self.asked: list[Pair] = []

    async def label(self, pairs: Sequence[Pair], purpose: str) -> list[Preference]:
        self.asked.extend(pairs)
        await asyncio.sleep(0)
        return [preference(one, *HELD.get(one.id, (0.9, 0.1, None))) for one in pairs]

    async def progress(self) -> JudgeProgress:
        return JudgeProgress(
            pairs=len(self.asked), scored=8, abstained=2, failed=2, over_budget=0, cached=3, calls=9, cost_usd=0.25,
            queued=0, in_flight=0, actors=1,
        )  # fmt: skip

    async def totals(self) -> LedgerTotals:
        return LedgerTotals(replies=12, calls=12, ambiguous=1, spent_usd=0.75, reserved_usd=0.0)


def labelling(out: Path, pairs: Sequence[Pair] = PAIRS, use: Use = "reward", **judge: Any) -> Labelling:
    settings = {"model": "judge", "base_url": "http://127.0.0.1:1/v1", "mode": "choice", **judge}
    return Labelling(JudgeRunConfig.model_validate({"judge": settings}), pairs, out, use)


async def label(work: Labelling, judges: FakeJudges | None = None) -> list[str]:
    with Console(stages=1, stream=io.StringIO()) as console:
        return await work.label(judges or FakeJudges(), console)


def outcomes(out: Path) -> dict[str, tuple[str, str, float | None]]:
    rows = pq.read_table(out.with_suffix(".outcomes.parquet")).to_pylist()
    assert len(rows) == len({row["pair_id"] for row in rows})
    return {row["pair_id"]: (row["outcome"], row["reason"], row["p"]) for row in rows}


def summary(out: Path) -> dict[str, Any]:
    return dict(json.loads(out.with_suffix(".summary.json").read_text()))


async def test_each_pair_has_one_outcome_and_every_figure_is_counted(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "preferences.parquet"
    judges = FakeJudges()
    lines = await label(labelling(out), judges)

    assert [one.id for one in judges.asked] == [f"pair-{number}" for number in range(6)]
    became = outcomes(out)
    assert list(became) == [one.id for one in PAIRS]
    assert {number: became[f"pair-{number}"][0] for number in (0, 1, 2, 3, 4, 5, 7, 8, 9)} == {
        0: "scored", 1: "scored", 2: "scored", 3: "abstained", 4: "failed", 5: "scored",
        7: "not_sent", 8: "not_sent", 9: "not_sent",
    }  # fmt: skip
    assert became["pair-0"] == ("scored", "", pytest.approx(0.85))
    assert "because" in became["pair-4"][1]
    assert became["pair-7"][1:] == ("the answers are the same but for white space", None)

    rows = {row.pair_id: row for row in read_preferences(out)}
    assert rows.keys() == {"pair-0", "pair-1", "pair-2", "pair-5"}
    assert (rows["pair-5"].chosen, rows["pair-5"].p) == ("answer b 5", pytest.approx(0.85))
    assert {row.split for row in rows.values()} == {"train"}
    assert len(read_judgements(out.with_suffix(".judgements.parquet"))) == 12

    figures = summary(out)
    assert figures.pop("wall_s") >= 0
    assert figures == {
        "pairs": 9,
        "scored": 4,
        "abstained": 1,
        "failed": 1,
        "over_budget": 0,
        "not_sent": {
            "the answers are the same but for white space": 2,
            "the answers are nearly the same": 1,
        },
        "written": 4,
        # Where an order names no answer, the two do not agree.
        "inconsistent": 2,
        "calls": 9,
        "cache_hits": 3,
        "cost_usd": 0.25,
        "spent_usd": 0.75,
        "ambiguous": 1,
    }
    text = "\n".join(lines)
    assert "Labelled 4 of 9 pairs" in text
    assert "1 calls were lost on the way" in text
    assert f"{out} (4 rows)" in text


async def test_dpo_takes_neither_ties_nor_pairs_whose_orders_disagree(tmp_path: Path) -> None:
    out = tmp_path / "preferences.parquet"
    await label(labelling(out, use="dpo"))
    assert [row.pair_id for row in read_preferences(out)] == ["pair-0", "pair-5"]
    assert (summary(out)["scored"], summary(out)["written"]) == (4, 2)


async def test_what_the_config_says_of_inconsistent_pairs_goes_before_the_use(tmp_path: Path) -> None:
    out = tmp_path / "preferences.parquet"
    await label(labelling(out, use="dpo", on_inconsistent="keep_soft"))
    # The tie stays out.
    assert [row.pair_id for row in read_preferences(out)] == ["pair-0", "pair-1", "pair-5"]
    await label(labelling(out, on_inconsistent="drop", tie_margin=0.4))
    assert [(row.pair_id, row.p) for row in read_preferences(out)] == [("pair-0", 0.5), ("pair-5", 0.5)]


async def test_more_pairs_than_one_call_of_the_pool_takes_stay_in_order(tmp_path: Path) -> None:
    pairs = [pair(number) for number in range(100, 1_350)]
    out = tmp_path / "preferences.parquet"
    await label(labelling(out, pairs))
    assert [row.pair_id for row in read_preferences(out)] == [one.id for one in pairs]


async def test_over_budget_writes_the_files_and_stops(tmp_path: Path) -> None:
    out = tmp_path / "preferences.parquet"
    with pytest.raises(Stopped, match=r"1 of 7 pairs are not judged .*judge\.budget_usd"):
        await label(labelling(out, [pair(number) for number in range(7)]))
    assert len(read_preferences(out)) == 4
    assert outcomes(out)["pair-6"][0] == "over_budget"
    assert summary(out)["over_budget"] == 1


async def test_over_budget_goes_on_where_the_config_says_so(tmp_path: Path) -> None:
    out = tmp_path / "preferences.parquet"
    await label(labelling(out, [pair(number) for number in range(7)], when_spent="go_on"))
    assert summary(out)["over_budget"] == 1


async def test_what_the_judges_raise_goes_through_and_leaves_no_file(tmp_path: Path) -> None:
    class Broken(FakeJudges):
        async def label(self, pairs: Sequence[Pair], purpose: str) -> list[Preference]:
            raise UserError("judge.api_key_env: refused")

    out = tmp_path / "preferences.parquet"
    with pytest.raises(UserError, match="refused"):
        await label(labelling(out), Broken())
    assert not out.exists()


async def test_where_no_pair_is_scored_the_files_say_why(tmp_path: Path) -> None:
    out = tmp_path / "preferences.parquet"
    with pytest.raises(UserError, match=r"none of 2 pairs was scored \(order ab: because.*outcomes\.parquet"):
        await label(labelling(out, [pair(3), pair(4)]))
    assert {became for became, _, _ in outcomes(out).values()} == {"abstained", "failed"}
    assert (summary(out)["abstained"], summary(out)["failed"]) == (1, 1)


async def test_a_file_with_nothing_to_ask_is_no_error(tmp_path: Path) -> None:
    out = tmp_path / "preferences.parquet"
    await label(labelling(out, PAIRS[6:]))
    assert read_preferences(out) == []
    assert (summary(out)["pairs"], summary(out)["scored"]) == (3, 0)


@pytest.mark.parametrize("name", ["preferences.jsonl", "preferences", "preferences.parquet.gz"])
def test_out_must_be_parquet(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"--out: .* must end in \.parquet"):
        labelling(tmp_path / name)


def test_out_must_have_a_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        labelling(tmp_path / "file" / "preferences.parquet")


def test_an_estimate_asks_nobody_and_says_what_it_would_cost(tmp_path: Path) -> None:
    work = labelling(tmp_path / "preferences.parquet", price={"input": 1.0, "output": 2.0}, requests_per_minute=60)
    text = "\n".join(work.estimate())
    assert "6 pairs to judge, 3 not worth asking about" in text
    assert "Calls that the ledger lacks: 12," in text
    assert "Cost: about $0.00" in text
    assert "0.2 minutes" in text
    assert "no price is known" in "\n".join(labelling(tmp_path / "other.parquet").estimate())


PRICES = """
version: "of this test"
hosts:
  127.0.0.1: {batch: 0.5, models: {judge: {input: 1000.0, output: 2000.0}}}
"""


def results(requests: Path, directory: Path, *, lost: int = 0) -> Path:
    """What a batch brings back: the last `lost` were not answered."""
    keys = [json.loads(line)["custom_id"] for line in requests.read_text().splitlines()]
    body = json.loads(chat("1", {"1": 0.9, "2": 0.1})) | {"usage": {"prompt_tokens": 100, "completion_tokens": 1}}
    lines = [
        {"custom_id": key, "response": {"status_code": 200, "body": body}, "error": None}
        if number < len(keys) - lost
        else {"custom_id": key, "response": None, "error": {"message": "expired"}}
        for number, key in enumerate(keys)
    ]
    path = directory / "output.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_batches_go_out_and_come_back_into_the_ledger(tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text(PRICES)
    out = tmp_path / "preferences.parquet"
    work = labelling(out, prices=str(prices))
    (line, _) = work.write_batches(tmp_path / "first")
    assert line.startswith("12 calls in 1 files")

    output = results(tmp_path / "first" / "requests-00000.jsonl", tmp_path, lost=2)
    assert work.take_batches([output]) == [
        "10 results taken into the ledger, 2 were not answered and will be asked again"
    ]
    assert work.write_batches(tmp_path / "second")[0].startswith("2 calls")
    again = results(tmp_path / "second" / "requests-00000.jsonl", tmp_path)
    # What is taken twice is paid once.
    work.take_batches([again])
    work.take_batches([again])
    assert "lacks nothing" in work.write_batches(tmp_path / "third")[0]
    assert "Calls that the ledger lacks: 0," in "\n".join(work.estimate())

    ledger = Ledger(work.run.ledger)
    totals = ledger.totals(work.run.id)
    ledger.close()
    assert (totals.replies, totals.calls, totals.ambiguous) == (12, 12, 0)
    # 100 tokens at half of $1,000 a million, and one at half of $2,000.
    assert totals.spent_usd == pytest.approx(12 * (0.05 + 0.001))


@pytest.mark.parametrize(
    "changes", [{"base_url": None}, {"ensemble": [{"model": "other", "base_url": "http://127.0.0.1:1/v1"}]}]
)
def test_batches_are_for_one_judge_behind_an_address(tmp_path: Path, changes: dict[str, Any]) -> None:
    work = labelling(tmp_path / "preferences.parquet", **changes)
    with pytest.raises(UserError, match="batch files are for one judge"):
        work.write_batches(tmp_path / "batch")


def test_a_batch_needs_a_mode_that_is_known(tmp_path: Path) -> None:
    work = labelling(tmp_path / "preferences.parquet", mode="auto")
    with pytest.raises(UserError, match=r"judge\.mode.*not asked yet"):
        work.write_batches(tmp_path / "batch")
