"""Layers that predict further tokens (multi-token prediction): each is one more layer of the decoder, after
norms of the embedding and of the hidden state before it, and a projection of the two side by side.

Hugging Face numbers them on behind the decoder's layers. megatron-core calls the layer inside
``transformer_layer`` on disk in all versions, and ``mtp_model_layer`` in the modules of newer ones.

Source: megatron/core/transformer/multi_token_prediction.py, transformers/modeling_layers.py (``MtpLayer``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final

from ..errors import UnsupportedConfig
from .blocks import HF, NEMO
from .hf.fields import Value
from .rules import same
from .table import DEPTH, Module, Part, Rule, holes

FURTHER_HF: Final = "model.layers.{depth:beyond}."
FURTHER: Final = "mtp.layers.{depth}."
INNER: Final = FURTHER + "transformer_layer."
RENAMED: Final = FURTHER + "mtp_model_layer."
#: of files that hold the embedding and the output layer again in each of these layers, as the released do
COPIES: Final = (
    (FURTHER_HF + "embed_tokens.weight", "model.embed_tokens.weight"),
    (FURTHER_HF + "shared_head.head.weight", "lm_head.weight"),
)
#: what config.json calls the number of these layers, and what NeMo calls it
KEYS: Final = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_layers")
_MAX: Final = 16
_NORMS: Final = {"enorm": "enorm", "hnorm": "hnorm", "final_layernorm": "shared_head.norm"}


def further_rules(rules: Iterable[Rule], layers: str = "") -> tuple[Rule, ...]:
    """The rules of these layers, given those of a decoder whose last layer is of the set ``layers``."""
    inner = (rule for rule in rules if "layer" in rule.holes and rule.layers in ("", layers))
    return (
        *(
            same(f"{FURTHER}{nemo}.weight", f"{FURTHER_HF}{hf}.weight", "hidden")
            for nemo, hf in _NORMS.items()
        ),
        same(FURTHER + "eh_proj.weight", FURTHER_HF + "eh_proj.weight", "hidden joined", cut="hidden"),
        *map(_inner, inner),
    )


def _inner(rule: Rule) -> Rule:
    names = [name.removeprefix(NEMO) for name in (rule.nemo, *rule.also)]
    spelled = [prefix + name for prefix in (INNER, RENAMED) for name in names]
    return replace(
        rule, nemo=spelled[0], also=tuple(spelled[1:]), parts=tuple(map(_beyond, rule.parts)), layers=""
    )


def _beyond(part: Part) -> Part:
    return replace(part, hf=part.hf.replace(HF, FURTHER_HF, 1))


def further_modules(modules: Iterable[Module], layers: str = "") -> tuple[Module, ...]:
    """The modules of these layers that keep an ``_extra_state`` object."""
    inner = (each for each in modules if "layer" in holes(each.name) and each.layers in ("", layers))
    own = (Module(FURTHER + name) for name in (*_NORMS, "eh_proj"))
    return (*own, *(replace(each, name=each.name.replace(NEMO, INNER, 1), layers="") for each in inner))


def further_sizes(config: Mapping[str, Value]) -> dict[str, int]:
    """Sizes of what :func:`further_rules` name, from a model config."""
    return {"depths": config.get("mtp_num_layers") or 0, "joined": 2 * config["hidden_size"]}


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


def has_further(rules: Iterable[Rule]) -> bool:
    """Whether these are rules of a table that knows such layers."""
    return any(DEPTH in rule.holes for rule in rules)
