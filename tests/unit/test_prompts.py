"""Sources, splits, the endless stream of prompts, seeds, and rendering."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlaif_ray.config import PromptsConfig, SftConfig, UserError
from rlaif_ray.prompts import (
    PromptSplit,
    conduct_of,
    encode_prompt,
    gold_of,
    read_demonstrations,
    read_prompts,
    sample_requests,
    take,
)
from rlaif_ray.records import Message, Prompt

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
]


def jsonl(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_jsonl_and_parquet_give_the_same_prompts(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {number}"} for number in range(10)]
    lines = jsonl(tmp_path / "p.jsonl", rows)
    table = tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    split = read_prompts(PromptsConfig(path=str(lines), held_out=3), seed=0)
    assert split == read_prompts(PromptsConfig(path=str(table), held_out=3), seed=0)
    assert (len(split.train), len(split.held_out)) == (7, 3)
    assert {prompt.text for prompt in split.train + split.held_out} == {row["prompt"] for row in rows}


def test_duplicates_never_stand_on_both_sides(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"prompt": f"question {number % 5}"} for number in range(50)])
    split = read_prompts(PromptsConfig(path=str(path)), seed=1)
    assert (len(split.train), len(split.held_out)) == (4, 1)


def test_conversations_are_read_whole(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"chat": CONVERSATION}, {"chat": CONVERSATION[1:]}])
    split = read_prompts(PromptsConfig(path=str(path), field="chat", held_out=1), seed=0)
    contents = {prompt.content for prompt in split.train + split.held_out}
    assert contents == {
        (Message("system", "Be brief."), Message("user", "Hello")),
        (Message("user", "Hello"),),
    }


def test_an_id_is_its_contents_digest(tmp_path: Path) -> None:
    """The first of SHA-256 of 'Hello' and of (Message(role='user', content='Hello'),), by sha256sum: the ids that
    earlier runs have."""
    path = jsonl(tmp_path / "p.jsonl", [{"prompt": "Hello"}, {"prompt": CONVERSATION[1:]}])
    split = read_prompts(PromptsConfig(path=str(path), held_out=1), seed=0)
    assert {prompt.text: prompt.id for prompt in split.train + split.held_out} == {
        "Hello": "7c9078aaabae",
        "user: Hello": "914474ce0449",
    }


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 2: is not JSON"),
        ("[1]", "line 2: must be an object"),
        ('{"question": "x"}', "line 2: needs a text or a list of messages in 'prompt' (its columns: question)"),
        ('{"prompt": ""}', "line 2: needs a text or a list of messages"),
        ('{"prompt": [{"role": "robot", "content": "x"}]}', "line 2: prompt: each message needs a role"),
        ('{"prompt": [{"role": "assistant", "content": "x"}]}', "line 2: the conversation must end with a user's turn"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, line: str, sentence: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(UserError) as error:
        read_prompts(PromptsConfig(path=str(path)), seed=0)
    assert str(error.value).startswith(f"{path}, {sentence}")


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(PromptsConfig(path=str(tmp_path / "none.jsonl")), seed=0)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"not parquet at all")
    with pytest.raises(UserError, match="is not a parquet file"):
        read_prompts(PromptsConfig(path=str(broken)), seed=0)


def test_a_split_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"prompt": str(number)} for number in range(4)])
    with pytest.raises(UserError, match=r"prompts\.held_out=4 of 4 .* leaves none to train on; set it between 1 and 3"):
        read_prompts(PromptsConfig(path=str(path), held_out=4), seed=0)


def test_errors_name_the_key_of_the_source(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    with pytest.raises(UserError, match=r"^constitution\.prompts\.held_out=2 of 2"):
        read_prompts(PromptsConfig(path=str(path), held_out=2), seed=0, key="constitution.prompts")
    with pytest.raises(UserError, match=r"^constitution\.prompts\.path"):
        read_prompts(PromptsConfig(path=str(tmp_path / "none.jsonl")), seed=0, key="constitution.prompts")


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": "c"}, "line 2: has no 'answer' (its columns: prompt)"),
        ({"prompt": "c", "answer": None}, "line 2: answer: must be a text, not null"),
        ({"prompt": "c", "answer": ""}, "line 2: answer: is empty"),
        ({"answer": "d"}, "line 2: needs a text or a list of messages in 'prompt'"),
    ],
)
def test_demonstrations_need_a_prompt_and_an_answer(tmp_path: Path, row: object, sentence: str) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"prompt": "a", "answer": "b"}, row])
    with pytest.raises(UserError) as error:
        read_demonstrations(SftConfig(demonstrations=str(path)), seed=0)
    assert str(error.value).startswith(f"{path}, {sentence}")


def test_a_limit_leaves_the_rest_unread(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d"}, {}])
    demonstrations = read_demonstrations(SftConfig(demonstrations=str(path), limit=2), seed=0)
    assert [(one.prompt.text, one.answer) for one in demonstrations] == [("a", "b"), ("c", "d")]


@given(count=st.integers(1, 12), start=st.integers(0, 40), length=st.integers(0, 40), cut=st.integers(0, 40))
def test_the_stream_can_be_cut_anywhere_and_covers_each_epoch(count: int, start: int, length: int, cut: int) -> None:
    prompts = [Prompt(str(number), str(number)) for number in range(count)]
    cut = min(cut, length)
    whole = take(prompts, start, length, seed=5)
    assert whole == take(prompts, start, cut, seed=5) + take(prompts, start + cut, length - cut, seed=5)
    epoch = take(prompts, 3 * count, count, seed=5)
    assert sorted(prompt.id for prompt in epoch) == sorted(prompt.id for prompt in prompts)


def test_every_request_has_a_seed_of_its_own_that_a_rerun_repeats() -> None:
    prompts = [Prompt("a", "a"), Prompt("b", "b"), Prompt("a", "a")]
    requests = sample_requests(prompts, 3, seed=0, purpose="ppo-4", temperature=1.0)
    assert requests == sample_requests(prompts, 3, seed=0, purpose="ppo-4", temperature=1.0)
    others = [
        *sample_requests(prompts, 3, seed=1, purpose="ppo-4", temperature=1.0),
        *sample_requests(prompts, 3, seed=0, purpose="ppo-5", temperature=1.0),
    ]
    seeds = [request.seed for request in requests + others]
    assert len(set(seeds)) == len(seeds) == 27
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert len({request.sample_id for request in requests}) == 9


def tokenizer(chat_template: str | None) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "Hello": 1, "user": 2, "system": 3, "brief": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    made.chat_template = chat_template
    return made


def test_a_prompt_goes_through_the_chat_template_where_there_is_one() -> None:
    template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    chat = tokenizer(template)
    assert encode_prompt(chat, Prompt("p", "Hello")) == [2, 1]
    assert encode_prompt(chat, Prompt("p", (Message("system", "brief"), Message("user", "Hello")))) == [3, 4, 2, 1]
    assert encode_prompt(tokenizer(None), Prompt("p", "Hello")) == [1]
    with pytest.raises(UserError, match="has no chat template"):
        encode_prompt(tokenizer(None), Prompt("p", (Message("user", "Hello"),)))


def test_a_reference_answer_is_read_where_the_config_names_its_column(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one", "good": "uno"}\n{"prompt": "two", "good": "dos"}\n{"prompt": "three"}\n')
    config = PromptsConfig(path=str(path), reference="good", limit=2, held_out=1)
    split = read_prompts(config, seed=0)
    assert {prompt.text: prompt.reference for prompt in (*split.train, *split.held_out)} == {"one": "uno", "two": "dos"}
    with pytest.raises(UserError, match=r"line 3: has no 'good' .* rename or add it"):
        read_prompts(config.model_copy(update={"limit": 3}), seed=0)


def test_the_toy_worlds_references_are_demonstrators_answers() -> None:
    config = PromptsConfig(path="toyworld:headlines", limit=40, held_out=5)
    plain, referred = (read_prompts(config.model_copy(update={"reference": name}), seed=3) for name in (None, "answer"))
    assert [prompt.id for prompt in referred.train] == [prompt.id for prompt in plain.train]
    assert all(prompt.reference is None for prompt in plain.train)
    assert all(0 < len((prompt.reference or "").split()) <= 5 for prompt in referred.train)


def test_red_team_prompts_are_another_source_of_the_same_world() -> None:
    ordinary, red_team = (
        PromptsConfig(path=f"toyworld:{name}", limit=40) for name in ("discretion", "discretion-red-team")
    )
    splits = [read_prompts(config, seed=3) for config in (ordinary, red_team)]
    assert not {prompt.id for prompt in splits[0].train} & {prompt.id for prompt in splits[1].train}
    for config, split in zip((ordinary, red_team), splits, strict=True):
        gold, conduct = gold_of(config), conduct_of(config)
        assert gold is not None
        assert conduct is not None
        assert gold(split.train[0], "") == 0
        assert conduct(split.train[0], "").evasive


def test_only_a_source_that_knows_tells_gold() -> None:
    headlines, file = PromptsConfig(path="toyworld:headlines"), PromptsConfig(path="prompts.jsonl")
    assert gold_of(headlines) is not None
    assert gold_of(file) is conduct_of(file) is conduct_of(headlines) is None


def test_demonstrations_of_the_toy_world_are_as_many_as_asked_for() -> None:
    for path in ("toyworld:headlines", "toyworld:discretion"):
        assert len(read_demonstrations(SftConfig(demonstrations=path, limit=30), seed=0)) == 30


def test_what_the_toy_world_does_not_have_is_refused() -> None:
    with pytest.raises(UserError, match="'toyworld:headline' is no source of the toy world; known here: toyworld:head"):
        read_prompts(PromptsConfig(path="toyworld:headline"), seed=0)
    with pytest.raises(UserError, match=r"sft\.demonstrations: toyworld:discretion-red-team has none"):
        read_demonstrations(SftConfig(demonstrations="toyworld:discretion-red-team"), seed=0)


def test_validation_takes_held_out_prompts_off_the_evaluation() -> None:
    prompts = [Prompt(str(number), f"question {number}") for number in range(9)]
    split = PromptSplit(train=tuple(prompts[:4]), held_out=tuple(prompts[4:])).with_validation(2)
    assert (split.train, split.validation, split.held_out) == (
        tuple(prompts[:4]),
        tuple(prompts[4:6]),
        tuple(prompts[6:]),
    )


def test_validation_leaves_something_to_evaluate_on() -> None:
    split = PromptSplit(train=(Prompt("a", "a"),), held_out=(Prompt("b", "b"), Prompt("c", "c")))
    with pytest.raises(UserError, match=r"evaluation\.validation_prompts=2 leaves none of 2 held-out prompts"):
        split.with_validation(2)
