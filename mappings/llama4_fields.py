"""Config keys and NeMo fields by which the layers of Llama 4 differ: experts, rotary embeddings, chunks.

Sources: transformers/models/llama4, nemo/collections/llm/gpt/model/llama.py (``Llama4Config``) and
llama4_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from nemoconv.errors import UnsupportedConfig
from nemoconv.mappings.config_fields import Value, check_kind
from nemoconv.mappings.nemo_fields import plain, text


@dataclass(frozen=True, slots=True)
class ExpertLayers:
    """``moe_layers``, or every ``interleave_moe_layer_step``-th layer <-> ``moe_layer_freq``: 1 where all
    layers have experts, else a list of 0 and 1 a layer."""

    hf_keys = frozenset({"moe_layers", "interleave_moe_layer_step"})
    fields = frozenset({"moe_layer_freq"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        layers, given = config["num_layers"], hf.get("moe_layers")
        step = check_kind("interleave_moe_layer_step", hf.get("interleave_moe_layer_step", 1), int)
        chosen = list(range(step - 1, layers, step)) if given is None else given
        if (
            not isinstance(chosen, list)
            or not chosen
            or not set(map(repr, chosen)) <= set(map(repr, range(layers)))
        ):
            raise UnsupportedConfig(f"config.json: moe_layers={chosen!r} does not name layers with experts")
        config["moe_layer_freq"] = normal_freq([int(layer in chosen) for layer in range(layers)])

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        freq, layers = config["moe_layer_freq"], range(config["num_layers"])
        chosen = [layer for layer in layers if freq == 1 or freq[layer]]
        hf["moe_layers"] = chosen
        step = chosen[0] + 1
        if chosen == list(layers)[step - 1 :: step]:
            hf["interleave_moe_layer_step"] = step


def normal_freq(freq: list[int]) -> Value:
    return 1 if all(freq) else freq


@dataclass(frozen=True, slots=True)
class ExpertFreq:
    """megatron-core's ``moe_layer_freq``: 0 and 1 a layer, or n for every n-th layer from the first on."""

    names = frozenset({"moe_layer_freq"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        found, layers = plain(fields["moe_layer_freq"]), config["num_layers"]
        freq = [int(layer % found == 0) for layer in range(layers)] if type(found) is int and found else found
        if not isinstance(freq, (list, tuple)) or len(freq) != layers or set(freq) - {0, 1} or not any(freq):
            raise UnsupportedConfig(f"the NeMo config says moe_layer_freq={text(found)} of {layers} layers")
        config["moe_layer_freq"] = normal_freq(list(freq))

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields["moe_layer_freq"] = config["moe_layer_freq"]


@dataclass(frozen=True, slots=True)
class LayersWithoutRope:
    """``no_rope_layers`` (1 where a layer turns its heads), or every ``no_rope_layer_interval``-th that does
    not, with ``layer_types`` <-> ``nope_layer_interval``, None where all do."""

    hf_keys = frozenset({"no_rope_layers", "no_rope_layer_interval", "layer_types"})
    fields = frozenset({"nope_layer_interval"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        layers = config["num_layers"]
        interval = check_kind("no_rope_layer_interval", hf.get("no_rope_layer_interval", 4), int)
        flags = hf.get("no_rope_layers") or _turned(interval, layers)
        if not isinstance(flags, list) or len(flags) < layers:
            raise UnsupportedConfig(f"config.json: no_rope_layers={flags!r} has less than {layers} layers")
        flags = [int(bool(flag)) for flag in flags[:layers]]
        found = next((n for n in range(1, layers + 2) if _turned(n, layers) == flags), None)
        if found is None:
            raise UnsupportedConfig(
                f"config.json: no_rope_layers={flags} is not every n-th layer, which is all that NeMo can say"
            )
        kinds = ["chunked_attention" if flag else "full_attention" for flag in flags]
        if hf.get("layer_types") not in (None, kinds):
            raise UnsupportedConfig(
                "config.json: layer_types must be chunked_attention with rope, full_attention without"
            )
        config["nope_layer_interval"] = None if found > layers else found

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        interval = config["nope_layer_interval"] or config["num_layers"] + 1
        hf["no_rope_layer_interval"] = interval
        hf["no_rope_layers"] = _turned(interval, config["num_layers"])


def _turned(interval: int, layers: int) -> list[int]:
    return [int((layer + 1) % interval != 0) for layer in range(layers)]


@dataclass(frozen=True, slots=True)
class NopeInterval:
    """``nope_layer_interval``: every n-th layer has no rotary embedding."""

    names = frozenset({"nope_layer_interval"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        interval = fields["nope_layer_interval"]
        if interval is not None and (type(interval) is not int or interval < 1):
            raise UnsupportedConfig(f"the NeMo config says nope_layer_interval={text(interval)}")
        none = interval is None or interval > config["num_layers"]
        config["nope_layer_interval"] = None if none else interval

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields["nope_layer_interval"] = config["nope_layer_interval"]


@dataclass(frozen=True, slots=True)
class TemperatureTuning:
    """``attn_temperature_tuning`` sharpens layers without rope beyond ``floor_scale`` tokens, which NeMo does
    not do. It must be off, or beyond the reach of the model, or be ignored on demand."""

    hf_keys = frozenset({"attn_temperature_tuning", "floor_scale", "attn_scale"})
    fields = frozenset[str]()
    #: what --allow-ignored makes of a key
    when_ignored: ClassVar[Mapping[str, Value]] = {"attn_temperature_tuning": False}

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        floor = check_kind("floor_scale", hf.get("floor_scale", 8192), int)
        reached = config["seq_length"] >= floor and config["nope_layer_interval"] is not None
        if hf.get("attn_temperature_tuning", True) and reached:
            raise UnsupportedConfig(
                "config.json: attn_temperature_tuning is on, which NeMo does not know: from token "
                f"{floor:,} on it would compute something else",
                hint='if texts stay shorter, pass "--allow-ignored attn_temperature_tuning"',
            )

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf["attn_temperature_tuning"] = False


@dataclass(frozen=True, slots=True)
class UnscaledRope:
    """NeMo's ``Llama4Config`` has ``rope_scaling`` and ``rope_scaling_factor``, and builds the model without
    (``GPTConfig.configure_model``, NeMo 2.5 to 2.7), so a scaled model would come out unscaled. Run with
    NeMo 2.5.3: ``rope_scaling=True, rope_scaling_factor=16`` gives the frequencies of an unscaled model."""

    names = frozenset({"rope_scaling", "rope_scaling_factor", "seq_len_interpolation_factor"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        config["rope_scaling"] = None
        if fields["rope_scaling"] or fields.get("seq_len_interpolation_factor") is not None:
            raise UnsupportedConfig(
                "the NeMo config says rope_scaling=True, but NeMo builds the model without it: nobody knows "
                "which of the two its weights are for"
            )

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        if config["rope_scaling"] is not None:
            raise UnsupportedConfig(
                f"config.json: the rotary scaling {dict(config['rope_scaling'])} has no counterpart: NeMo's "
                "Llama4Config has a field for it, but builds the model without"
            )
        fields["rope_scaling"] = False
