"""MiMo 7B: a ``MiMoForCausalLM``, whose class came with it: a Qwen 2 with layers of multi-token prediction,
which have a place of their own in Hugging Face and take embedding and hidden state the other way round.

Source: modeling_mimo.py of the released models; megatron/core/transformer/multi_token_prediction.py.
"""

from dataclasses import replace

from ..blocks.attention import Attention
from ..blocks.mtp import Mtp
from ..blocks.place import ALWAYS
from ..blocks.stack import Blocks
from ..hf.fields import Fixed, FullAttention
from ..hf.fields_gpt import AutoMap
from ..llama_like import llama_like
from ..mtp import FurtherFields, FurtherLayers
from .qwen2 import DEFAULTS, QWEN2

MIMO = llama_like(
    "mimo",
    "MiMoForCausalLM",
    blocks=Blocks(
        attention=Attention(bias=ALWAYS),
        mtp=Mtp(
            layer="model.mtp_layers.{depth}.",
            enorm="token_layernorm",
            hnorm="hidden_layernorm",
            final_norm="final_layernorm",
            projection="input_proj",
            swapped=True,
            copies=(),
        ),
    ),
    defaults=DEFAULTS,
    config=(
        FullAttention(),
        FurtherLayers(default=0),
        Fixed("attention_bias", True),
        Fixed("use_mrope", False),
        AutoMap("configuration_mimo.MiMoConfig", "modeling_mimo.MiMoForCausalLM"),
    ),
    # without layers of multi-token prediction it is a Qwen 2, unless a manifest tells
    nemo2=replace(QWEN2.nemo2, rules=(FurtherFields(),), read_as="qwen2"),
    proofs=(
        "bit-equal",
        "logits of transformers' Qwen2",
        "megatron-core logits, with multi-token prediction too",
        "real NeMo load and save, by hand",
    ),
)
