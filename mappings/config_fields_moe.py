"""Config keys of mixtures of experts, and of the Qwen family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nemoconv.errors import UnsupportedConfig
from nemoconv.mappings.config_fields import Value, check_kind


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
    fields: frozenset[str] = frozenset()

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
class FullAttention:
    """``use_sliding_window`` must be false, and then ``sliding_window`` and ``max_window_layers`` say
    nothing; ``layer_types`` must say it too."""

    hf_keys = frozenset({"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"})
    fields: frozenset[str] = frozenset()

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        if hf.get("use_sliding_window", False) is not False:
            raise UnsupportedConfig(
                f"config.json: use_sliding_window={hf['use_sliding_window']!r} is not supported for this "
                "architecture, only False"
            )
        kinds = hf.get("layer_types")
        if kinds is not None and (not isinstance(kinds, list) or set(map(str, kinds)) != {"full_attention"}):
            raise UnsupportedConfig(
                "config.json: layer_types is not supported unless all layers are 'full_attention'"
            )

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf["use_sliding_window"] = False
