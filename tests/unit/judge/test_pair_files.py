import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rlaif_ray.config import UserError
from rlaif_ray.judge.pair_files import PairFile
from rlaif_ray.records import Message

ROW: dict[str, Any] = {"prompt": "Say.", "response_a": "a", "response_b": "b"}


def jsonl(directory: Path, *rows: Any) -> str:
    """Rows that are bytes go in as they are."""
    path = directory / "pairs.jsonl"
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    return str(path)


def test_jsonl_rows_become_pairs(tmp_path: Path) -> None:
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say."}]
    pairs = PairFile(jsonl(tmp_path, {"id": "x", **ROW, "score": 3}, b" ", {"id": 7, **ROW, "prompt": conversation}))
    assert len(pairs) == 2
    first, second = pairs
    assert (first.id, first.prompt.content, first.response_a, first.response_b) == ("x", "Say.", "a", "b")
    assert second.id == "7"
    assert second.prompt.content == (Message("system", "Be brief."), Message("user", "Say."))
    assert list(pairs) == [first, second]  # it reads again


def test_every_source_gives_the_same_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**ROW, "response_a": f"a{number}", "id": None} for number in range(2_500)]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "pairs.parquet")
    asked: list[tuple[str, str]] = []

    def load(name: str, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return datasets.Dataset(table)

    monkeypatch.setattr(datasets, "load_dataset", load)
    plain = list(PairFile(jsonl(tmp_path, *rows)))
    for source in (str(tmp_path / "pairs.parquet"), "someone/pairs", "someone/pairs:test"):
        pairs = PairFile(source)
        assert len(pairs) == 2_500
        assert list(pairs) == plain
    assert asked == [("someone/pairs", "train"), ("someone/pairs", "test")]


def test_an_id_of_a_pairs_own_content_does_not_depend_on_its_place(tmp_path: Path) -> None:
    rows = [{**ROW, "response_a": text} for text in "xyz"]
    forwards = [pair.id for pair in PairFile(jsonl(tmp_path, *rows))]
    backwards = [pair.id for pair in PairFile(jsonl(tmp_path, *rows[::-1]))]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) == 3


def test_a_byte_order_mark_and_odd_line_separators_are_no_obstacle(tmp_path: Path) -> None:
    """U+2028 and U+0085 end a line for Python's splitlines, and not for JSON."""
    text = "one\u2028two\u0085three"
    row = json.dumps({**ROW, "response_a": text}, ensure_ascii=False).encode()
    (pair,) = PairFile(jsonl(tmp_path, b"\xef\xbb\xbf" + row + b"\r", b""))
    assert pair.response_a == text


def test_empty_answers_are_pairs(tmp_path: Path) -> None:
    (pair,) = PairFile(jsonl(tmp_path, {**ROW, "response_b": ""}))
    assert pair.response_b == ""


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, r"no 'response_a' \(its columns: prompt, chosen, rejected\)"),
        ({**ROW, "response_b": None}, "response_b: must be a text, not null"),
        ({**ROW, "response_a": ["a"]}, "response_a: must be a text, not a list"),
        ({**ROW, "response_a": "\ud800"}, "response_a: holds half of a surrogate pair"),
        ({**ROW, "prompt": " "}, "needs a text or a list of messages in 'prompt'"),
        ({**ROW, "prompt": []}, "needs a text or a list of messages in 'prompt'"),
        ({**ROW, "prompt": [{"role": "tool", "content": "x"}]}, "role"),
        ({**ROW, "prompt": [{"role": "user", "content": 3}]}, "content: must be a text"),
        ({**ROW, "prompt": [{"role": "assistant", "content": "x"}]}, "must end with a user's turn"),
        ({**ROW, "id": "x"}, "id 'x' is an earlier row's"),
        ({**ROW, "id": 1.5}, "id: must be a text or a whole number"),
        ({**ROW, "id": True}, "id: must be a text or a whole number"),
        ({**ROW, "id": ""}, "id: must be a text or a whole number"),
        ([1], "must be an object"),
        (b"{'prompt': 1}", "is not JSON"),
        (b'{"prompt": "caf\xe9"}', "is not UTF-8"),
        (b"[" * 100_000, "is JSON beyond reason"),
        (b'{"id": ' + b"9" * 10_000 + b"}", "is JSON beyond reason"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, bad: Any, said: str) -> None:
    pairs = iter(PairFile(jsonl(tmp_path, {**ROW, "id": "x"}, b"", bad)))
    next(pairs)
    with pytest.raises(UserError, match=rf"pairs\.jsonl, line 3: .*{said}"):
        next(pairs)


def test_a_bad_row_of_a_parquet_file_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW, {**ROW, "response_a": None}]), path)
    with pytest.raises(UserError, match=r"pairs\.parquet, row 1: response_a"):
        list(PairFile(str(path)))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("pairs.jsonl", None, "cannot be read"),
        ("pairs.parquet", None, "cannot be read"),
        ("pairs.parquet", b"nonsense", "is not a parquet file"),
        ("pairs.csv", b"prompt,response_a,response_b", "convert it"),
        ("pairs.jsonl", b"\n\n", "holds no pairs"),
        ("pairs.jsonl", b"", "holds no pairs"),
    ],
)
def test_a_bad_source_is_named(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"PAIRS: \S*{name}.*{said}"):
        PairFile(str(tmp_path / name))


def test_a_cut_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW] * 5_000), path)
    content = bytearray(path.read_bytes())
    content[10:40] = b"\xff" * 30  # in the first page
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"pairs\.parquet, after row 0: cannot be read"):
        list(PairFile(str(path)))


@pytest.mark.parametrize("error", [FileNotFoundError("no such dataset"), ValueError("Unknown split"), OSError()])
def test_a_dataset_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load(name: str, split: str) -> datasets.Dataset:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match=r"PAIRS: 'someone/pairs:x' is neither"):
        PairFile("someone/pairs:x")
