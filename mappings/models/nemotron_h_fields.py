"""Nemotron-H: what config.json says, and the fields of NeMo's class that say it.

Source: see :mod:`nemoconv.mappings.families.mamba`.
"""

from __future__ import annotations

from ..hf.fields import ConfigRule, Dtype, Field, Fixed, Unread
from ..hf.fields_moe import Aliased, ReleasedCode
from ..hf.fields_ssm import LayerPattern, StepLimit
from ..nemo2.configs_ssm import NEMOTRON_H_DEFAULTS, SQUARED_RELU, SSM, Pattern
from ..nemo2.fields import Count, NemoClasses, Same
from ..nemo2.fields import Fixed as NemoFixed
from ..nemo2.fields_moe import OneOfSymbols

KINDS = {"M": "mamba", "*": "attention", "-": "mlp"}
CLASSES = NemoClasses(
    module="nemo.collections.llm.gpt.model.ssm",
    model="MambaModel",
    config="NemotronHConfigBase",
    defaults=NEMOTRON_H_DEFAULTS,
    rules=(
        *SSM,
        Count("num_attention_heads"),
        Count("num_query_groups", otherwise="num_attention_heads"),
        Count("kv_channels", otherwise="hidden_size", divided_by="num_attention_heads"),
        Count("ffn_hidden_size", otherwise="hidden_size", factor=4),
        Same("attention_dropout"),
        NemoFixed("is_hybrid_model", True, written=True),
        OneOfSymbols("activation_func", SQUARED_RELU),
        Pattern("".join(KINDS)),
    ),
    marks=(("is_hybrid_model", True),),
)
FIELDS: tuple[ConfigRule, ...] = (
    LayerPattern(KINDS),
    Field("hidden_size", "hidden_size", 4096),
    Field("intermediate_size", "ffn_hidden_size", 21504),
    Field("num_attention_heads", "num_attention_heads", 32),
    Field("num_key_value_heads", "num_query_groups", 8, default_from="num_attention_heads"),
    Aliased(("head_dim", "attention_head_dim"), "kv_channels", 128),
    Field("vocab_size", "vocab_size", 131072),
    Field("max_position_embeddings", "seq_length", 4096),
    Field("initializer_range", "init_method_std", 0.02, kind=float),
    Field("attention_dropout", "attention_dropout", 0.0, kind=float),
    Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
    Field("mamba_num_heads", "mamba_num_heads", 128),
    Field("mamba_head_dim", "mamba_head_dim", 64),
    Field("ssm_state_size", "mamba_state_dim", 128),
    Aliased(("n_groups", "mamba_n_groups"), "mamba_num_groups", 8),
    Fixed("layer_norm_epsilon", 1e-5),
    Fixed("mlp_hidden_act", "relu2"),
    Fixed("mamba_hidden_act", "silu"),
    Fixed("conv_kernel", 4),
    Fixed("use_conv_bias", True),
    *(Fixed(f"{name}_bias", False) for name in ("use", "mlp", "mamba_proj", "attention")),
    Fixed("sliding_window", None),
    Fixed("time_step_min", 1e-3),
    StepLimit(),
    ReleasedCode(
        frozenset(
            {
                "configuration_nemotron_h.NemotronHConfig",
                "modeling_nemotron_h.NemotronHForCausalLM",
            }
        )
    ),
    # sizes of tiles and caches, initialization, and experts that no layer of the pattern has
    Unread(
        tuple(
            """chunk_size expand hidden_dropout mamba_ssm_cache_dtype norm_eps num_logits_to_keep
            rescale_prenorm_residual residual_in_fp32 rms_norm_eps time_step_floor time_step_max
            time_step_rank use_mamba_kernels n_routed_experts n_shared_experts
            moe_intermediate_size moe_shared_expert_intermediate_size moe_latent_size
            moe_shared_expert_overlap num_experts_per_tok routed_scaling_factor n_group topk_group
            norm_topk_prob num_nextn_predict_layers mtp_layers_block_type mtp_hybrid_override_pattern
            num_local_experts""".split()
        )
    ),
    Dtype(),
)
