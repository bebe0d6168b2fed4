"""NeMo's config fields of mixtures of experts (megatron-core's ``moe_*``) <-> the model config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from nemoconv.errors import UnsupportedConfig
from nemoconv.mappings.config_fields import Value
from nemoconv.mappings.nemo_fields import DECODER, Count, Fixed, NemoRule, Same, text, with_rules


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
    """Fields that change how a router rounds, or what it drops when a capacity is set."""

    names = frozenset({"moe_router_dtype", "moe_token_drop_policy"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        """Nothing."""

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Positions:
    """``seq_length`` and, in classes that have it, ``max_position_embeddings``, of which NeMo's
    exporters take the one or the other."""

    names = frozenset({"seq_length", "max_position_embeddings"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        config["seq_length"] = max(fields[name] for name in self.names if fields.get(name) is not None)

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields |= dict.fromkeys(sorted(self.names), config["seq_length"])


@dataclass(frozen=True, slots=True)
class Repeated:
    """A field that must say what another one says, or nothing."""

    name: str
    of: str

    @property
    def names(self) -> frozenset[str]:
        return frozenset({self.name})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        found = fields.get(self.name)
        if found is not None and found != config[self.of]:
            raise UnsupportedConfig(
                f"the NeMo config says {self.name}={text(found)}, which has no counterpart unless it is "
                f"{self.of}={config[self.of]}"
            )

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields[self.name] = config[self.of]


#: a decoder with a softmax router in every layer and no shared expert
MOE_DECODER: Final[tuple[NemoRule, ...]] = with_rules(
    DECODER,
    Fixed("add_bias_linear", False, written=True),
    Positions(),
    Count("num_moe_experts"),
    Count("moe_ffn_hidden_size", otherwise="ffn_hidden_size"),
    Topk(),
    Same("moe_router_pre_softmax"),
    Same("moe_aux_loss_coeff"),
    Balance(),
    Harmless(),
    Fixed("moe_router_score_function", "softmax"),
    Fixed("moe_router_enable_expert_bias", False),
    Fixed("moe_router_num_groups", None),
    Fixed("moe_router_group_topk", None),
    Fixed("moe_router_topk_limited_devices", None),
    Fixed("moe_router_topk_scaling_factor", None),
    Fixed("moe_router_force_load_balancing", False),
    Fixed("moe_shared_expert_intermediate_size", None),
    Fixed("moe_shared_expert_gate", False),
    Fixed("moe_layer_freq", 1),
    Fixed("moe_latent_size", None),
    Fixed("moe_input_jitter_eps", None),
    Fixed("moe_apply_probs_on_input", False),
    Fixed("moe_enable_routing_replay", False),
    Fixed("moe_expert_capacity_factor", None),
    Fixed("moe_pad_expert_input_to_capacity", False),
    Fixed("moe_token_dropping", False),
    Fixed("moe_use_legacy_grouped_gemm", False),
)
