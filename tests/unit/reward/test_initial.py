"""The reward model before it is fitted, on several architectures."""

from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from rlaif_ray.config import UserError
from rlaif_ray.policy.model import BOS, EOS, PAD, SEP, UNK, save_model, scratch_tokenizer
from rlaif_ray.reward.initial import new_reward_model, reward_tokenizer, same_vocabulary
from rlaif_ray.reward.model import load_reward_model, scalar_head
from rlaif_ray.reward.scoring import score_sequences
from tests.small_models import WORDS, policy_and_tokenizer, weights_of

HEADS = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "max_position_embeddings": 32}
WIDTH = {"intermediate_size": 24}
CONFIGS = {
    "llama": transformers.LlamaConfig(**HEADS, **WIDTH, num_key_value_heads=1),
    "qwen2": transformers.Qwen2Config(**HEADS, **WIDTH, num_key_value_heads=1),
    "gpt2": transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=32),
    "gpt_neox": transformers.GPTNeoXConfig(**HEADS, **WIDTH),
    "opt": transformers.OPTConfig(**HEADS, ffn_dim=24, word_embed_proj_dim=16),
    "bert": transformers.BertConfig(**HEADS, **WIDTH),
}
DECODERS = sorted(CONFIGS.keys() - {"bert"})


def causal_model(architecture: str, directory: Path, tokenizer: Any = None) -> Path:
    tokenizer = tokenizer or (tokenizer_of_letters() if architecture == "qwen2" else scratch_tokenizer([WORDS]))
    config = CONFIGS[architecture]
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def tokenizer_of_letters() -> Any:
    """Beside a Qwen2 transformers takes a tokenizer of bytes, whatever was saved."""
    vocabulary = {token: number for number, token in enumerate([PAD, BOS, EOS, UNK, SEP, *ascii_lowercase])}
    build: Any = transformers.Qwen2Tokenizer
    return build(vocab=vocabulary, merges=[], pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNK)


def tokenizer_without_padding() -> Any:
    words = {word: number for number, word in enumerate(["<unk>", "<eos>", *WORDS.split()])}
    build: Any = transformers.PreTrainedTokenizerFast
    return build(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")),
        eos_token="<eos>",
        bos_token="<eos>",
        pad_token="<eos>",
        unk_token="<unk>",
    )


def start(directory: Path | str, seed: int = 0) -> Any:
    return new_reward_model(directory, dtype="float32", seed=seed, trust_remote_code=False)


@pytest.mark.parametrize("architecture", DECODERS)
def test_every_decoder_takes_a_head_and_loads_again(architecture: str, tmp_path: Path) -> None:
    model = start(causal_model(architecture, tmp_path / "start"))
    save_model(model, weights_of(model), reward_tokenizer(tmp_path / "start", trust_remote_code=False), tmp_path)
    loaded = load_reward_model(tmp_path, dtype="float32", trust_remote_code=False)
    config = loaded.config
    assert (config.num_labels, config.problem_type, config.pad_token_id, config.eos_token_id) == (1, "regression", 0, 2)
    sequences = [[5, 6, 7, 2], [8, 2], [9, 10, 11, 12, 13, 2]]
    for one in (model, loaded):
        scores, _ = score_sequences(one, ["a", "b", "c"], sequences, max_batch_tokens=64)
        for sequence, score in zip(sequences, scores, strict=True):
            with torch.no_grad():
                last = one.base_model(input_ids=torch.tensor([sequence])).last_hidden_state[0, -1]
                assert score == pytest.approx(scalar_head(one)(last).item(), abs=1e-5)


def test_the_text_classification_pipeline_tells_the_reward_itself(tmp_path: Path) -> None:
    """With any other problem type it would put a sigmoid on it."""
    model = start(causal_model("llama", tmp_path / "start"))
    with torch.no_grad():
        model.score.weight.mul_(10)
    tokenizer = reward_tokenizer(tmp_path / "start", trust_remote_code=False)
    save_model(model, weights_of(model), tokenizer, tmp_path)
    texts = ["one two three", "four", "five six seven eight"]
    classify: Any = transformers.pipeline("text-classification", model=str(tmp_path))
    told = [one["score"] for one in classify(texts, batch_size=3)]
    scores, _ = score_sequences(
        model, ["a", "b", "c"], [tokenizer(text).input_ids for text in texts], max_batch_tokens=64
    )
    assert told == pytest.approx(scores.tolist(), abs=1e-5)
    assert not all(0 <= score <= 1 for score in told)


def test_the_head_is_drawn_by_the_seed_and_one_that_is_there_is_kept(tmp_path: Path) -> None:
    causal_model("qwen2", tmp_path / "start")
    one, same, other = (start(tmp_path / "start", seed) for seed in (1, 1, 2))
    head = one.score.weight
    assert torch.equal(head, same.score.weight)
    assert not torch.equal(head, other.score.weight)
    # 16 draws with a standard deviation of 1 / sqrt(17).
    assert 0.12 < head.std().item() < 0.48
    save_model(one, weights_of(one), reward_tokenizer(tmp_path / "start", trust_remote_code=False), tmp_path / "fitted")
    assert torch.equal(start(tmp_path / "fitted", seed=3).score.weight, head)


def test_a_start_without_a_pad_token_is_given_one(tmp_path: Path) -> None:
    """Padded by the stop token, the last token of an answer would be taken for padding."""
    model = start(causal_model("gpt2", tmp_path, tokenizer_without_padding()))
    tokenizer = reward_tokenizer(tmp_path, trust_remote_code=False)
    assert tokenizer.pad_token == PAD
    assert model.config.pad_token_id == tokenizer.pad_token_id == 12
    assert model.config.eos_token_id == 1
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) == 13
    alone, _ = score_sequences(model, ["a"], [[5, 1]], max_batch_tokens=64)
    beside, _ = score_sequences(model, ["a", "b"], [[5, 1], [5, 6, 7, 1]], max_batch_tokens=64)
    without, _ = score_sequences(model, ["a"], [[5]], max_batch_tokens=64)
    assert beside[0] == pytest.approx(alone[0], abs=1e-6)
    assert abs(without[0] - alone[0]) > 1e-3


def test_the_end_of_a_turn_ends_an_answer(tmp_path: Path) -> None:
    policy, tokenizer = policy_and_tokenizer()
    policy.generation_config.eos_token_id = [7, tokenizer.eos_token_id]
    policy.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert start(tmp_path).config.eos_token_id == tokenizer.eos_token_id


def test_what_does_not_score_the_last_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"BertForSequenceClassification does not score the last token.*reward\.model"):
        start(causal_model("bert", tmp_path))


def test_a_start_that_is_no_model_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"cannot start from {tmp_path}.*set reward\.model"):
        start(tmp_path)


def test_vocabularies_are_the_same_when_words_and_chat_template_are(tmp_path: Path) -> None:
    one, same, other = (scratch_tokenizer([words]) for words in (WORDS, WORDS, "one two"))
    assert same_vocabulary(one, same)
    assert not same_vocabulary(one, other)
    same.chat_template = "{{ messages }}"
    assert not same_vocabulary(one, same)
