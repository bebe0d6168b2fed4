"""Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder and what else is a ``Qwen3MoeForCausalLM``.

Source: transformers/models/qwen3_moe, megatron/core/transformer/moe, nemo/collections/llm/gpt/model/qwen3.py.
"""

from ..blocks.mlp import Mixture
from ..blocks.stack import Blocks
from ..families.deepseek import EXPERTS
from ..hf.fields import Field, FullAttention
from ..hf.fields_moe import Aliased, EveryLayerSparse, NormTopk
from ..llama_like import llama_like
from ..nemo1.entry import BLOCK_SPEC, Nemo1
from ..nemo2.entry import Nemo2
from .qwen3 import HEAD_NORMS

QWEN3_MOE = llama_like(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    names={**HEAD_NORMS, **EXPERTS},
    blocks=Blocks(mixture=Mixture()),
    defaults={
        "num_hidden_layers": 24,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_key_value_heads": 4,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
    },
    config=(
        Field("moe_intermediate_size", "moe_ffn_hidden_size", 768),
        Aliased(("num_experts", "num_local_experts"), "num_moe_experts", 128),
        Field("num_experts_per_tok", "moe_router_topk", 8),
        Field("router_aux_loss_coef", "moe_aux_loss_coeff", 0.001, kind=float),
        NormTopk(),
        EveryLayerSparse(),
        FullAttention(),
    ),
    nemo2=Nemo2("nemo.collections.llm.gpt.model.qwen3", "Qwen3Model", "Qwen3MoEConfig"),
    nemo1=Nemo1(written=BLOCK_SPEC),
    proofs=("bit-equal", "transformers logits", "megatron-core logits"),
)
