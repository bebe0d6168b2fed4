"""Config keys of mixtures of experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ...errors import UnsupportedConfig
from .fields import OneKey, Value, check_kind


@dataclass(frozen=True, slots=True)
class Aliased:
    """One field under several keys, as generations of transformers spell it: all that are there must
    agree, all are written."""

    keys: tuple[str, ...]
    field: str
    default: Value
    kind: type = int

    @property
    def hf_keys(self) -> frozenset[str]:
        return frozenset(self.keys)

    @property
    def fields(self) -> frozenset[str]:
        return frozenset({self.field})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        given = {key: hf[key] for key in self.keys if key in hf}
        if len({repr(value) for value in given.values()}) > 1:
            raise UnsupportedConfig(f"config.json: {given} disagree")
        value = next(iter(given.values()), self.default)
        config[self.field] = check_kind(next(iter(given), self.keys[0]), value, self.kind)

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf |= dict.fromkeys(self.keys, config[self.field])


@dataclass(frozen=True, slots=True)
class AlsoCalled(OneKey):
    """A second key for a field that another rule has read: where it is there it must say the same."""

    hf: str
    field: str
    fields = frozenset[str]()

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        if hf.get(self.hf, config[self.field]) != config[self.field]:
            raise UnsupportedConfig(
                f"config.json: {self.hf}={hf[self.hf]!r}, but {self.field} is {config[self.field]!r}"
            )

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        """Nothing: the other key says it."""


@dataclass(frozen=True, slots=True)
class ReleasedCode:
    """``auto_map`` of models that came with code, and that transformers has its own class for now: it must
    name the released classes ``module.Class``, here or in another repository. It is neither run nor written.
    """

    classes: frozenset[str]
    hf_keys = frozenset({"auto_map"})
    fields = frozenset[str]()
    when_ignored: ClassVar[Mapping[str, Value]] = {"auto_map": None}

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        given = hf.get("auto_map")
        named = list(given.values()) if isinstance(given, dict) else [given]
        if given is not None and {str(name).rpartition("--")[2] for name in named} - self.classes:
            raise UnsupportedConfig(
                f"config.json: auto_map={given!r} names other code than the released one, and code that "
                "comes with a model is never run",
                hint="if it computes the same as transformers' own class, pass --allow-ignored auto_map",
            )

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        """Nothing: transformers' own class is meant."""


@dataclass(frozen=True, slots=True)
class NormTopk:
    """``norm_topk_prob`` <-> not ``moe_router_pre_softmax``: a softmax over the chosen experts only is
    one over all experts, divided by the sum over the chosen ones."""

    default: bool = False
    hf_keys = frozenset({"norm_topk_prob"})
    fields = frozenset({"moe_router_pre_softmax"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        value = check_kind("norm_topk_prob", hf.get("norm_topk_prob", self.default), bool)
        config["moe_router_pre_softmax"] = not value

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf["norm_topk_prob"] = not config["moe_router_pre_softmax"]


@dataclass(frozen=True, slots=True)
class EveryLayerSparse:
    """``decoder_sparse_step`` and ``mlp_only_layers`` must say that every layer has experts."""

    hf_keys = frozenset({"decoder_sparse_step", "mlp_only_layers"})
    fields = frozenset[str]()

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        for key, plain in (("decoder_sparse_step", 1), ("mlp_only_layers", [])):
            value = hf.get(key, plain)
            if value != plain and not (plain == [] and value is None):
                raise UnsupportedConfig(
                    f"config.json: {key}={value!r} is not supported for this architecture, only {plain!r}: "
                    "every layer must have experts"
                )

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf["decoder_sparse_step"], hf["mlp_only_layers"] = 1, []


@dataclass(frozen=True, slots=True)
class DenseFirst:
    """``first_k_dense_replace``: the first layers that have no experts."""

    default: int
    hf_keys = frozenset({"first_k_dense_replace"})
    fields = frozenset({"first_k_dense_replace"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        value = hf.get("first_k_dense_replace", self.default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < config["num_layers"]:
            raise UnsupportedConfig(
                f"config.json: first_k_dense_replace={value!r} leaves no layer with experts"
            )
        config["first_k_dense_replace"] = value

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf["first_k_dense_replace"] = config["first_k_dense_replace"]


@dataclass(frozen=True, slots=True)
class DenseTypes:
    """``mlp_layer_types``, "dense" or "sparse" a layer, of which only the first may be dense. Released files
    say ``first_k_dense_replace`` instead, which transformers does not read here: it must say the same."""

    default: int
    hf_keys = frozenset({"mlp_layer_types", "first_k_dense_replace"})
    fields = frozenset({"first_k_dense_replace"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        layers, kinds = config["num_layers"], hf.get("mlp_layer_types")
        dense = self.default
        if kinds is not None:
            dense = kinds.index("sparse") if isinstance(kinds, list) and "sparse" in kinds else -1
        if not 0 <= dense < layers or kinds not in (None, _layer_types(dense, layers)):
            raise UnsupportedConfig(
                f"config.json: mlp_layer_types must be dense layers first, then at least one sparse, "
                f"{layers} in all"
            )
        if hf.get("first_k_dense_replace", dense) != dense:
            raise UnsupportedConfig(
                f"config.json: first_k_dense_replace={hf['first_k_dense_replace']!r}, but transformers takes "
                f"{dense} here, as mlp_layer_types says"
            )
        config["first_k_dense_replace"] = dense

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        dense = hf["first_k_dense_replace"] = config["first_k_dense_replace"]
        hf["mlp_layer_types"] = _layer_types(dense, config["num_layers"])


def _layer_types(dense: int, layers: int) -> list[str]:
    return ["dense"] * dense + ["sparse"] * (layers - dense)


@dataclass(frozen=True, slots=True)
class SharedExperts:
    """``n_shared_experts``, each of ``moe_intermediate_size`` <-> ``moe_shared_expert_intermediate_size``."""

    default: int
    hf_keys = frozenset({"n_shared_experts"})
    fields = frozenset({"moe_shared_expert_intermediate_size"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        count = check_kind("n_shared_experts", hf.get("n_shared_experts", self.default), int)
        config["moe_shared_expert_intermediate_size"] = count * config["moe_ffn_hidden_size"]

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        shared, one = config["moe_shared_expert_intermediate_size"], config["moe_ffn_hidden_size"]
        if shared % one:
            raise UnsupportedConfig(
                f"moe_shared_expert_intermediate_size={shared} is not a multiple of moe_ffn_hidden_size="
                f"{one}, so config.json has no n_shared_experts for it"
            )
        hf["n_shared_experts"] = shared // one


@dataclass(frozen=True, slots=True)
class ExpertGroups:
    """``n_group`` and ``topk_group`` <-> ``moe_router_num_groups`` and ``moe_router_group_topk``.

    Megatron ranks groups by their best topk / group_topk experts, transformers by their best
    ``ranked_by``: these must be the same number, unless no group is left out.
    """

    default: tuple[int | None, int | None]
    ranked_by: int
    hf_keys = frozenset({"n_group", "topk_group", "topk_method"})
    fields = frozenset({"moe_router_num_groups", "moe_router_group_topk"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        method = hf.get("topk_method", "greedy" if self.ranked_by == 1 else "noaux_tc")
        groups, kept = hf.get("n_group", self.default[0]), hf.get("topk_group", self.default[1])
        known = ("greedy", "group_limited_greedy") if self.ranked_by == 1 else ("noaux_tc",)
        if method not in known:
            raise UnsupportedConfig(f"config.json: topk_method={method!r} is not supported, only {known}")
        config["moe_router_num_groups"] = config["moe_router_group_topk"] = None
        if method == "greedy" or groups == kept:
            return
        check_kind("n_group", groups, int)
        check_kind("topk_group", kept, int)
        if config["moe_router_topk"] // kept != self.ranked_by or config["num_moe_experts"] % groups:
            raise UnsupportedConfig(
                f"config.json: n_group={groups}, topk_group={kept}: Megatron would choose other groups of "
                f"experts for {config['moe_router_topk']} experts a token than transformers"
            )
        config["moe_router_num_groups"], config["moe_router_group_topk"] = groups, kept

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        groups, kept = config["moe_router_num_groups"], config["moe_router_group_topk"]
        limited = groups is not None and groups != kept
        if limited and config["moe_router_topk"] // kept != self.ranked_by:
            raise UnsupportedConfig(
                f"moe_router_num_groups={groups}, moe_router_group_topk={kept}: transformers would choose "
                f"other groups of experts for {config['moe_router_topk']} experts a token than Megatron"
            )
        one = None if self.ranked_by == 1 else 1
        hf["n_group"], hf["topk_group"] = (groups, kept) if limited else (one, one)
        hf["topk_method"] = "noaux_tc"
        if self.ranked_by == 1:
            hf["topk_method"] = "group_limited_greedy" if limited else "greedy"


@dataclass(frozen=True, slots=True)
class LowRankQuery:
    """``q_lora_rank``: None when queries are projected at once."""

    default: int = 1536
    hf_keys = frozenset({"q_lora_rank"})
    fields = frozenset({"q_lora_rank", "low_rank_query"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        rank = hf.get("q_lora_rank", self.default)
        config["q_lora_rank"] = None if rank is None else check_kind("q_lora_rank", rank, int)
        config["low_rank_query"] = rank is not None

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf["q_lora_rank"] = config["q_lora_rank"]


@dataclass(frozen=True, slots=True)
class KeyHeads:
    """``num_key_value_heads``: latent attention has as many as query heads."""

    hf_keys = frozenset({"num_key_value_heads"})
    fields = frozenset[str]()

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        heads, found = config["num_attention_heads"], hf.get("num_key_value_heads")
        if found is not None and found != heads:
            raise UnsupportedConfig(
                f"config.json: num_key_value_heads={found!r} is not supported for this architecture, "
                f"only num_attention_heads={heads}"
            )

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf["num_key_value_heads"] = config["num_attention_heads"]
