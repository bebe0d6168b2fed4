"""Nemotron-H and Nemotron Nano v2: Mamba 2, attention and MLP layers by a pattern, without positions.

transformers holds the steps of its mixers above ``time_step_min``, which Megatron does not; both compute
the same unless a step falls below it. Layers of experts (Nemotron 3, ``E``) NeMo 2 does not know.

Source: see :mod:`nemoconv.mappings.families.mamba`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..blocks.attention import Attention
from ..blocks.mlp import Mlp
from ..blocks.stack import Blocks
from ..families.mamba import FINAL_NORM, MODULES, NAMES, SPELLINGS, Mixer
from ..hf.fields import Field, Fixed, Unread, Value
from ..hf.fields_moe import Aliased, ReleasedCode
from ..hf.fields_ssm import LayerPattern, StepLimit
from ..llama_like import llama_like
from ..nemo2 import classes
from ..nemo2.fields import Count, NemoClasses, NemoFixed, Same
from ..nemo2.fields_moe import OneOfSymbols
from ..nemo2.fields_ssm import SSM, Pattern
from ..nemo2.symbols import CORE_SQUARED_RELU

KINDS = {"M": "mamba", "*": "attention", "-": "mlp"}
RELEASED = frozenset({"configuration_nemotron_h.NemotronHConfig", "modeling_nemotron_h.NemotronHForCausalLM"})
#: sizes of tiles and caches, initialization, and experts that no layer of the pattern has
UNREAD = tuple(
    """chunk_size expand hidden_dropout mamba_ssm_cache_dtype norm_eps num_logits_to_keep
    rescale_prenorm_residual residual_in_fp32 rms_norm_eps time_step_floor time_step_max
    time_step_rank use_mamba_kernels n_routed_experts n_shared_experts
    moe_intermediate_size moe_shared_expert_intermediate_size moe_latent_size
    moe_shared_expert_overlap num_experts_per_tok routed_scaling_factor n_group topk_group
    norm_topk_prob num_nextn_predict_layers mtp_layers_block_type mtp_hybrid_override_pattern
    num_local_experts""".split()
)


def layer_sets(config: Mapping[str, Value]) -> dict[str, frozenset[int]]:
    """The layers of each kind."""
    pattern = config["hybrid_override_pattern"]
    return {
        kind: frozenset(layer for layer, found in enumerate(pattern) if found == letter)
        for letter, kind in KINDS.items()
    }


NEMOTRON_H = llama_like(
    "nemotron_h",
    "NemotronHForCausalLM",
    names={
        **NAMES,
        "input_norm": "norm",
        **{role: f"mixer.{role[0]}_proj" for role in ("query", "key", "value")},
        "attention_output": "mixer.o_proj",
        "mlp_norm": "norm",
        "gate": "",
        "up": "mixer.up_proj",
        "down": "mixer.down_proj",
    },
    blocks=Blocks(
        mixer=Mixer(),
        attention=Attention(on="attention"),
        mlp=Mlp(on="mlp"),
        activation="relu2",
        respelled=False,
    ),
    defaults={
        "intermediate_size": 21504,
        "num_key_value_heads": 8,
        "vocab_size": 131072,
        "max_position_embeddings": 4096,
    },
    without=("rms_norm_eps", "hidden_act", "rope_theta"),
    config=(
        LayerPattern(KINDS),
        Aliased(("head_dim", "attention_head_dim"), "kv_channels", 128),
        Field("mamba_num_heads", "mamba_num_heads", 128),
        Field("mamba_head_dim", "mamba_head_dim", 64),
        Field("ssm_state_size", "mamba_state_dim", 128),
        Aliased(("n_groups", "mamba_n_groups"), "mamba_num_groups", 8),
        Fixed("layer_norm_epsilon", 1e-5),
        Fixed("mlp_hidden_act", "relu2"),
        Fixed("mamba_hidden_act", "silu"),
        Fixed("conv_kernel", 4),
        Fixed("use_conv_bias", True),
        Fixed("use_bias", False),
        Fixed("mamba_proj_bias", False),
        Fixed("sliding_window", None),
        Fixed("time_step_min", 1e-3),
        StepLimit(),
        ReleasedCode(RELEASED),
        Unread(UNREAD),
    ),
    nemo2=NemoClasses(
        module="nemo.collections.llm.gpt.model.ssm",
        model="MambaModel",
        config="NemotronHConfigBase",
        defaults=classes.family("NemotronHConfigBase"),
        rules=(
            *SSM,
            Count("num_attention_heads"),
            Count("num_query_groups", otherwise="num_attention_heads"),
            Count("kv_channels", otherwise="hidden_size", divided_by="num_attention_heads"),
            Count("ffn_hidden_size", otherwise="hidden_size", factor=4),
            Same("attention_dropout"),
            NemoFixed("is_hybrid_model", True, written=True),
            OneOfSymbols("activation_func", CORE_SQUARED_RELU),
            Pattern("".join(KINDS)),
        ),
    ),
    extra=(FINAL_NORM,),
    extra_modules=MODULES,
    layer_sets=layer_sets,
    ignored=(),
    spellings=SPELLINGS,
    samples=({"hybrid_override_pattern": "M-*-"},),
    proofs=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits (torch in place of its CUDA kernels)",
    ),
)
