"""GLM-4.5, GLM-4.5-Air, GLM-4.6 and what else is a ``Glm4MoeForCausalLM``.

NeMo 2 has no class for it: its plain ``GPTConfig`` builds the model from megatron-core's fields.

Source: transformers/models/glm4_moe, megatron/core/transformer/moe, nemo/collections/llm/gpt/model/base.py.
"""

from ..blocks.attention import Attention
from ..blocks.mtp import Mtp
from ..blocks.place import There
from ..blocks.stack import Blocks
from ..families.deepseek import CORRECTION, EXPERTS, SHARED
from ..hf.fields import Field, Fixed
from ..hf.fields_moe import Aliased, DenseFirst, ExpertGroups, SharedExperts
from ..hf.rope import PartialRope
from ..llama_like import llama_like
from ..mtp import FurtherFields, FurtherLayers
from ..nemo2.entry import Nemo2
from ..nemo2.fields import Count, NemoFixed, Same
from ..nemo2.fields_moe import ScalingFactor, SetTo, WrittenBlockSpec
from .deepseek_v3 import MIXTURE
from .qwen3 import HEAD_NORMS

BIAS, NORMS = There((("add_qkv_bias", True),)), There((("qk_layernorm", True),))

GLM4_MOE = llama_like(
    "glm4_moe",
    "Glm4MoeForCausalLM",
    names={**HEAD_NORMS, **EXPERTS, **SHARED, **CORRECTION},
    blocks=Blocks(attention=Attention(bias=BIAS, head_norms=NORMS), mixture=MIXTURE, mtp=Mtp()),
    defaults={
        "num_hidden_layers": 46,
        "intermediate_size": 10944,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "vocab_size": 151552,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
    },
    config=(
        Field("attention_bias", "add_qkv_bias", False, kind=bool),
        Field("use_qk_norm", "qk_layernorm", False, kind=bool),
        Field("moe_intermediate_size", "moe_ffn_hidden_size", 1408),
        Aliased(("n_routed_experts", "num_local_experts"), "num_moe_experts", 128),
        Field("num_experts_per_tok", "moe_router_topk", 8),
        Field("routed_scaling_factor", "moe_router_topk_scaling_factor", 1.0, kind=float),
        Field("router_aux_loss_coef", "moe_aux_loss_coeff", 0.0, kind=float),
        ExpertGroups((1, 1), ranked_by=2),
        SharedExperts(1),
        DenseFirst(1),
        Fixed("norm_topk_prob", True),
        FurtherLayers(),
        PartialRope(default_factor=0.5),
    ),
    nemo2=Nemo2(
        "nemo.collections.llm.gpt.model.base",
        "GPTModel",
        "GPTConfig",
        (
            NemoFixed("moe_router_pre_softmax", False, written=True),
            Same("moe_router_num_groups"),
            Same("moe_router_group_topk"),
            Count("moe_shared_expert_intermediate_size"),
            ScalingFactor(),
            WrittenBlockSpec(),
            FurtherFields(),
            SetTo("hidden_dropout", 0.0),
            SetTo("moe_router_dtype", "fp32"),
        ),
    ),
    samples=({"head_dim": 128},),
    proofs=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits",
        "both with multi-token prediction",
        "real NeMo load",
    ),
)
