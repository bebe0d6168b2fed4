"""Ernie 4.5 without experts: an ``Ernie4_5ForCausalLM``, a Llama whose rotary embedding turns pairs of
neighbours, with heads of their own size.

NeMo 2 has no class for it: its plain ``GPTConfig`` builds the model from megatron-core's fields.

Source: transformers/models/ernie4_5, megatron/core/models/common/embeddings/rope_utils.py.
"""

from ..blocks.stack import Blocks
from ..hf.fields import Fixed
from ..hf.fields_moe import ReleasedCode
from ..llama_like import llama_like

#: the code that came with the first release computes the same
RELEASED = frozenset(
    {
        "configuration_ernie4_5.Ernie4_5_Config",
        "modeling_ernie4_5.Ernie4_5_Model",
        "modeling_ernie4_5.Ernie4_5_ForCausalLM",
    }
)

ERNIE4_5 = llama_like(
    "ernie4_5",
    "Ernie4_5ForCausalLM",
    other_classes=("Ernie4_5_ForCausalLM",),
    blocks=Blocks(neighbours=True),
    defaults={
        "num_hidden_layers": 18,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "vocab_size": 103424,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "rope_theta": 500_000.0,
    },
    config=(Fixed("use_bias", False), ReleasedCode(RELEASED)),
    proofs=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "real NeMo load",
        "real NeMo save, by hand",
    ),
)
