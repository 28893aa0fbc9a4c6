"""A chat model of random weights that knows every byte and likes to say "1" or "2"."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_SPECIAL = ("<pad>", "<end>", "<system>", "<user>", "<assistant>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

# What all embeddings have in common, so that hidden states have; and how much likelier that makes a label, in nats.
_LEAN = 8.0
_LIKING = 16.0


def write_chat_model(directory: Path, *, positions: int = 4096) -> Path:
    """Save it, and return where."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: number for number, word in enumerate([*_SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIAL))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    fast.chat_template = _CHAT_TEMPLATE
    fast.save_pretrained(directory)

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=positions,
            initializer_range=0.5,
            pad_token_id=words["<pad>"],
            bos_token_id=None,
            eos_token_id=words["<end>"],
            tie_word_embeddings=False,
        )
    )
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] += _LEAN
        states = model.model(torch.randint(len(words), (8, 64))).last_hidden_state
        common = states.mean(dim=(0, 1))
        for label in "12":
            row = model.get_output_embeddings().weight[words[label]]
            row.copy_(0.1 * row + _LIKING * common / common.square().sum())
    model.save_pretrained(directory)
    return directory
