"""Packed sequences against each sequence alone, through transformers' own attention."""

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rlaif_ray.policy.logprobs import token_logprobs
from rlaif_ray.policy.model import PolicyWithValue, ValueModel, new_value_head, state_and_end_values, state_values
from rlaif_ray.policy.packing import Ragged, answer_logits, attend_packed, packed_attention
from tests.small_models import policy_and_tokenizer

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ARCHITECTURES = {
    "llama": transformers.LlamaConfig(**SIZES),
    "qwen2": transformers.Qwen2Config(**SIZES),
    "mistral with a window": transformers.MistralConfig(**SIZES, sliding_window=4),
    "gemma3 with windows": transformers.Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=4),
    "gpt-neox": transformers.GPTNeoXConfig(**{**SIZES, "num_key_value_heads": 4}),
    "gpt2": transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, pad_token_id=0
    ),
    "opt": transformers.OPTConfig(
        vocab_size=50, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32
    ),
}


def ragged(seed: int, count: int = 6, vocabulary: int = 50) -> Ragged:
    """Prompts of 1 to 7 tokens and answers of 1 to 6; some are of equal length, and some tokens are the pad's id."""
    random = np.random.default_rng(seed)
    prompts, answers = (
        [random.integers(0, vocabulary, random.integers(1, top)) for _ in range(count)] for top in (8, 7)
    )
    return Ragged.of(prompts, answers)


def alone(model: nn.Module, sequences: Ragged, row: int) -> torch.Tensor:
    """Logits (answer, V) of one sequence by itself."""
    tokens = torch.from_numpy(np.concatenate([sequences.prompts[row], sequences.answers[row]]))[None]
    logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits[0, len(sequences.prompts[row]) - 1 : -1]
    return logits


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_equals_each_sequence_alone_in_logits_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(ARCHITECTURES[name], attn_implementation="eager").eval()
    sequences = ragged(seed=1)
    expected = torch.cat([alone(model, sequences, row) for row in range(6)])
    weights = torch.randn(expected.shape)
    (expected * weights).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    attend_packed(model)
    packed = answer_logits(model, sequences.pack(np.arange(6), torch.device("cpu")))
    torch.testing.assert_close(packed, expected, rtol=1e-4, atol=1e-5)
    (packed * weights).sum().backward()
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(parameter).grad, gradient, rtol=1e-3, atol=1e-4)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.permutations(range(6)))
def test_company_and_order_change_nothing(seed: int, order: list[int]) -> None:
    policy, tokenizer = policy_and_tokenizer()
    sequences = ragged(seed, vocabulary=len(tokenizer))
    with torch.no_grad():
        inputs = sequences.pack(np.array(order), torch.device("cpu"))
        together = token_logprobs(answer_logits(policy, inputs), inputs.answer_ids, temperature=0.7)
        expected = torch.cat(
            [
                token_logprobs(alone(policy, sequences, row), torch.from_numpy(sequences.answers[row]), temperature=0.7)
                for row in order
            ]
        )
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)


def test_what_a_pack_says_of_itself() -> None:
    """Two sequences of unique ids: [1 2 | 3 4] and [5 | 6]. Answer tokens 3, 4 and 6 are predicted from places 1, 2 and
    4; the sequences end at places 3 and 5."""
    sequences = Ragged.of([np.array([1, 2]), np.array([5])], [np.array([3, 4]), np.array([6])])
    inputs = sequences.pack(np.array([0, 1]), torch.device("cpu"))
    assert inputs.input_ids.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert inputs.position_ids.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert inputs.lengths == (4, 2)
    assert inputs.before.tolist() == [1, 2, 4]
    assert inputs.ends.tolist() == [3, 5]
    assert inputs.answer_ids.tolist() == [3, 4, 6]


def test_values_are_of_the_state_before_a_token_and_after_the_last() -> None:
    """By a model of its own and by a head on the policy, which both read the body; its logits stay."""
    policy, tokenizer = policy_and_tokenizer()
    head = new_value_head(policy, "float32")
    nn.init.normal_(head.weight)
    sequences = ragged(3, vocabulary=len(tokenizer))
    inputs = sequences.pack(np.arange(6), torch.device("cpu"))
    with torch.no_grad():
        before, after = state_and_end_values(ValueModel(policy.base_model, head), inputs)
        logits, trunk = PolicyWithValue(policy, head)(
            inputs.input_ids, inputs.position_ids, inputs.lengths, inputs.before
        )
        states = policy(
            input_ids=inputs.input_ids,
            position_ids=inputs.position_ids,
            sequence_lengths=inputs.lengths,
            output_hidden_states=True,
        ).hidden_states[-1]
        values = head(states)[0, :, 0]
        torch.testing.assert_close(before, values[inputs.before])
        torch.testing.assert_close(after, values[inputs.ends])
        torch.testing.assert_close(trunk, values[inputs.before])
        torch.testing.assert_close(logits, answer_logits(policy, inputs))
        torch.testing.assert_close(state_values(ValueModel(policy.base_model, head), inputs), before)


def test_a_new_value_head_says_nothing_of_any_state() -> None:
    policy, tokenizer = policy_and_tokenizer()
    inputs = ragged(3, vocabulary=len(tokenizer)).pack(np.arange(6), torch.device("cpu"))
    assert not state_values(ValueModel(policy.base_model, new_value_head(policy, "float32")), inputs).any()


@pytest.mark.parametrize(
    "config",
    [
        transformers.BloomConfig(vocab_size=50, hidden_size=32, n_layer=1, n_head=4),
        transformers.Gemma2Config(**SIZES, head_dim=8, bos_token_id=1, eos_token_id=2, pad_token_id=0),
        transformers.MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1),
    ],
)
def test_a_model_that_cannot_keep_sequences_apart_is_refused(config: transformers.PretrainedConfig) -> None:
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match="cannot keep packed sequences apart"):
        attend_packed(model)


@pytest.mark.parametrize(("heads", "window"), [(4, None), (2, 3)])
def test_short_sequences_in_bfloat16_attend_as_in_float32(heads: int, window: int | None) -> None:
    """To rounding, in values and gradients, with fewer key heads and with a window."""
    torch.manual_seed(0)
    states = [torch.randn(1, count, 12, 8) for count in (4, heads, heads)]
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        query, key, value = (part.detach().to(dtype).requires_grad_() for part in states)
        attended, _ = packed_attention(
            nn.Identity(), query, key, value, None, sliding_window=window, sequence_lengths=(5, 5, 2)
        )
        attended.float().square().sum().backward()
        results.append([attended, query.grad, key.grad, value.grad])
    for exact, rounded in zip(*results, strict=True):
        assert rounded is not None
        assert rounded.dtype == torch.bfloat16
        torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.05)


def test_attention_that_it_does_not_know_is_refused() -> None:
    states = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="sinks"):
        packed_attention(nn.Identity(), states, states, states, None, s_aux=torch.zeros(2))


def test_empty_prompts_and_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        Ragged.of([np.array([1])], [np.zeros(0, dtype=np.int32)])
