"""Mixtral 8x7B, 8x22B and what else is a ``MixtralForCausalLM``.

Source: transformers/models/mixtral, megatron/core/transformer/moe, nemo/collections/llm/gpt/model/mixtral.py.
"""

from ..blocks.mlp import Mixture
from ..blocks.stack import Blocks
from ..hf.fields import Field, Fixed
from ..llama_like import llama_like
from ..nemo1.entry import Nemo1
from ..nemo2.entry import Nemo2
from ..nemo2.fields import NemoFixed
from ..nemo2.fields_moe import RepeatedField

MIXTRAL = llama_like(
    "mixtral",
    "MixtralForCausalLM",
    names={
        "router": "block_sparse_moe.gate",
        "expert_gate": "block_sparse_moe.experts.{expert}.w1",
        "expert_up": "block_sparse_moe.experts.{expert}.w3",
        "expert_down": "block_sparse_moe.experts.{expert}.w2",
    },
    blocks=Blocks(mixture=Mixture()),
    defaults={
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
    },
    config=(
        Field("num_local_experts", "num_moe_experts", 8),
        Field("num_experts_per_tok", "moe_router_topk", 2),
        Field("router_aux_loss_coef", "moe_aux_loss_coeff", 0.001, kind=float),
        Fixed("sliding_window", None),
    ),
    nemo2=Nemo2(
        "nemo.collections.llm.gpt.model.mixtral",
        "MixtralModel",
        "MixtralConfig",
        (
            RepeatedField("moe_ffn_hidden_size", "ffn_hidden_size"),
            NemoFixed("moe_router_pre_softmax", False, written=True),
        ),
    ),
    nemo1=Nemo1(),
    proofs=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "real NeMo import",
        "real NeMo export (of float32: NeMo's exporter fails on other dtypes)",
    ),
)
