"""Nemotron-H and Nemotron Nano v2: Mamba 2, attention and MLP layers by a pattern, without positions.

transformers holds the steps of its mixers above ``time_step_min``, which Megatron does not; both compute
the same unless a step falls below it. Layers of experts (Nemotron 3, ``E``) NeMo 2 does not know.

Source: see :mod:`nemoconv.mappings.mamba`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nemoconv.mappings import mamba
from nemoconv.mappings.blocks import NEMO, QKV
from nemoconv.mappings.config_fields import Dtype, Field, Fixed, Unread, Value
from nemoconv.mappings.config_fields_moe import Aliased, ReleasedCode
from nemoconv.mappings.config_fields_ssm import LayerPattern, StepLimit
from nemoconv.mappings.nemo_configs_ssm import NEMOTRON_H_DEFAULTS, SQUARED_RELU, SSM, Pattern
from nemoconv.mappings.nemo_fields import Count, NemoClasses, Same
from nemoconv.mappings.nemo_fields import Fixed as NemoFixed
from nemoconv.mappings.nemo_fields_moe import OneOfSymbols
from nemoconv.mappings.rules import same, vocabulary
from nemoconv.mappings.rules_moe import renamed
from nemoconv.mappings.sizes import attention_sizes
from nemoconv.mappings.table import Module, Rule, Table

KINDS = {"M": "mamba", "*": "attention", "-": "mlp"}


def sizes(config: Mapping[str, Value]) -> dict[str, int]:
    return attention_sizes(config) | mamba.sizes(config)


def layer_sets(config: Mapping[str, Value]) -> dict[str, frozenset[int]]:
    pattern = config["hybrid_override_pattern"]
    return {
        kind: frozenset(layer for layer, found in enumerate(pattern) if found == letter)
        for letter, kind in KINDS.items()
    }


def _of(layers: str, *rules: Rule) -> tuple[Rule, ...]:
    return tuple(replace(rule, layers=layers) for rule in rules)


TABLE = Table(
    architecture="nemotron_h",
    hf_class="NemotronHForCausalLM",
    nemo=NemoClasses(
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
    ),
    fields=(
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
    ),
    rules=(
        mamba.EMBEDDING,
        *mamba.mixer("mamba"),
        *_of(
            "attention",
            same(NEMO + "self_attention.linear_qkv.layer_norm_weight", mamba.HF + "norm.weight", "hidden"),
            renamed(QKV, "model.layers.{layer}.self_attn", mamba.HF + "mixer"),
            same(
                NEMO + "self_attention.linear_proj.weight",
                mamba.HF + "mixer.o_proj.weight",
                "hidden (group query_head head_dim)",
                cut="group",
            ),
        ),
        *_of(
            "mlp",
            same(NEMO + "mlp.linear_fc1.layer_norm_weight", mamba.HF + "norm.weight", "hidden"),
            same(NEMO + "mlp.linear_fc1.weight", mamba.HF + "mixer.up_proj.weight", "ffn hidden", cut="ffn"),
            same(
                NEMO + "mlp.linear_fc2.weight", mamba.HF + "mixer.down_proj.weight", "hidden ffn", cut="ffn"
            ),
        ),
        mamba.FINAL_NORM,
        vocabulary(
            "output_layer.weight", "lm_head.weight", when=(("share_embeddings_and_output_weights", False),)
        ),
    ),
    modules=(
        *mamba.modules("mamba"),
        *(
            Module(f"{NEMO}self_attention.{name}", layers="attention")
            for name in ("core_attention", "linear_proj", "linear_qkv")
        ),
        *(Module(f"{NEMO}mlp.linear_{name}", layers="mlp") for name in ("fc1", "fc2")),
        *mamba.END,
    ),
    sizes=sizes,
    layer_sets=layer_sets,
    spellings=mamba.SPELLINGS,
    tied=mamba.TIED,
    verified=(
        "bit-equal",
        "transformers logits",
        "megatron-core logits (torch in place of its CUDA kernels)",
    ),
)
