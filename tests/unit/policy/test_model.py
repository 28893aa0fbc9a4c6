from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from rlaif_ray.policy.model import load_tokenizer, save_model, scratch_tokenizer, stop_token
from rlaif_ray.prompts import encode_prompt
from rlaif_ray.records import Prompt
from rlaif_ray.weights import fingerprint_of, read_weights
from tests.small_models import policy_and_tokenizer, weights_of


def test_the_scratch_tokenizer_frames_prompts_and_leaves_answers_bare(tmp_path: Path) -> None:
    scratch_tokenizer(["b a", "c a"]).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    words = tokenizer.get_vocab()
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 4
    expected = [words["<bos>"], words["c"], words["a"], words["<unk>"], words["<sep>"]]
    assert encode_prompt(tokenizer, Prompt("id", "c a zebra")) == expected
    answer = [*tokenizer("b c", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert answer == [words["b"], words["c"], words["<eos>"]]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "b c"
    assert tokenizer.decode(expected, skip_special_tokens=True) == "c a"


def test_the_same_seed_builds_the_same_model() -> None:
    one, two, other = (fingerprint_of(weights_of(policy_and_tokenizer(seed)[0])) for seed in (1, 1, 2))
    assert one == two != other


def test_a_saved_model_loads_with_its_stop_token(tmp_path: Path) -> None:
    policy, tokenizer = policy_and_tokenizer()
    save_model(policy, weights_of(policy), tokenizer, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert fingerprint_of(read_weights(tmp_path)) == fingerprint_of(weights_of(policy))
    assert (
        loaded.generation_config.eos_token_id
        == tokenizer.eos_token_id
        == stop_token(loaded.generation_config, tokenizer)
    )
    assert not list(tmp_path.glob("*.bin"))


def test_of_several_stop_tokens_the_one_that_ends_a_turn_ends_an_answer() -> None:
    policy, tokenizer = policy_and_tokenizer()
    policy.generation_config.eos_token_id = [7, tokenizer.eos_token_id]
    assert stop_token(policy.generation_config, tokenizer) == tokenizer.eos_token_id
    policy.generation_config.eos_token_id = [7, 8]
    assert stop_token(policy.generation_config, tokenizer) == 7


def test_a_tokenizer_that_transformers_reads_as_another_is_refused(tmp_path: Path) -> None:
    """Beside a Qwen2 it takes its own class, with bytes for words, and finds none of them."""
    scratch_tokenizer(["one two"]).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path, trust_remote_code=False)("two one").input_ids == [1, 6, 5, 4]
    Qwen2Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="as a Qwen2Tokenizer, which finds no token in the words of its own"):
        load_tokenizer(tmp_path, trust_remote_code=False)


def test_a_model_without_a_stop_token_is_refused() -> None:
    policy, tokenizer = policy_and_tokenizer()
    policy.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="end-of-sequence"):
        stop_token(policy.generation_config, tokenizer)
