"""Config keys of state-space models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...errors import UnsupportedConfig
from .fields import Value

#: transformers' words for what Megatron's letters mean; older ones second
_WORDS = {
    "M": ("linear_attention", "mamba"),
    "*": ("full_attention", "attention"),
    "-": ("mlp",),
    "E": ("moe",),
}


@dataclass(frozen=True, slots=True)
class LayerPattern:
    """``hybrid_override_pattern``, a letter a layer, or ``layers_block_type``, a word a layer <-> the first;
    ``num_hidden_layers`` counts them."""

    known: Mapping[str, str] = field(hash=False)
    hf_keys = frozenset({"hybrid_override_pattern", "layers_block_type", "layer_types", "num_hidden_layers"})
    fields = frozenset({"hybrid_override_pattern", "num_layers"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        letters = {word: letter for letter, words in _WORDS.items() for word in words}
        forms = {}
        for key in ("layers_block_type", "layer_types"):
            words = hf.get(key)
            if words is not None:
                if not isinstance(words, list) or not all(str(word) in letters for word in words):
                    raise UnsupportedConfig(f"config.json: {key}={words!r} has layers of unknown kinds")
                forms[key] = "".join(letters[word] for word in words)
        if hf.get("hybrid_override_pattern") is not None:
            forms["hybrid_override_pattern"] = str(hf["hybrid_override_pattern"])
        pattern = next(iter(forms.values()), "ME*-")
        if len(set(forms.values())) > 1:
            raise UnsupportedConfig(f"config.json: {forms} disagree")
        if not pattern or set(pattern) - self.known.keys():
            raise UnsupportedConfig(
                f"config.json: the layers {pattern[:120]!r} are not all of the kinds "
                f"{', '.join(map(repr, self.known))}, which are all that NeMo 2 knows"
            )
        count = hf.get("num_hidden_layers")
        if count is not None and count != len(pattern):
            raise UnsupportedConfig(f"config.json: num_hidden_layers={count!r}, but {len(pattern)} are named")
        config["hybrid_override_pattern"], config["num_layers"] = pattern, len(pattern)

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        pattern = config["hybrid_override_pattern"]
        hf["hybrid_override_pattern"] = pattern
        hf["layers_block_type"] = [_WORDS[letter][0] for letter in pattern]
        hf["num_hidden_layers"] = len(pattern)


@dataclass(frozen=True, slots=True)
class StepLimit:
    """``time_step_limit`` must limit nothing. JSON has no infinity, so generations of transformers spell it
    differently."""

    hf_keys = frozenset({"time_step_limit"})
    fields = frozenset[str]()

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        given = hf.get("time_step_limit")
        if given is None:
            return
        low, high = given if isinstance(given, list) and len(given) == 2 else (None, None)
        top = high.get("__float__") if isinstance(high, dict) else high
        if low != 0 or not _infinite(top):
            raise UnsupportedConfig(
                f"config.json: time_step_limit={given!r} limits steps, which Megatron does not do"
            )

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        """Nothing: transformers takes no limit for a missing key."""


def _infinite(value: Value) -> bool:
    return value in ("Infinity", "inf") or (isinstance(value, float) and math.isinf(value) and value > 0)


@dataclass(frozen=True, slots=True)
class InnerWidth:
    """``n_groups`` must be 1, ``expand`` times the hidden size the heads' width; the layers are all alike."""

    hf_keys = frozenset({"n_groups", "expand"})
    fields = frozenset({"mamba_num_groups", "hybrid_override_pattern", "seq_length"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        groups, expand = hf.get("n_groups", 8), hf.get("expand", 2)
        if groups != 1:
            raise UnsupportedConfig(
                f"config.json: n_groups={groups!r} is not supported for this architecture, only 1: of more, "
                "transformers norms all channels at once and Megatron each group by itself"
            )
        inner = config["mamba_num_heads"] * config["mamba_head_dim"]
        if expand * config["hidden_size"] != inner:
            raise UnsupportedConfig(
                f"config.json: expand={expand!r} times hidden_size is not num_heads times head_dim, {inner}"
            )
        config["mamba_num_groups"] = 1
        config["hybrid_override_pattern"] = "M" * config["num_layers"]
        config["seq_length"] = 2048  # config.json has no word for it, and a model of states no limit

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        inner = config["mamba_num_heads"] * config["mamba_head_dim"]
        if config["mamba_num_groups"] != 1 or inner % config["hidden_size"]:
            raise UnsupportedConfig(
                f"mamba_num_groups={config['mamba_num_groups']}, {inner} channels for hidden_size="
                f"{config['hidden_size']}: no counterpart in config.json of this architecture"
            )
        hf["n_groups"], hf["expand"] = 1, inner // config["hidden_size"]
