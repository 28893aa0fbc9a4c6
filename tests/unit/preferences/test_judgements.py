import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
from judge_records import judgement, pair

from rlaif_ray.preferences.judgements import read_judgements, write_judgements
from rlaif_ray.records import Judgement, Order, Outcome


def test_judgements_read_back_with_every_field(tmp_path: Path) -> None:
    judgements = [
        judgement(pair(), Order.AB, 0.8, logprob_first=-1.0, logprob_second=-2.0, raw_reply='{"é": 1}'),
        judgement(pair(), Order.BA, None, Outcome.OVER_BUDGET),
        judgement(pair(1), Order.A, None, cost_usd=0.25, cache_hit=True, score=3.5, ledger_keys=("one", "two")),
    ]
    write_judgements(tmp_path / "j.parquet", judgements)
    assert read_judgements(tmp_path / "j.parquet") == judgements
    assert pq.read_schema(tmp_path / "j.parquet").names == [field.name for field in dataclasses.fields(Judgement)]


def test_an_empty_file_keeps_its_columns(tmp_path: Path) -> None:
    write_judgements(tmp_path / "j.parquet", [])
    assert read_judgements(tmp_path / "j.parquet") == []
