"""Config rules of what stands between a vision tower and a decoder: which features, through what MLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import UnsupportedConfig
from .fields import Value


@dataclass(frozen=True, slots=True)
class Projector:
    """The sizes of an MLP of two layers between tower and decoder, of which config.json says nothing: its
    input is the tower's width, times that of a square of ``merged`` patches, its output the decoder's width.
    Its middle is as wide as the input (``wide``) or as the output."""

    merged: int = 1
    wide: bool = False
    hf_keys = frozenset[str]()
    fields = frozenset({"projection"})

    def sizes(self, config: Mapping[str, Value]) -> dict[str, int]:
        before, after = config["vision"]["hidden_size"] * self.merged**2, config["hidden_size"]
        return {"input_size": before, "hidden_size": after, "ffn_hidden_size": before if self.wide else after}

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        config["projection"] = self.sizes(config)

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        if config["projection"] != self.sizes(config):
            raise UnsupportedConfig(
                f"the NeMo config's projection has {config['projection']}; config.json of this architecture "
                f"can only say {self.sizes(config)}"
            )


@dataclass(frozen=True, slots=True)
class SelectStrategy:
    """``vision_feature_select_strategy`` <-> ``drop_vision_class_token``: whether the class token's features
    are dropped. Where they are kept, NeMo counts them only if the tower's ``add_class_token`` says so."""

    hf_keys = frozenset({"vision_feature_select_strategy"})
    fields = frozenset({"drop_vision_class_token"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        value = hf.get("vision_feature_select_strategy", "default")
        if value not in ("default", "full"):
            raise UnsupportedConfig(
                f"config.json: vision_feature_select_strategy={value!r} is not supported for this "
                "architecture, only 'default' and 'full'"
            )
        config["drop_vision_class_token"] = value == "default"

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf["vision_feature_select_strategy"] = "default" if config["drop_vision_class_token"] else "full"


@dataclass(frozen=True, slots=True)
class FeatureLayer:
    """``vision_feature_layer``: the layer of the tower whose output is taken, counted from 0 (the embeddings)
    or, if negative, from the end. transformers can take several, NeMo one."""

    default: int = -2
    hf_keys = frozenset({"vision_feature_layer"})
    fields = frozenset({"vision_feature_layer"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        value = hf.get("vision_feature_layer", self.default)
        layers = config["vision"]["num_layers"]
        if type(value) is not int or not -layers - 1 <= value <= layers:
            raise UnsupportedConfig(
                f"config.json: vision_feature_layer={value!r} has no counterpart in NeMo 2, which takes one "
                f"layer of {layers}"
            )
        config["vision_feature_layer"] = value

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        checked = {**config}
        self.read(config, checked)
        hf["vision_feature_layer"] = checked["vision_feature_layer"]
