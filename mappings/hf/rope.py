"""Rotary position embeddings: their many spellings in config.json, and one normal form.

The model config holds ``rotary_base`` (a float) and ``rope_scaling``: None, or a dictionary with
``rope_type`` and exactly the parameters that this type reads in transformers
(``modeling_rope_utils.py``), so that two configs mean the same when their normal forms are equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import UnsupportedConfig
from .fields import Value, check_kind

#: per rope type: parameters that must be there, parameters that may be there
PARAMETERS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "llama3": (
        frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
        frozenset(),
    ),
    "linear": (frozenset({"factor"}), frozenset()),
    "dynamic": (frozenset({"factor"}), frozenset({"original_max_position_embeddings"})),
    "yarn": (
        frozenset({"factor"}),
        frozenset(
            "original_max_position_embeddings attention_factor beta_fast beta_slow "
            "mscale mscale_all_dim truncate".split()
        ),
    ),
}
#: keys of a rope dictionary that are handled outside the parameters
_COMMON = frozenset({"rope_type", "type", "rope_theta"})


@dataclass(frozen=True, slots=True)
class Rope:
    """``rope_theta``, ``rope_scaling`` (transformers 4) and ``rope_parameters`` (5) <-> ``rotary_base``
    and ``rope_scaling``. All three keys are read and must agree; all three are written, because
    transformers 4 reads a file with only the new key as unscaled, with base 10000, without a word."""

    default_theta: float = 10000.0
    hf_keys = frozenset({"rope_theta", "rope_scaling", "rope_parameters"})
    fields = frozenset({"rotary_base", "rope_scaling"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        forms = []
        if hf.get("rope_parameters") is not None:
            new = _dictionary("rope_parameters", hf["rope_parameters"])
            theta = new.get("rope_theta", hf.get("rope_theta", self.default_theta))
            forms.append((_theta(theta), normal_scaling("rope_parameters", new)))
        if hf.get("rope_scaling") is not None or hf.get("rope_theta") is not None or not forms:
            old = _dictionary("rope_scaling", hf.get("rope_scaling") or {})
            theta = hf.get("rope_theta", old.get("rope_theta"))
            if theta is None:
                theta = forms[0][0] if forms else self.default_theta
            scaling = normal_scaling("rope_scaling", old)
            if hf.get("rope_scaling") is None and forms and "rope_scaling" not in hf:
                scaling = forms[0][1]  # only rope_theta is repeated in the old place
            forms.append((_theta(theta), scaling))
        if len(forms) == 2 and forms[0] != forms[1]:
            raise UnsupportedConfig(
                f"config.json: rope_parameters says {forms[0]}, rope_theta and rope_scaling say {forms[1]}",
                hint="remove the one that is wrong",
            )
        config["rotary_base"], config["rope_scaling"] = forms[0]

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        theta, scaling = config["rotary_base"], config["rope_scaling"]
        hf["rope_theta"] = theta
        hf["rope_scaling"] = dict(scaling) if scaling else None
        hf["rope_parameters"] = {**(scaling or {"rope_type": "default"}), "rope_theta": theta}


@dataclass(frozen=True, slots=True)
class PartialRope(Rope):
    """:class:`Rope` on a part of each head: ``partial_rotary_factor`` <-> ``rotary_percent``.

    transformers 4 has the factor beside ``rope_theta``, transformers 5 in ``rope_parameters``.
    """

    default_factor: float = 1.0
    hf_keys = Rope.hf_keys | {"partial_rotary_factor"}
    fields = Rope.fields | {"rotary_percent"}

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        rest = dict(hf)
        found = [rest.pop("partial_rotary_factor", None)]
        for key in ("rope_parameters", "rope_scaling"):
            if isinstance(rest.get(key), dict):
                rest[key] = dict(rest[key])
                found.append(rest[key].pop("partial_rotary_factor", None))
        factors = {check_kind("partial_rotary_factor", value, float) for value in found if value is not None}
        if len(factors) > 1:
            raise UnsupportedConfig(
                f"config.json: partial_rotary_factor is {' and '.join(map(str, sorted(factors)))}",
                hint="remove the one that is wrong",
            )
        factor = factors.pop() if factors else self.default_factor
        if not 0 < factor <= 1:
            raise UnsupportedConfig(f"config.json: partial_rotary_factor={factor!r} is not in (0, 1]")
        Rope.read(self, rest, config)
        config["rotary_percent"] = factor

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        Rope.write(self, config, hf)
        hf["partial_rotary_factor"] = config["rotary_percent"]
        hf["rope_parameters"]["partial_rotary_factor"] = config["rotary_percent"]


@dataclass(frozen=True, slots=True)
class TwoRopes:
    """One rotary embedding for layers with a window and one, which may be scaled, for the others (Gemma 3).

    ``rope_local_base_freq``, ``rope_theta`` and ``rope_scaling`` (transformers 4), ``rope_parameters`` by
    the kind of layer (5) <-> ``rotary_base_local``, ``rotary_base`` and ``rope_scaling``.
    """

    default_local: float = 10_000.0
    default_theta: float = 1_000_000.0
    hf_keys = Rope.hf_keys | {"rope_local_base_freq"}
    fields = Rope.fields | {"rotary_base_local"}

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        new = _dictionary("rope_parameters", hf.get("rope_parameters") or {})
        if unknown := sorted(new.keys() - {"full_attention", "sliding_attention"}):
            raise UnsupportedConfig(f"config.json: rope_parameters has {unknown}, not only kinds of layers")
        base = hf.get("rope_local_base_freq")
        local = {"rope_parameters": new.get("sliding_attention"), "rope_theta": base}
        whole = {"rope_parameters": new.get("full_attention"), "rope_theta": hf.get("rope_theta")}
        if "rope_scaling" in hf:
            whole["rope_scaling"] = hf["rope_scaling"]
        found: dict[str, Value] = {}
        Rope(self.default_local).read(local, found)
        if found["rope_scaling"] is not None:
            raise UnsupportedConfig("config.json: rope_parameters scales the layers with a window")
        config["rotary_base_local"] = found["rotary_base"]
        Rope(self.default_theta).read(whole, config)

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        Rope().write(config, hf)
        local = config["rotary_base_local"]
        hf["rope_local_base_freq"] = local
        hf["rope_parameters"] = {
            "full_attention": hf["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        }


def _dictionary(key: str, value: Value) -> Mapping[str, Value]:
    if not isinstance(value, dict):
        raise UnsupportedConfig(f"config.json: {key}={value!r} is not a dictionary")
    return value


def _theta(value: Value) -> float:
    theta = check_kind("rope_theta", value, float)
    if theta <= 0:
        raise UnsupportedConfig(f"config.json: rope_theta={value!r} is not positive")
    return float(theta)


def normal_scaling(key: str, rope: Mapping[str, Value]) -> dict[str, Value] | None:
    """The normal form of a rope dictionary, None when it scales nothing.

    Raises UnsupportedConfig for types or parameters that no table knows.
    """
    kinds = {str(rope[name]) for name in ("rope_type", "type") if rope.get(name) is not None}
    if len(kinds) > 1:
        raise UnsupportedConfig(f"config.json: {key} has two types, {sorted(kinds)}")
    kind = kinds.pop() if kinds else "default"
    given = {name: value for name, value in rope.items() if name not in _COMMON and value is not None}
    if kind == "default":
        if given:
            raise UnsupportedConfig(f"config.json: {key} has {sorted(given)} but no rope_type")
        return None
    if kind not in PARAMETERS:
        raise UnsupportedConfig(f"config.json: {key} has the unsupported rope_type {kind!r}")
    required, optional = PARAMETERS[kind]
    missing, unknown = required - given.keys(), given.keys() - required - optional
    if missing or unknown:
        raise UnsupportedConfig(
            f"config.json: {key} of type {kind!r}: "
            + ", ".join(
                [f"{n} is missing" for n in sorted(missing)] + [f"{n} is unknown" for n in sorted(unknown)]
            )
        )
    normal: dict[str, Value] = {"rope_type": kind}
    for name in sorted(given):
        kind_of = bool if name == "truncate" else int if name.startswith("original") else float
        normal[name] = check_kind(f"{key}.{name}", given[name], kind_of)
    return normal


def meaning(scaling: Mapping[str, Value] | None) -> dict[str, Value] | None:
    """What a normal form computes: two that mean the same are equal, however much each of them spells out.

    Source of what is taken for what is not said: transformers' ``_compute_yarn_parameters`` and the attention
    of DeepSeek V3, which reads ``mscale_all_dim`` alone.
    """
    if scaling is None or (scaling["rope_type"] == "linear" and scaling["factor"] == 1):
        return None
    meant = dict(scaling)
    if meant["rope_type"] == "yarn":
        meant["beta_fast"] = meant.get("beta_fast") or 32.0
        meant["beta_slow"] = meant.get("beta_slow") or 1.0
        meant.setdefault("truncate", True)
        if not meant.get("mscale_all_dim"):
            meant.pop("mscale", None)
            meant.pop("mscale_all_dim", None)
    return meant
