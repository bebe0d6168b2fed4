"""NeMo's config fields of mixtures of experts (megatron-core's ``moe_*``) <-> the model config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ...errors import UnsupportedConfig
from ...formats.text.fiddle import PARTIAL, Node, Symbol
from ..hf.fields import Value
from .fields import DECODER, Count, NemoFixed, NemoRule, OneName, Same, plain, text, with_rules


@dataclass(frozen=True, slots=True)
class Topk:
    """``moe_router_topk``. Megatron-core refuses one expert a token with a softmax over the chosen."""

    names = frozenset({"moe_router_topk"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        config["moe_router_topk"] = fields["moe_router_topk"]

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        if config["moe_router_topk"] == 1 and not config.get("moe_router_pre_softmax", False):
            raise UnsupportedConfig(
                "config.json: num_experts_per_tok=1 with normalized weights cannot be said in Megatron"
            )
        fields["moe_router_topk"] = config["moe_router_topk"]


@dataclass(frozen=True, slots=True)
class Balance:
    """``moe_router_load_balancing_type``: losses change nothing here, ``sinkhorn`` routes differently."""

    names = frozenset({"moe_router_load_balancing_type"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        found = fields.get("moe_router_load_balancing_type")
        for kind in found if isinstance(found, (list, tuple)) else [found]:
            if kind not in (None, "none", "aux_loss", "seq_aux_loss", "global_aux_loss"):
                raise UnsupportedConfig(
                    f"the NeMo config says moe_router_load_balancing_type={text(kind)}, "
                    "which has no counterpart"
                )

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        """Nothing: the class's default does."""


@dataclass(frozen=True, slots=True)
class Harmless:
    """Fields that change nothing in these models, or only how something rounds."""

    names: frozenset[str]

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        """Nothing."""

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class SequenceLength:
    """``seq_length`` and, in classes that have it, ``max_position_embeddings``, of which NeMo's
    exporters take the one or the other."""

    names = frozenset({"seq_length", "max_position_embeddings"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        config["seq_length"] = max(fields[name] for name in self.names if fields.get(name) is not None)

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields |= dict.fromkeys(sorted(self.names), config["seq_length"])


@dataclass(frozen=True, slots=True)
class RepeatedField(OneName):
    """A field that must say what another one says, or nothing."""

    name: str
    of: str

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        found = fields.get(self.name)
        if found is not None and found != config[self.of]:
            raise UnsupportedConfig(
                f"the NeMo config says {self.name}={text(found)}, which has no counterpart unless it is "
                f"{self.of}={config[self.of]}"
            )

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields[self.name] = config[self.of]


@dataclass(frozen=True, slots=True)
class OneOfSymbols(OneName):
    """A field that names the function ``symbol``, whichever of megatron-core's modules had it then."""

    name: str
    symbol: Symbol

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        found = plain(fields[self.name])
        ours = isinstance(found, Symbol) and found.module.startswith("megatron.core.")
        if not ours or found.name != self.symbol.name:
            raise UnsupportedConfig(
                f"the NeMo config says {self.name}={text(found)}, which has no counterpart; "
                f"only {self.symbol} has"
            )

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        """Nothing: the class's default is this function."""


@dataclass(frozen=True, slots=True)
class EverySecondWindow:
    """``window_size`` [n - 1, 0] with ``window_attn_skip_freq`` 2 <-> ``sliding_window`` n of every second
    layer, the first among them."""

    names = frozenset({"window_size", "window_attn_skip_freq"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        size, skipped = plain(fields["window_size"]), plain(fields["window_attn_skip_freq"])
        alternating = tuple((layer + 1) % 2 for layer in range(config["num_layers"]))
        back = size[0] if isinstance(size, tuple) and len(size) == 2 and size[1] == 0 else None
        if type(back) is not int or back < 0 or skipped not in (2, alternating):
            raise UnsupportedConfig(
                f"the NeMo config says window_size={text(size)}, window_attn_skip_freq={text(skipped)}; only "
                "[n, 0] on every second layer has a counterpart"
            )
        config["sliding_window"] = back + 1

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields["window_size"], fields["window_attn_skip_freq"] = [config["sliding_window"] - 1, 0], 2


#: a decoder with a softmax router in every layer and no shared expert
MOE_DECODER: Final[tuple[NemoRule, ...]] = with_rules(
    DECODER,
    NemoFixed("add_bias_linear", False, written=True),
    SequenceLength(),
    Count("num_moe_experts"),
    Count("moe_ffn_hidden_size", otherwise="ffn_hidden_size"),
    Topk(),
    Same("moe_router_pre_softmax"),
    Same("moe_aux_loss_coeff"),
    Balance(),
    # two rules, so that a table that sets the one still knows the other
    Harmless(frozenset({"moe_router_dtype"})),
    Harmless(frozenset({"moe_token_drop_policy"})),
    NemoFixed("moe_router_score_function", "softmax"),
    NemoFixed("moe_router_enable_expert_bias", False),
    NemoFixed("moe_router_num_groups", None),
    NemoFixed("moe_router_group_topk", None),
    NemoFixed("moe_router_topk_limited_devices", None),
    NemoFixed("moe_router_topk_scaling_factor", None),
    NemoFixed("moe_router_force_load_balancing", False),
    NemoFixed("moe_shared_expert_intermediate_size", None),
    NemoFixed("moe_shared_expert_gate", False),
    NemoFixed("moe_layer_freq", 1),
    NemoFixed("moe_latent_size", None),
    NemoFixed("moe_input_jitter_eps", None),
    NemoFixed("moe_apply_probs_on_input", False),
    NemoFixed("moe_enable_routing_replay", False),
    NemoFixed("moe_expert_capacity_factor", None),
    NemoFixed("moe_pad_expert_input_to_capacity", False),
    NemoFixed("moe_token_dropping", False),
    NemoFixed("moe_use_legacy_grouped_gemm", False),
)


@dataclass(frozen=True, slots=True)
class LatentHeads:
    """``num_query_groups`` is the number of heads; ``kv_channels`` says nothing, and NeMo's importer
    and exporter keep ``num_key_value_heads`` there."""

    names = frozenset({"kv_channels", "num_query_groups"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        found = fields["num_query_groups"]
        if found is not None and found != config["num_attention_heads"]:
            raise UnsupportedConfig(
                f"the NeMo config says num_query_groups={text(found)} with latent attention"
            )

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields |= dict.fromkeys(sorted(self.names), config["num_attention_heads"])


@dataclass(frozen=True, slots=True)
class QueryRank:
    """``q_lora_rank``: None when queries are projected at once."""

    names = frozenset({"q_lora_rank"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        config["q_lora_rank"] = fields["q_lora_rank"]
        config["low_rank_query"] = fields["q_lora_rank"] is not None

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields["q_lora_rank"] = config["q_lora_rank"]


@dataclass(frozen=True, slots=True)
class LatentRope:
    """Rotary embeddings of latent attention: plain, or yarn with DeepSeek's two factors.

    transformers takes both factors or none, and with none scales as megatron-core does with
    mscale=1, mscale_all_dim=0. A megatron-core before 0.14 calls yarn's original length
    ``max_position_embeddings``.
    """

    names = frozenset(
        """seq_length max_position_embeddings original_max_position_embeddings rope_type
        rotary_scaling_factor beta_fast beta_slow mscale mscale_all_dim
        seq_len_interpolation_factor""".split()
    )

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        config["seq_length"] = fields["seq_length"]
        if fields.get("seq_len_interpolation_factor") is not None:
            raise UnsupportedConfig("the NeMo config has seq_len_interpolation_factor with latent attention")
        one, all_dim = float(fields["mscale"]), float(fields["mscale_all_dim"])
        factor = float(fields["rotary_scaling_factor"])
        if fields["rope_type"] == "rope":
            config["rope_scaling"] = None
            if factor > 1 and all_dim:
                raise UnsupportedConfig(
                    "the NeMo config has mscale_all_dim without yarn, which has no counterpart"
                )
            return
        original = fields.get("original_max_position_embeddings")
        if original is None and fields["max_position_embeddings"] != 4096:  # the default of either
            raise UnsupportedConfig(
                "the NeMo config does not say original_max_position_embeddings, and megatron-core's versions "
                "differ in whether max_position_embeddings means it"
            )
        config["rope_scaling"] = {
            "rope_type": "yarn",
            "beta_fast": float(fields["beta_fast"]),
            "beta_slow": float(fields["beta_slow"]),
            "factor": factor,
            "original_max_position_embeddings": original or 4096,
        }
        if all_dim:
            config["rope_scaling"] |= {"mscale": one, "mscale_all_dim": all_dim}
        elif one != 1:
            raise UnsupportedConfig(
                f"the NeMo config says mscale={one}, mscale_all_dim=0, which has no counterpart"
            )

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields["seq_length"] = config["seq_length"]
        scaling = config["rope_scaling"]
        if scaling is None:
            fields |= {
                "rope_type": "rope",
                "rotary_scaling_factor": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            }
            fields["max_position_embeddings"] = config["seq_length"]
            return
        both = scaling.get("mscale"), scaling.get("mscale_all_dim")
        original = scaling.get("original_max_position_embeddings")
        unknown = sorted({"attention_factor", "truncate"} & scaling.keys())
        if scaling["rope_type"] != "yarn" or unknown or original is None or (not all(both) and any(both)):
            raise UnsupportedConfig(
                f"config.json: NeMo 2 cannot say the rotary scaling {dict(scaling)} for this architecture"
            )
        fields |= {
            "rope_type": "yarn",
            "rotary_scaling_factor": scaling["factor"],
            "original_max_position_embeddings": original,
            "max_position_embeddings": original,
            "beta_fast": scaling.get("beta_fast", 32.0),
            "beta_slow": scaling.get("beta_slow", 1.0),
            "mscale": both[0] or 1.0,
            "mscale_all_dim": both[1] or 0.0,
        }


@dataclass(frozen=True, slots=True)
class LayerFreq:
    """``moe_layer_freq``, a list of 0 and 1 a layer <-> ``first_k_dense_replace``."""

    names = frozenset({"moe_layer_freq"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        layers, found = config["num_layers"], plain(fields["moe_layer_freq"])
        kinds = (1,) * layers if found == 1 else found
        dense = kinds.index(1) if isinstance(kinds, tuple) and 1 in kinds else -1
        if dense < 0 or kinds != (0,) * dense + (1,) * (layers - dense):
            raise UnsupportedConfig(
                f"the NeMo config says moe_layer_freq={text(found)}; only dense layers first, then layers "
                f"with experts, {layers} in all, have a counterpart"
            )
        config["first_k_dense_replace"] = dense

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        dense = config["first_k_dense_replace"]
        fields["moe_layer_freq"] = [0] * dense + [1] * (config["num_layers"] - dense)


@dataclass(frozen=True, slots=True)
class ScalingFactor:
    """``moe_router_topk_scaling_factor``: None is 1."""

    names = frozenset({"moe_router_topk_scaling_factor"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        config["moe_router_topk_scaling_factor"] = float(fields["moe_router_topk_scaling_factor"] or 1)

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields["moe_router_topk_scaling_factor"] = config["moe_router_topk_scaling_factor"]


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """``transformer_layer_spec``: NeMo's DeepSeek classes name megatron-core's function for unlike layers."""

    names = frozenset({"transformer_layer_spec"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        found = plain(fields.get("transformer_layer_spec"))
        if found is not None and getattr(found, "name", "") != "get_gpt_decoder_block_spec":
            raise UnsupportedConfig(f"the NeMo config says transformer_layer_spec={text(found)}")

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        """Nothing: the class's default does."""


@dataclass(frozen=True, slots=True)
class WrittenBlockSpec(BlockSpec):
    """:class:`BlockSpec` in a class whose default knows only layers that are all alike."""

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        spec = Symbol("megatron.core.models.gpt.gpt_layer_specs", "get_gpt_decoder_block_spec")
        fields["transformer_layer_spec"] = Node(spec, {"use_transformer_engine": True}, PARTIAL)


@dataclass(frozen=True, slots=True)
class SetTo(OneName):
    """A field that changes nothing that a model computes, set because the class's own default hinders."""

    name: str
    value: Value

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        """Nothing."""

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields[self.name] = self.value


#: latent attention, dense layers first, shared experts; a table says how it scores
DEEPSEEK: Final[tuple[NemoRule, ...]] = with_rules(
    MOE_DECODER,
    NemoFixed("multi_latent_attention", True, written=True),
    NemoFixed("qk_layernorm", True, written=True),
    NemoFixed("moe_router_pre_softmax", True, written=True),
    NemoFixed("moe_shared_expert_gate", False),
    LatentHeads(),
    QueryRank(),
    Count("kv_lora_rank"),
    Count("qk_head_dim"),
    Count("qk_pos_emb_head_dim"),
    Count("v_head_dim"),
    LatentRope(),
    LayerFreq(),
    BlockSpec(),
    Same("moe_router_num_groups"),
    Same("moe_router_group_topk"),
    ScalingFactor(),
    Count("moe_shared_expert_intermediate_size"),
    Harmless(frozenset({"cache_mla_latents"})),
)
