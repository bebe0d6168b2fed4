"""``model_config.yaml`` of NeMo 1's ``MegatronT5Model`` <-> the fields of NeMo 2's ``T5Config``.

NeMo 1's own layers compute what transformers' T5 1.1 does if they are told to: relative positions, RMSNorm,
scores that are not divided by the square root of the head's size. Both stacks are told so in a section each.

Source: megatron_lm_encoder_decoder_model.py, megatron_t5_model.py, token_level_encoder_decoder.py and
modules/common/megatron of NeMo 1.11 to 2.4, and NeMo's scripts/nlp_language_modeling/hf_t5-v1_1_to_nemo.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ...errors import CorruptCheckpoint, UnsupportedConfig, some
from ..hf.fields import Value
from ..nemo2.fields import plain, text
from ..nemo2.symbols import GELU, SILU
from .rules import Means, Needed, Required, Says, Unspoken, YamlKey, YamlOnly, YamlRule, key

#: whether megatron-core's layers are used, or NeMo's own
MCORE: Final = "mcore_t5"
STACKS: Final = ("encoder", "decoder")


@dataclass(frozen=True, slots=True)
class YamlGatedActivation:
    """``activation`` and ``openai_gelu`` <-> ``activation_func`` of a gated MLP, where GELU is by tanh.

    ``fast-`` means that gate and up are one matrix. ``openai_gelu`` outdoes the activation's name.
    """

    keys = frozenset({"activation", "openai_gelu", "bias_activation_fusion", "onnx_safe"})
    fields = frozenset({"activation_func", "gated_linear_unit", "bias_activation_fusion"})

    def read(self, yaml: Mapping[str, Value], fields: dict[str, Value]) -> None:
        name = str(yaml.get("activation", "gelu"))
        by_tanh, kind = bool(yaml.get("openai_gelu")), name.removeprefix("fast-")
        if kind == "swiglu" and by_tanh:
            raise UnsupportedConfig(
                f"model_config.yaml: activation={name} with openai_gelu, for which NeMo computes GELU, where "
                "a model that was converted (UL2) is meant to have SiLU",
                hint="pass the model's config.json with --config, which says what is meant",
            )
        if (kind, by_tanh) not in (("geglu", True), ("swiglu", False)):
            raise UnsupportedConfig(
                f"model_config.yaml: activation={text(name)} with openai_gelu={by_tanh} has no counterpart, "
                "only geglu with openai_gelu and swiglu without it have"
            )
        if kind == "swiglu" and yaml.get("onnx_safe"):
            raise UnsupportedConfig("model_config.yaml: onnx_safe, with which NeMo computes no swiglu")
        fields["activation_func"] = GELU if kind == "geglu" else SILU
        fields |= {"gated_linear_unit": True, "bias_activation_fusion": True}

    def write(self, fields: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        function = plain(fields["activation_func"])
        yaml["activation"] = "fast-swiglu" if function == SILU else "fast-geglu"
        yaml |= {"openai_gelu": function == GELU, "bias_activation_fusion": False, "onnx_safe": False}


#: of each of the two sections
SECTION: Final[tuple[YamlRule, ...]] = (
    YamlOnly("arch", ("transformer",)),
    Required("hidden_size", "hidden_size"),
    Required("num_attention_heads", "num_attention_heads"),
    Required("ffn_hidden_size", "ffn_hidden_size"),
    key("kv_channels"),
    key("init_method_std", 0.02),
    key("hidden_dropout", 0.1),
    key("attention_dropout", 0.1),
    key("layernorm_epsilon", 1e-5),
    YamlGatedActivation(),
    YamlKey("bias", "add_bias_linear", True),
    Means("normalization", "rmsnorm", "layernorm", "normalization", "RMSNorm"),
    Means("normalize_attention_scores", False, True, "softmax_scale", 1.0),
    Means("position_embedding_type", "relative", "learned_absolute", "position_embedding_type", "relative"),
    Means("relative_attention_num_buckets", 32, None, "relative_attention_num_buckets", 32),
    Means("relative_attention_max_distance", 128, None, "relative_attention_max_distance", 128),
    Says("relative_position_bias_self_attention_only", True, None),
    # the bias of relative positions would be scaled, too
    Says("apply_query_key_layer_scaling", False, True),
    YamlOnly("transformer_block_type", ("pre_ln",)),
    YamlOnly("headscale", (False, None)),
    YamlOnly("num_moe_experts", (1, None)),
)
#: of a section, and without a bearing on what its weights compute; how q, k and v lie the reader asks itself
#: (:func:`in_blocks`)
_INERT: Final = frozenset(
    """
    activations_checkpoint_granularity activations_checkpoint_method activations_checkpoint_num_layers
    bias_dropout_add_fusion ffn_dropout fp32_residual_connection grad_div_ar_fusion hidden_steps
    masked_softmax_fusion megatron_legacy moe_dropout moe_frequency num_self_attention_per_cross_attention
    persist_layer_norm use_flash_attention
    """.split()
)
#: the kernels that can do without biases, and with those of relative positions
_KERNELS: Final = {"bias_dropout_add_fusion": False, "masked_softmax_fusion": False}
_LEGACY: Final = "megatron_legacy"


def _section(yaml: Mapping[str, Value], name: str) -> dict[str, Value]:
    found = yaml.get(name)
    if not isinstance(found, dict):
        raise UnsupportedConfig(
            f"model_config.yaml: has no {name} section, as those of NeMo before 1.10, which knew no relative "
            "positions"
        )
    return found


@dataclass(frozen=True, slots=True)
class Stacks(Needed):
    """The sections ``encoder`` and ``decoder``, which may differ in ``num_layers`` only."""

    rules: tuple[YamlRule, ...]

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(STACKS)

    @property
    def fields(self) -> frozenset[str]:
        return frozenset({"num_layers", "encoder_num_layers"}).union(*(rule.fields for rule in self.rules))

    def read(self, yaml: Mapping[str, Value], fields: dict[str, Value]) -> None:
        known = _INERT.union({"num_layers"}, *(rule.keys for rule in self.rules))
        found: dict[str, dict[str, Value]] = {}
        for name in STACKS:
            section = _section(yaml, name)
            unknown = [f"{name}.{each}" for each in section if each not in known]
            if unknown:
                raise UnsupportedConfig(
                    f"model_config.yaml: {len(unknown)} key(s) may change what the model computes: "
                    f"{some(unknown)}"
                )
            if section.get("num_layers") is None:
                raise CorruptCheckpoint(f"model_config.yaml: {name} has no num_layers")
            found[name] = {}
            for rule in self.rules:
                rule.read(section, found[name])
            found[name][_LEGACY] = bool(section.get(_LEGACY))
        encoder, decoder = found.values()
        other = [name for name in decoder if encoder[name] != decoder[name]]
        if other:
            raise UnsupportedConfig(
                f"model_config.yaml: encoder and decoder differ in {some(other)}, for which transformers has "
                "one word"
            )
        fields |= {name: value for name, value in decoder.items() if name != _LEGACY}
        fields["encoder_num_layers"] = yaml["encoder"]["num_layers"]
        fields["num_layers"] = yaml["decoder"]["num_layers"]

    def write(self, fields: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        for name, layers in zip(STACKS, ("encoder_num_layers", "num_layers"), strict=True):
            section: dict[str, Value] = {"arch": "transformer", "num_layers": fields[layers], **_KERNELS}
            for rule in self.rules:
                rule.write(fields, section)
            yaml[name] = {**section, _LEGACY: False}


def in_blocks(yaml: Mapping[str, Value]) -> bool:
    """Whether q, k and v of all heads of a rank lie one below the other, where megatron-core has those of
    each head together: ``megatron_legacy``, which NeMo's script for T5 writes. Source: attention.py,
    ``_transpose_last_dim``."""
    sections = map(yaml.get, STACKS)
    return any(isinstance(section, dict) and bool(section.get(_LEGACY)) for section in sections)


def not_in_blocks(yaml: Mapping[str, Value]) -> dict[str, Value]:
    """The config for weights of which each head's q, k and v lie together."""
    changed = dict(yaml)
    for name in STACKS:
        if isinstance(changed.get(name), dict):
            changed[name] = {**changed[name], _LEGACY: False}
    return changed


RULES: Final[tuple[YamlRule, ...]] = (
    Stacks(SECTION),
    key("seq_length", 512),
    key("max_position_embeddings", 512),
    Means("share_decoder_tokens_head_embeddings", False, True, "share_embeddings_and_output_weights", False),
    Says("tokens_head_bias", False, True),
    YamlOnly("share_token_embeddings", (True,)),
    YamlOnly("hiddens", (None,)),
    Says(MCORE, False, False, "megatron-core's layers in NeMo 1's T5 were told no relative positions"),
    # NeMo 2's class has them, and its T5 with relative positions does not read them
    Unspoken(("seq_length_dec", "rotary_percent", "seq_len_interpolation_factor", "num_query_groups")),
)
#: of training runs, and what NeMo 1 reads of the sections only
INERT: Final = frozenset(
    """
    attention_type apply_query_key_layer_scaling bias_dropout_add_fusion embedding_dropout
    embedding_init_method_std fp16_lm_cross_entropy fp32_residual_connection headscale label_smoothing library
    masked_softmax_fusion normalize_attention_scores pipeline_model_parallel_split_rank transformer_block_type
    """.split()
)
