"""``model_config.yaml`` of NeMo 1's Megatron models, GPT above all, <-> fields of NeMo 2's ``GPTConfig``.

NeMo 1 hands every key that megatron-core's ``TransformerConfig`` has to it as it is, so those need no
entry here; what NeMo 1 calls otherwise, or takes another default for, has one. An absent key takes NeMo
1's default. Source: megatron_gpt_model.py (``model_provider_func``, ``build_transformer_config``,
``mcore_model_customize``) and megatron_base_model.py of NeMo 1.20 to 2.4, utils_funcs.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from ...errors import CorruptCheckpoint, UnsupportedConfig, some
from ...formats.text.fiddle import Symbol
from ..hf.fields import Value
from ..nemo2 import known as nemo2_fields
from ..nemo2.fields import plain, text
from ..nemo2.symbols import GELU, SILU, SQUARED_RELU, TANH_GELU
from .rules import Needed, Required, Word, YamlKey, YamlOnly, YamlRule, key, rare

RELU: Final = Symbol("torch.nn.functional", "relu")
_QUICK_GELU: Final = Symbol("nemo.collections.nlp.modules.common.megatron.utils", "ApproxGELUActivation")


@dataclass(frozen=True, slots=True)
class YamlLength:
    """``encoder_seq_length`` and ``max_position_embeddings`` <-> ``seq_length``: the longer of both, since
    NeMo's Mistral script keeps the window in the former."""

    keys = frozenset({"encoder_seq_length", "max_position_embeddings"})
    fields = frozenset({"seq_length", "max_position_embeddings"})

    def read(self, yaml: Mapping[str, Value], fields: dict[str, Value]) -> None:
        found = [yaml.get("encoder_seq_length", 512), yaml.get("max_position_embeddings")]
        lengths = [n for n in found if isinstance(n, int) and not isinstance(n, bool)]
        if not lengths:
            raise CorruptCheckpoint(f"model_config.yaml: encoder_seq_length={text(found[0])!r}")
        fields |= dict.fromkeys(self.fields, max(lengths))

    def write(self, fields: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        yaml |= dict.fromkeys(sorted(self.keys), fields["seq_length"])


_ACTIVATIONS: Final = {
    "gelu": (GELU, False),
    "geglu": (GELU, True),
    "reglu": (RELU, True),
    "swiglu": (SILU, True),
    "squared-relu": (SQUARED_RELU, False),
    "approx-gelu": (_QUICK_GELU, False),
}


@dataclass(frozen=True, slots=True)
class YamlActivation:
    """``activation`` (``fast-`` means that gate and up are one matrix) and ``openai_gelu``, GELU by tanh,
    <-> ``activation_func`` and ``gated_linear_unit``."""

    keys = frozenset({"activation", "openai_gelu"})
    fields = frozenset({"activation_func", "gated_linear_unit"})

    def read(self, yaml: Mapping[str, Value], fields: dict[str, Value]) -> None:
        name = str(yaml.get("activation", "gelu"))
        known = _ACTIVATIONS.get(name.removeprefix("fast-"))
        if known is None:
            raise UnsupportedConfig(f"model_config.yaml: activation={name!r} is not known")
        function, fields["gated_linear_unit"] = known
        fields["activation_func"] = TANH_GELU if yaml.get("openai_gelu") else function

    def write(self, fields: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        function, gated = plain(fields["activation_func"]), bool(fields["gated_linear_unit"])
        yaml["openai_gelu"] = function == TANH_GELU
        wanted = (GELU if function == TANH_GELU else function, gated)
        name = next((name for name, known in _ACTIVATIONS.items() if known == wanted), None)
        if name is None:
            raise UnsupportedConfig(f"NeMo 1 has no activation {text(fields['activation_func'])!r}")
        yaml["activation"] = f"fast-{name}" if gated else name


_NORMS: Final = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}


@dataclass(frozen=True, slots=True)
class Normalization:
    """``normalization`` <-> the same and ``layernorm_zero_centered_gamma`` (``layernorm1p``)."""

    keys = frozenset({"normalization", "layernorm_zero_centered_gamma"})
    fields = frozenset({"normalization", "layernorm_zero_centered_gamma"})

    def read(self, yaml: Mapping[str, Value], fields: dict[str, Value]) -> None:
        name = str(yaml.get("normalization", "layernorm")).lower()
        centered = name == "layernorm1p" or bool(yaml.get("layernorm_zero_centered_gamma", False))
        kind = _NORMS.get("layernorm" if name == "layernorm1p" else name)
        if kind is None:
            raise UnsupportedConfig(f"model_config.yaml: normalization={name!r} has no counterpart")
        fields["normalization"], fields["layernorm_zero_centered_gamma"] = kind, centered

    def write(self, fields: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        name = next(name for name, kind in _NORMS.items() if kind == fields["normalization"])
        centered = bool(fields.get("layernorm_zero_centered_gamma", False))
        if centered and name == "layernorm":
            yaml["normalization"] = "layernorm1p"
            return
        yaml["normalization"] = name
        if centered:
            yaml["layernorm_zero_centered_gamma"] = True


#: Llama31Config's fields, and what NeMo 1 takes where the yaml does not say
_SCALING: Final = {
    "scale_factor": 8,
    "low_freq_factor": 1,
    "high_freq_factor": 4,
    "old_context_len": 8192,
}


@dataclass(frozen=True, slots=True)
class YamlRotaryScaling:
    """``scale_positional_embedding`` <-> the four fields of ``Llama31Config``. NeMo's own implementation
    (``mcore_gpt`` off) does not read the key, so there it means nothing."""

    keys = frozenset({"scale_positional_embedding", *_SCALING})
    fields = frozenset(_SCALING)

    def read(self, yaml: Mapping[str, Value], fields: dict[str, Value]) -> None:
        if yaml.get("scale_positional_embedding") and yaml.get("mcore_gpt"):
            fields |= {name: yaml.get(name, default) for name, default in _SCALING.items()}

    def write(self, fields: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        scaled = fields.get("scale_factor") is not None
        yaml["scale_positional_embedding"] = scaled
        if scaled:
            yaml |= {name: fields[name] for name in _SCALING}


#: layer specs that build megatron-core's plain layers
PLAIN_SPECS: Final = None, "te_gpt", "modelopt", "decoder_block_gpt", "megatron_gpt_full_te_layer_autocast"
#: in the order of NeMo's own yaml files
RULES: Final[tuple[YamlRule, ...]] = (
    YamlLength(),
    Required("num_layers", "num_layers"),
    Required("hidden_size", "hidden_size"),
    key("ffn_hidden_size"),
    Required("num_attention_heads", "num_attention_heads"),
    key("num_query_groups"),
    key("kv_channels"),
    key("init_method_std", 0.02),
    key("hidden_dropout", 0.1),
    key("attention_dropout", 0.1),
    Normalization(),
    key("layernorm_epsilon", 1e-5),
    YamlKey("bias", "add_bias_linear", True),
    YamlKey("qkv_bias", "add_qkv_bias", False),
    YamlActivation(),
    key("bias_activation_fusion", True),
    rare("qk_layernorm", False),
    rare("window_size"),
    key("position_embedding_type", "learned_absolute"),
    YamlKey("rotary_percentage", "rotary_percent", 1.0),
    key("rotary_base", 10000),
    rare("rotary_interleaved", False),
    key("seq_len_interpolation_factor"),
    YamlRotaryScaling(),
    key("share_embeddings_and_output_weights", True),
    rare("num_moe_experts"),
    rare("moe_ffn_hidden_size"),
    rare("moe_router_topk", 2),
    rare("moe_router_pre_softmax", False),
    rare("moe_router_load_balancing_type", "aux_loss"),
    rare("moe_aux_loss_coeff", 0.0),
    rare("moe_router_score_function", "softmax"),
    rare("moe_router_enable_expert_bias", False),
    rare("moe_router_num_groups"),
    rare("moe_router_group_topk"),
    rare("moe_router_topk_scaling_factor"),
    rare("moe_shared_expert_intermediate_size"),
    rare("moe_shared_expert_gate", False),
    rare("moe_layer_freq", 1),
    YamlOnly("transformer_block_type", ("pre_ln",)),
    YamlOnly("headscale", (False, None)),
    YamlOnly("normalize_attention_scores", (True,)),
    YamlOnly("attention_type", ("multihead", None)),
    YamlOnly("megatron_legacy", (False, None)),
    YamlOnly("hyena", (None,)),
    YamlOnly("drop_layers", (None, [])),
    Word("apply_embedding_scaling", (False, True), plain=(None,)),
    # the layer specs; those that build megatron-core's plain layers are one
    Word("name", ("", "megatron_gemma2", "megatron_falcon_gpt"), plain=PLAIN_SPECS),
)

#: handled by the reader itself
_CONTAINER: Final = frozenset(
    """
    mcore_gpt mcore_customization_config override_vocab_size make_vocab_size_divisible_by precision tokenizer
    target nemo_version tensor_model_parallel_size pipeline_model_parallel_size
    """.split()
)
#: never change what the weights compute at inference, beyond rounding; NeMo-Aligner's trainers' among them
INERT: Final = frozenset(
    """
    activations_checkpoint_granularity activations_checkpoint_layers_per_pipeline
    activations_checkpoint_method activations_checkpoint_num_layers activations_checkpoint_recurrent
    answer_only_loss apex_transformer_log_level async_grad_allreduce batch_p2p_comm blendable_index data
    ddp_bucket_size dist_ckpt_assume_constant_structure dist_ckpt_format dist_ckpt_load_on_device
    dist_ckpt_load_strictness dist_ckpt_parallel_dist_opt dist_ckpt_parallel_load
    dist_ckpt_parallel_save dist_ckpt_parallel_save_within_dp dist_ckpt_torch_dist_multiproc
    distributed_adam_bucket_merge_size do_layer_norm_weight_decay dpo enable_megatron_timers
    experimental_rewrite ffn_dropout flash_attention fp8_e4m3 fp8_hybrid fp8_params fsdp
    fsdp_cpu_offload fsdp_grad_reduce_dtype fsdp_sharded_checkpoint fsdp_sharding_strategy
    fsdp_use_orig_params gc_in_validation gc_interval get_attention_mask_from_fusion global_batch_size
    grad_allreduce_chunk_size_mb grad_div_ar_fusion gradient_as_bucket_view hysteresis inductor
    inference knowledge_distillation kto log_token_counts log_train_loss megatron_amp_O2
    megatron_timer_kwargs micro_batch_size native_amp_growth_interval native_amp_init_scale
    nccl_communicator_config_path nsys_profile num_micro_batches_with_partial_activation_checkpoints
    onnx_safe optim overwrite_base_config peft persist_layer_norm post_process ppo pre_process
    pretrained_checkpoint rampup_batch_size reduce_amax reinforce reset_lr reset_lr_steps
    restore_from_ckpt restore_from_path resume_from_checkpoint rotary_fusion rs
    save_nemo_on_validation_end seed sharp skip_train spin steerlm2 sync_batch_comm
    tensor_model_parallel_world_size torch_distributed_checkpoint transformer_engine
    ub_tp_comm_bootstrap_backend ub_tp_comm_overlap ub_tp_comm_overlap_cfg use_emha use_flash_attention
    use_loss_mask use_scaled_init_method use_tp_pp_dp_mapping validation_param_sync_overlap
    """.split()
)
#: keys that TransformerConfig has too, or GPTConfig: handed on, and judged there
_HANDED_ON: Final = (
    frozenset(nemo2_fields.MAPPED)
    | frozenset(nemo2_fields.OFF)
    | nemo2_fields.INERT
    | frozenset(nemo2_fields.ONLY_WITH).union(*nemo2_fields.ONLY_WITH.values())
)
Rules = tuple[YamlRule, ...]


def read_fields(
    yaml: Mapping[str, Value],
    where: str,
    allow_ignored: Collection[str] = (),
    rules: Rules = RULES,
    inert: Collection[str] = (),
) -> dict[str, Value]:
    """The GPTConfig fields that NeMo 1 would build this model with. ``inert`` are keys beside
    :data:`INERT` that say nothing of the model.

    Raises UnsupportedConfig for keys and values that may change the mathematics and have no
    counterpart, CorruptCheckpoint for a config that NeMo 1 could not build.
    """
    keys = frozenset().union(*(rule.keys for rule in rules))
    known = keys | _CONTAINER | INERT | _HANDED_ON | {*inert, *allow_ignored}
    unknown = [name for name in yaml if name not in known]
    if unknown:
        raise UnsupportedConfig(
            f"{where}: {len(unknown)} key(s) may change what the model computes: {some(unknown)}",
            hint="if you know that they do not, pass --allow-ignored KEY for each",
        )
    stated = {name: value for name, value in yaml.items() if name not in allow_ignored}
    fields = {name: value for name, value in stated.items() if name in _HANDED_ON - keys - _CONTAINER}
    for rule in rules:
        rule.read(stated, fields)
    custom = stated.get("mcore_customization_config") or {}
    if not isinstance(custom, dict):
        raise CorruptCheckpoint(f"{where}: mcore_customization_config is no table")
    return fields | custom


def defaults(rules: Rules = RULES) -> dict[str, Value]:
    """The fields of a model whose yaml says no more than it must."""
    fields: dict[str, Value] = {}
    for rule in rules:
        if not isinstance(rule, Needed):
            rule.read({}, fields)
    return fields


def write_yaml(fields: Mapping[str, Value], rules: Rules = RULES) -> dict[str, Value]:
    """The keys of model_config.yaml that make NeMo 1 build the model of a GPTConfig with these fields.

    Raises UnsupportedConfig for a field that NeMo 1 cannot be told.
    """
    yaml: dict[str, Value] = {}
    for rule in rules:
        rule.write(fields, yaml)
    owned = frozenset().union(*(rule.fields for rule in rules))
    for name, value in fields.items():
        if name in owned or name in nemo2_fields.INERT or name in _SAID_ELSEWHERE:
            continue
        if name in nemo2_fields.OFF and plain(value) in nemo2_fields.OFF[name]:
            continue
        if name not in _HANDED_ON or isinstance(plain(value), Symbol):
            raise UnsupportedConfig(f"NeMo 1 has no word for {name}={text(value)}")
        yaml[name] = list(value) if isinstance(value, tuple) else value
    return yaml


#: fields that the container's own keys say, or nobody needs
_SAID_ELSEWHERE: Final = frozenset(
    """generation_config make_vocab_size_divisible_by vocab_size params_dtype bf16 fp16""".split()
)
