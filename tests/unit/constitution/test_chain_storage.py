"""Chains at rest come back as they were."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from rlaif_ray.constitution.storage import read_chains, write_chains
from rlaif_ray.records import Chain, Message, Prompt, Revision, RevisionOutcome

TEXT = st.text(max_size=20)
MESSAGES = st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), TEXT), min_size=1, max_size=3)
PROMPTS = st.builds(Prompt, TEXT, TEXT | MESSAGES.map(tuple), st.none() | TEXT)
REVISIONS = st.builds(
    Revision,
    round=st.integers(1, 4),
    principle=TEXT,
    critique=st.none() | TEXT,
    text=TEXT,
    outcome=st.sampled_from(RevisionOutcome),
    reason=TEXT,
    attempts=st.integers(0, 30),
)
CHAINS = st.lists(
    st.builds(Chain, TEXT, PROMPTS, TEXT, st.lists(REVISIONS, max_size=4).map(tuple)),
    max_size=5,
    unique_by=lambda chain: chain.id,
)


@given(CHAINS, st.integers(0, 5))
def test_chains_come_back_from_their_files_in_order(chains: list[Chain], cut: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        write_chains(Path(directory) / "0001.parquet", chains[cut:])
        write_chains(Path(directory) / "0000.parquet", chains[:cut])
        assert read_chains(Path(directory)) == chains


def test_an_answer_and_each_revision_is_a_row(tmp_path: Path) -> None:
    revision = Revision(1, "private", "private storm", "sorry", RevisionOutcome.REVISED, "", 2)
    write_chains(tmp_path / "0000.parquet", [Chain("c", Prompt("p", "tell storm"), "storm", (revision,))])
    common = {"chain_id": "c", "prompt_id": "p", "prompt": "tell storm", "messages": None, "reference": None}
    nothing = {"principle": None, "critique": None, "outcome": None, "reason": None, "attempts": None}
    assert pq.read_table(tmp_path / "0000.parquet").to_pylist() == [
        {**common, **nothing, "round": 0, "text": "storm"},
        {
            **common,
            "round": 1,
            "principle": "private",
            "critique": "private storm",
            "text": "sorry",
            "outcome": "revised",
            "reason": "",
            "attempts": 2,
        },
    ]


def test_a_file_under_way_is_no_file(tmp_path: Path) -> None:
    write_chains(tmp_path / "0000.parquet", [Chain("c", Prompt("p", "tell storm"), "storm", ())])
    (tmp_path / ".0001.parquet.4711").write_bytes(b"half a fi")
    assert [chain.id for chain in read_chains(tmp_path)] == ["c"]
