"""Transformer language models from `transformers`, with random weights.

Widths are those of the smallest published size of each family; the depth is a parameter.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from benchmarks.workloads.workload import Arguments

__all__ = ["TOKEN_SHAPES", "bert", "gpt2", "llama", "token_ids"]

TOKEN_SHAPES = ((2, 128), (1, 48), (3, 200))
"""(batch, tokens)"""

SMALLEST_VOCABULARY = 30_522


def token_ids(shape_index: int) -> Arguments:
    """Ids that are words of every model here."""
    return (torch.randint(0, SMALLEST_VOCABULARY, TOKEN_SHAPES[shape_index]),)


def bert(layers: int) -> Callable[[], BertModel]:
    """BERT-base (Devlin et al. 2019: 768 wide, 12 heads, 30,522 words): last hidden state and pooled output."""
    return lambda: BertModel(BertConfig(num_hidden_layers=layers))


def gpt2(layers: int) -> Callable[[], GPT2LMHeadModel]:
    """GPT-2 small (Radford et al. 2019: 768 wide, 12 heads, 50,257 words): logits and the KV cache object."""
    return lambda: GPT2LMHeadModel(GPT2Config(n_layer=layers, use_cache=True))


def llama(layers: int) -> Callable[[], LlamaForCausalLM]:
    """The layers of Llama 3.2 1B (2,048 wide, 32 heads on 8 key-value heads, 8,192 inner): logits, no KV cache.

    The vocabulary is Llama 2's 32,000 words: layers are what is measured, not a 128,256 wide output matrix.
    """
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        use_cache=False,
    )
    return lambda: LlamaForCausalLM(config)
