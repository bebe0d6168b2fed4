"""How many layers of multi-token prediction there are, in config.json and in NeMo; see
:mod:`nemoconv.mappings.blocks.mtp` for their tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from ..errors import UnsupportedConfig
from .hf.fields import Value
from .table import DEPTH, Rule

#: what config.json calls the number of these layers, and what NeMo calls it
KEYS: Final = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_layers")
_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class FurtherLayers:
    """``num_nextn_predict_layers``, of which transformers' name is ``num_mtp_layers``, <->
    ``mtp_num_layers``. Only transformers 5.20 and newer compute them, when asked to."""

    default: int = 1
    hf_keys = frozenset(KEYS[:2])
    fields = frozenset({"mtp_num_layers"})
    when_ignored: ClassVar[Mapping[str, Value]] = dict.fromkeys(KEYS[:2])

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        given = {key: hf[key] for key in KEYS[:2] if key in hf}
        count = 0 if None in given.values() else next(iter(given.values()), self.default)
        agree = None in given.values() or all(value == count for value in given.values())
        if type(count) is not int or not 0 <= count <= _MAX or not agree:
            raise UnsupportedConfig(f"config.json: {given} is no number of layers up to {_MAX}")
        config["mtp_num_layers"] = count

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf[KEYS[0]] = config["mtp_num_layers"]


@dataclass(frozen=True, slots=True)
class FurtherFields:
    """``mtp_num_layers`` of megatron-core, None without such layers, and the share of their loss, which
    NeMo's classes of DeepSeek leave open, though training needs it."""

    names = frozenset({"mtp_num_layers", "mtp_loss_scaling_factor"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        count = fields.get("mtp_num_layers") or 0
        if type(count) is not int or not 0 <= count <= _MAX:
            raise UnsupportedConfig(f"the NeMo config says mtp_num_layers={count!r}")
        config["mtp_num_layers"] = count

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        if config["mtp_num_layers"]:
            fields |= {"mtp_num_layers": config["mtp_num_layers"], "mtp_loss_scaling_factor": 0.1}


def has_mtp(rules: Iterable[Rule]) -> bool:
    """Whether these are rules of a table that knows such layers."""
    return any(DEPTH in rule.holes for rule in rules)
