"""The models that PPO trains: loading the policy, building a small one from scratch, and the value model.

Dropout is off everywhere, in training too: models stay in evaluation mode, so that the policy that samples, the one
that is trained at a ratio of 1 and the reference are one function.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlaif_ray.config import ScratchModelConfig
from rlaif_ray.engines.partitioning import whole
from rlaif_ray.engines.training import Dtype
from rlaif_ray.policy.packing import PackedInputs, attend_packed
from rlaif_ray.records import Weights
from rlaif_ray.reward.model import RewardNormalisation, load_reward_model, scalar_head
from rlaif_ray.weights import to_torch

PAD, BOS, EOS, UNK, SEP = "<pad>", "<bos>", "<eos>", "<unk>", "<sep>"

_SOME_TOKENS = 1_000


def load_policy(model: str | Path, *, dtype: Dtype, trust_remote_code: bool) -> Any:
    """A causal language model, without dropout, that takes packed sequences. Raises ValueError for one that cannot."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        model, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code
    )
    attend_packed(loaded)
    return loaded.eval()


def load_tokenizer(model: str | Path, *, trust_remote_code: bool) -> Any:
    """Raises OSError where there is none, and ValueError where what transformers makes of it cannot read."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    # For some types of models transformers takes another class than the tokenizer was saved as, and drops all text.
    own_words = tokenizer.decode(list(range(min(len(tokenizer), _SOME_TOKENS))), skip_special_tokens=True)
    if own_words and not tokenizer(own_words, add_special_tokens=False).input_ids:
        raise ValueError(
            f"transformers reads its tokenizer as a {type(tokenizer).__name__}, which finds no token in the words of "
            "its own vocabulary"
        )
    return tokenizer


def stop_token(generation_config: Any, tokenizer: Any) -> int:
    """The token that ends an answer: of the model's stop tokens the tokenizer's own, which ends a chat turn, or else
    the first; the tokenizer's where the model names none."""
    stops = generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
    if tokenizer.eos_token_id is not None and (not stops or tokenizer.eos_token_id in stops):
        return int(tokenizer.eos_token_id)
    if not stops:
        raise ValueError("neither the model nor its tokenizer names an end-of-sequence token")
    return int(stops[0])


def add_pad_token(tokenizer: Any, generation_config: Any) -> None:
    """Give a tokenizer without a pad token of its own one more token.

    Padding with a stop token would hide where an answer ends: a sequence classifier finds the last token by its pads.
    """
    stops = generation_config.eos_token_id
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in (stops if isinstance(stops, list) else [stops]):
        tokenizer.add_special_tokens({"pad_token": PAD})


def ensure_pad_token(model: Any, tokenizer: Any) -> None:
    """Give both a pad token of its own, in place."""
    add_pad_token(tokenizer, model.generation_config)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id


def scratch_tokenizer(texts: Iterable[str]) -> Any:
    """A tokenizer whose vocabulary is the words of `texts`, in sorted order after five special tokens.

    `tokenizer(text).input_ids` is `<bos> words <sep>`, a prompt; with `add_special_tokens=False` the words alone, an
    answer. Decoding puts single spaces between words.
    """
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing

    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {token: number for number, token in enumerate([PAD, BOS, EOS, UNK, SEP, *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A {SEP}", special_tokens=[(BOS, vocabulary[BOS]), (SEP, vocabulary[SEP])]
    )
    build: Any = transformers.PreTrainedTokenizerFast
    return build(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=[SEP],
        clean_up_tokenization_spaces=False,
    )


def scratch_policy(config: ScratchModelConfig, tokenizer: Any, *, positions: int, dtype: Dtype, seed: int) -> Any:
    """An untrained Llama over the tokenizer's vocabulary, for sequences of up to `positions` tokens."""
    import transformers

    torch.manual_seed(seed)
    build: Any = transformers.LlamaForCausalLM
    model = build(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=positions,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
            # The usual 0.02 is for wide models: at this width attention would start flat, and stay so for long.
            initializer_range=config.hidden_size**-0.5,
        )
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    attend_packed(model)
    return model.to(getattr(torch, dtype)).eval()


class _Float32Linear(nn.Linear):
    """A linear layer that computes in float32: values in bfloat16 would be steps of a hundredth."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input.float(), self.weight.float(), self.bias.float())


class ValueModel(nn.Module):
    """A language model's body with a linear head: the expected return of the state after each token."""

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, sequence_lengths: tuple[int, ...], places: Tensor
    ) -> Tensor:
        """Values (P,) float32 of the states after the tokens at `places` (P,) of packed inputs."""
        hidden = self.body(
            input_ids=input_ids, position_ids=position_ids, sequence_lengths=sequence_lengths, use_cache=False
        ).last_hidden_state
        values: Tensor = self.head(hidden[0, places]).squeeze(-1)
        return values


class PolicyWithValue(nn.Module):
    """A policy with a value head on its own body: one forward says both."""

    def __init__(self, policy: Any, head: nn.Linear) -> None:
        super().__init__()
        self.policy = policy
        self.head = head

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, sequence_lengths: tuple[int, ...], places: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits (P, V), and values (P,) float32, of the states after the tokens at `places` (P,)."""
        states: list[Tensor] = []
        # What the language model's head reads is the body's last state, whatever the model does around it.
        seen = self.policy.get_output_embeddings().register_forward_pre_hook(
            lambda _, arguments: states.append(arguments[0])
        )
        try:
            logits = self.policy(
                input_ids=input_ids,
                position_ids=position_ids,
                sequence_lengths=sequence_lengths,
                logits_to_keep=places,
                use_cache=False,
            ).logits
        finally:
            seen.remove()
        return logits[0], self.head(states[0][0]).squeeze(-1)


def value_model_from_reward(
    directory: Path, normalisation: RewardNormalisation, *, dtype: Dtype, trust_remote_code: bool
) -> ValueModel:
    """The reward model with its head at every token, in units of the normalised reward from the start.

    The normalisation is folded into the head: (w h - mean) / std.
    """
    reward = load_reward_model(directory, dtype=dtype, trust_remote_code=trust_remote_code)
    attend_packed(reward)
    old = scalar_head(reward)
    head = _Float32Linear(old.in_features, 1, dtype=old.weight.dtype)
    with torch.no_grad(), whole([old.weight]):
        head.weight.copy_(old.weight / normalisation.std)
        head.bias.fill_(-normalisation.mean / normalisation.std)
    return ValueModel(reward.base_model, head).eval()


def value_model_from_policy(directory: Path, *, dtype: Dtype, trust_remote_code: bool) -> ValueModel:
    """The policy's body under a new head."""
    policy = load_policy(directory, dtype=dtype, trust_remote_code=trust_remote_code)
    return ValueModel(policy.base_model, new_value_head(policy, dtype)).eval()


def new_value_head(policy: Any, dtype: Dtype) -> nn.Linear:
    """One that says 0 of every state of the policy."""
    head = _Float32Linear(policy.get_output_embeddings().in_features, 1, dtype=getattr(torch, dtype))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def state_values(model: nn.Module, inputs: PackedInputs) -> Tensor:
    """V(s_t) (A,) float32 of the state *before* each answer token."""
    values: Tensor = model(inputs.input_ids, inputs.position_ids, inputs.lengths, inputs.before)
    return values


def state_and_end_values(model: nn.Module, inputs: PackedInputs) -> tuple[Tensor, Tensor]:
    """V(s_t) (A,) of the state before each answer token, and (S,) of the one after each sequence's last."""
    values: Tensor = model(
        inputs.input_ids, inputs.position_ids, inputs.lengths, torch.cat([inputs.before, inputs.ends])
    )
    return values[: len(inputs.before)], values[len(inputs.before) :]


def save_model(model: Any, weights: Weights, tokenizer: Any, directory: Path) -> None:
    """Fill an existing directory with a Hugging Face model: these weights as safetensors, and the tokenizer."""
    model.save_pretrained(directory, state_dict={name: to_torch(array) for name, array in weights.items()})
    tokenizer.save_pretrained(directory)
