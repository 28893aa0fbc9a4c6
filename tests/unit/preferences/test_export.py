import json
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from preference_records import row
from typer.testing import CliRunner

from rlaif_ray.cli import app
from rlaif_ray.config import PreferenceFileConfig, UserError
from rlaif_ray.preferences.dataset import Member, Text, answer_in, write_preferences
from rlaif_ray.preferences.export import export_preferences, write_export
from rlaif_ray.preferences.files import read_own_preferences, read_preference_file
from rlaif_ray.records import Message

TALK = (Message("user", "Hello."), Message("assistant", "Hi."), Message("user", "So?"))
TRL = ["prompt", "chosen", "rejected", "p", "weight", "label_source", "judge", "split", "pair_id"]


def told(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".parquet":
        return list(pq.read_table(file).to_pylist())
    return [json.loads(line) for line in file.read_text().splitlines()]


texts = st.text(max_size=8)
numbers = st.floats(allow_nan=False)
maybe = st.none() | numbers
members = st.builds(
    Member,
    texts,
    texts,
    st.none() | texts,
    numbers,
    st.none() | st.floats(0, 1),
    st.none() | st.booleans(),
    st.none() | st.booleans(),
    st.booleans(),
)
fields: dict[str, st.SearchStrategy[Any]] = {
    "p": st.floats(0.5, 1),
    "weight": st.floats(0, 1e300),
    "label_source": st.sampled_from(["ai", "human"]),
    "split": st.sampled_from(["train", "test"]),
    "round": st.integers(1, 9),
    "judge": texts,
    "template_hash": texts,
    "chosen_first_logprob_chosen": maybe,
    "chosen_second_logprob_rejected": maybe,
    "consistent": st.none() | st.booleans(),
    "disagreement": maybe,
    "members": st.lists(members, max_size=2).map(tuple),
    "rationale": st.none() | texts,
    "chosen_sample": st.none() | texts,
    "prompt_id": texts,
}
answers = st.tuples(texts, texts).filter(lambda both: both[0] != both[1])


@given(
    st.lists(st.tuples(answers, st.fixed_dictionaries(fields)), max_size=3),
    st.sampled_from(["jsonl", "parquet"]),
    st.booleans(),
)
def test_a_full_export_is_read_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[tuple[str, str], dict[str, Any]]],
    kind: str,
    conversational: bool,
) -> None:
    prompt = TALK if conversational else "Say."
    rows = [
        row(
            pair_id=str(number),
            prompt=prompt,
            chosen=answer_in(prompt, chosen),
            rejected=answer_in(prompt, rejected),
            **more,
        )
        for number, ((chosen, rejected), more) in enumerate(drawn)
    ]
    file = tmp_path_factory.mktemp("export") / f"full.{kind}"
    write_export(file, rows, "full")
    assert read_own_preferences(str(file), "PREFERENCES") == rows


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_trls_form_has_its_columns_and_no_ties(tmp_path: Path, kind: str) -> None:
    write_preferences(
        tmp_path / "p.parquet",
        [row(pair_id="pair-0"), row(pair_id="pair-1", p=0.5), row(pair_id="pair-2", p=0.5000001)],
    )
    out = tmp_path / "deep" / f"trl.{kind}"
    said = export_preferences(str(tmp_path / "p.parquet"), out, "trl", conversational=False)
    assert [each["pair_id"] for each in told(out)] == ["pair-0", "pair-2"]
    assert list(told(out)[0]) == TRL
    assert told(out)[0]["prompt"] == "Say."
    assert said == f"2 preferences in {out}; 1 ties left out"


@pytest.mark.parametrize("form", ["trl", "full"])
def test_texts_as_messages(tmp_path: Path, form: Literal["trl", "full"]) -> None:
    write_export(tmp_path / "c.jsonl", [row(pair_id="pair-0")], form, conversational=True)
    (line,) = told(tmp_path / "c.jsonl")
    assert line["prompt"] == [{"role": "user", "content": "Say."}]
    assert line["chosen"] == [{"role": "assistant", "content": "x"}]
    assert line["rejected"] == [{"role": "assistant", "content": "y"}]


@pytest.mark.parametrize("prompt", ["Say.", TALK], ids=["plain", "conversational"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_trls_form_comes_in_again_by_the_door_of_all_files(tmp_path: Path, prompt: Text, kind: str) -> None:
    """Its label, source, weight, split and id; what it does not hold is lost."""
    rows = [
        row(pair_id="pair-0", prompt=prompt, weight=0.5, split="test", judge="j"),
        row(pair_id="pair-1", prompt=prompt, p=1.0, label_source="human"),
    ]
    write_export(tmp_path / f"trl.{kind}", rows, "trl")
    config = PreferenceFileConfig(path=str(tmp_path / f"trl.{kind}"))
    again = read_preference_file(config, "reward.preferences", seed=0, held_out=0.0)
    assert [each.pair_id for each in again] == [f"{config.path}:pair-0", f"{config.path}:pair-1"]
    for name in TRL[:-1]:
        assert [getattr(each, name) for each in again] == [getattr(each, name) for each in rows]


def test_the_command_exports_and_refuses_in_one_line(tmp_path: Path) -> None:
    source, out = tmp_path / "p.parquet", tmp_path / "out.jsonl"
    write_preferences(source, [row(pair_id="pair-0"), row(pair_id="pair-1", p=0.5)])
    done = CliRunner().invoke(app, ["export", str(source), "--out", str(out), "--form", "full", "--conversational"])
    assert done.exit_code == 0, done.output
    assert done.output.split() == f"2 preferences in {out}; 0 ties left out".split()
    assert len(told(out)) == 2

    (tmp_path / "file").write_text("")
    for name, message in (("out.csv", "must end in .parquet or .jsonl"), ("file/out.jsonl", "cannot be written")):
        with pytest.raises(UserError, match=f"--out: .*{message}"):
            export_preferences(str(source), tmp_path / name, "trl", conversational=False)
    with pytest.raises(UserError, match=r"PREFERENCES: .*missing.jsonl cannot be read"):
        export_preferences("missing.jsonl", out, "trl", conversational=False)
