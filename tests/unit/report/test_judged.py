"""The report counts what judges said by judge, template and principle, and draws judgements of every kind."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from judge_records import judgement, pair

from rlaif_ray.config import UserError
from rlaif_ray.preferences.judgements import write_judgements
from rlaif_ray.records import Judgement, Order, Outcome
from rlaif_ray.report.judged import Judged, Kind, Reason, read_judged


def judged(path: Path, *judgements: Judgement, seed: int = 0) -> Judged:
    write_judgements(path / "judgements.parquet", judgements)
    found = read_judged(path / "judgements.parquet", seed)
    assert found is not None
    return found


def both(number: int, ab: float | None, ba: float | None, **changes: object) -> list[Judgement]:
    return [
        judgement(pair(number), Order.AB, ab, **changes),
        judgement(pair(number), Order.BA, ba, **changes),
    ]


def test_a_tally_by_hand(tmp_path: Path) -> None:
    found = judged(
        tmp_path,
        *both(0, 0.9, 0.2, label_mass=0.9, latency_s=0.2, cost_usd=0.01),
        *both(1, 0.6, 0.7, label_mass=0.8, latency_s=0.4),
        judgement(pair(2), Order.AB, 0.8, latency_s=0.3, cache_hit=True),
        judgement(pair(2), Order.BA, None, Outcome.OVER_BUDGET, latency_s=0.0, prompt_tokens=0, completion_tokens=0),
    )
    assert found.members[0].tally == found.total
    tally = found.total
    assert tally.outcomes == {"scored": 5, "abstained": 0, "failed": 0, "over_budget": 1}
    assert (tally.judgements, tally.from_ledger, tally.tokens) == (6, 1, 5 * 11)
    assert tally.consistency == 0.5  # of the first two pairs; the third has one number alone
    assert tally.mean_p_first == pytest.approx(3.2 / 5)
    assert tally.mean_label_mass == pytest.approx(0.85)
    assert tally.cost_usd == pytest.approx(0.02)
    assert tally.median_latency_s == pytest.approx(0.3)  # of 0.2, 0.2, 0.3, 0.4, 0.4: who was not asked took no time


def test_positions_are_counted_over_questions_with_both_orders_scored(tmp_path: Path) -> None:
    verdicts = [
        (0.9, 0.2),  # the same answer twice
        (0.6, 0.7),  # always the first
        (0.4, 0.1),  # always the second
        (0.5, 0.3),  # undecided
        (0.8, None),  # one order failed
    ]
    found = judged(tmp_path, *(one for number, (ab, ba) in enumerate(verdicts) for one in both(number, ab, ba)))
    assert (found.consistent, found.always_first, found.always_second, found.undecided) == (1, 1, 1, 1)
    assert found.total.mean_p_first == pytest.approx(4.5 / 9)


def test_members_of_an_ensemble_are_told_apart_on_the_same_pair(tmp_path: Path) -> None:
    found = judged(
        tmp_path,
        *both(0, 0.9, 0.2, judge="x"),
        *both(0, 0.9, 0.8, judge="y"),
        *both(0, 0.9, 0.8, judge="x", template="brief"),
        *both(0, 0.9, 0.1, judge="x", principle="honest"),
        *both(1, 0.9, 0.8, judge="x", principle="honest"),
    )
    shares = {(one.judge, one.template, one.principle): one.tally.consistency for one in found.members}
    assert shares == {
        ("x", "quality", None): 1.0,
        ("y", "quality", None): 0.0,
        ("x", "brief", None): 0.0,
        ("x", "quality", "honest"): 0.5,
    }
    assert found.total.consistency == 2 / 5


def test_reasons_that_differ_in_a_measured_value_are_one(tmp_path: Path) -> None:
    said = [*(f"label mass {mass}" for mass in ("0.31", "0.0402", "1e-05")), "HTTP 429", "HTTP 500", "HTTP 500"]
    found = judged(
        tmp_path,
        *(judgement(pair(n), Order.AB, None, Outcome.FAILED, reason=reason) for n, reason in enumerate(said)),
        judgement(pair(9), Order.AB, None, Outcome.ABSTAINED, reason="label mass 0.2"),
    )
    assert found.reasons == (
        Reason("failed", "label mass …", 3),
        Reason("failed", "HTTP 500", 2),
        Reason("abstained", "label mass 0.2", 1),
        Reason("failed", "HTTP 429", 1),
    )
    assert found.other_reasons == 0


def test_the_commonest_reasons_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    # Reason n is given n times, for n from 1 to 9: the six commonest are 9 to 4, and 3 + 2 + 1 are left.
    found = judged(
        tmp_path,
        *(judgement(pair(n), Order.AB, None, reason=f"reason {n}") for n in range(1, 10) for _ in range(n)),
    )
    assert [reason.count for reason in found.reasons] == [9, 8, 7, 6, 5, 4]
    assert found.other_reasons == 6


def many(count: int) -> list[Judgement]:
    """Pairs in turn with orders that agree, that disagree, and with an order that failed."""
    verdicts: list[tuple[float, float | None]] = [(0.9, 0.2), (0.9, 0.8), (0.9, None)]
    return [one for number in range(count) for one in both(number, *verdicts[number % 3])]


def test_cases_of_every_kind_are_drawn_in_turn_by_the_seed(tmp_path: Path) -> None:
    found = judged(tmp_path, *many(60), seed=1)
    kinds = [case.kind for case in found.cases]
    assert kinds == [Kind.AGREE] * 2 + [Kind.DISAGREE] * 2 + [Kind.FAILED] * 2
    assert [case.p for case in found.cases] == pytest.approx([0.85, 0.85, 0.55, 0.55, None, None])
    drawn = [case.shown[0].judgement.pair_id for case in found.cases]
    assert len(set(drawn)) == 6
    again, other = (
        [case.shown[0].judgement.pair_id for case in judged(tmp_path, *many(60), seed=seed).cases] for seed in (1, 2)
    )
    assert again == drawn
    assert other != drawn


def test_one_kind_alone_fills_the_page(tmp_path: Path) -> None:
    found = judged(tmp_path, *(judgement(pair(number), Order.AB, 0.7) for number in range(20)))
    assert [case.kind for case in found.cases] == [Kind.SCORED] * 6


def test_a_case_holds_both_orders_of_one_member_and_criterion(tmp_path: Path) -> None:
    alone = {"p_first": None, "outcome": Outcome.SCORED}
    rows = [
        judgement(pair(), order, criterion=criterion, score=score, judge=judge, **alone)
        for judge in ("x", "y")
        for order, score in ((Order.A, 7.0), (Order.B, 4.0))
        for criterion in ("brief", "true")
    ]
    found = judged(tmp_path, *rows)
    held = {
        tuple((one.judgement.judge, one.judgement.criterion, one.judgement.order) for one in case.shown)
        for case in found.cases
    }
    assert held == {
        ((judge, criterion, Order.A), (judge, criterion, Order.B)) for judge in "xy" for criterion in ("brief", "true")
    }


def test_judgements_are_found_in_whatever_batch_they_are(tmp_path: Path) -> None:
    # 700 pairs have 1400 rows: several batches of a row group, and then several row groups, of which none fits a batch.
    written = {(one.pair_id, one.order): one for one in many(700)}
    found = judged(tmp_path, *many(700))
    path = tmp_path / "judgements.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=333)
    again = read_judged(path, 0)
    assert again is not None
    assert again.cases == found.cases
    for case in found.cases:
        for shown in case.shown:
            assert shown.judgement == written[shown.judgement.pair_id, shown.judgement.order]


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
    found = judged(tmp_path, judgement(pair(), Order.AB, 0.7, raw_reply=reply))
    assert found.cases[0].shown[0].answer == answer


@pytest.mark.parametrize("column", ["rung", "rationale"])
def test_a_file_of_an_older_run_is_refused_by_the_column_that_it_lacks(tmp_path: Path, column: str) -> None:
    path = tmp_path / "judgements.parquet"
    write_judgements(path, many(3))
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    with pytest.raises(UserError, match=rf"judgements\.parquet: has no column '{column}'"):
        read_judged(path, 0)


def test_an_empty_file_has_nothing_to_count(tmp_path: Path) -> None:
    found = judged(tmp_path)
    assert (found.total.judgements, found.members, found.cases, found.reasons) == (0, (), (), ())
    assert found.total.consistency is None
