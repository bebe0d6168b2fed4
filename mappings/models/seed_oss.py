"""Seed-OSS: a ``SeedOssForCausalLM``, a Llama with biases for q, k and v and heads of their own size.

NeMo 2 has no class for it: its plain ``GPTConfig`` builds the model from megatron-core's fields.

Source: transformers/models/seed_oss, nemo/collections/llm/gpt/model/base.py.
"""

from ..blocks.attention import Attention
from ..blocks.place import There
from ..blocks.stack import Blocks
from ..hf.fields import Field, Fixed, Unread
from ..llama_like import llama_like, plain_gpt

SEED_OSS = llama_like(
    "seed_oss",
    "SeedOssForCausalLM",
    blocks=Blocks(attention=Attention(bias=There((("add_qkv_bias", True),)))),
    defaults={
        "num_hidden_layers": 64,
        "intermediate_size": 27648,
        "num_attention_heads": 80,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 155136,
        "max_position_embeddings": 524288,
        "attention_dropout": 0.1,
    },
    config=(
        Field("attention_bias", "add_qkv_bias", True, kind=bool),
        Fixed("attention_out_bias", False),
        Unread(("residual_dropout",)),
    ),
    nemo2=plain_gpt(read_as="smollm3"),  # without biases
    proofs=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "real NeMo load",
        "real NeMo save, by hand",
    ),
)
