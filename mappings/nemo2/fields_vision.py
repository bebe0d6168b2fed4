"""Vision-language models <-> NeMo 2's config classes, which hold a config for each part of the model.

Sizes of transformers' CLIP towers stand here: NeMo 2's ``HFCLIPVisionConfig`` takes them by a model's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from ...errors import UnsupportedConfig
from ...formats.text.fiddle import Node, Symbol
from ..hf.fields import Value
from .fields import Count, NemoClasses, NemoRule, OneName, ParamsDtype, Unused, text

#: transformers' CLIPVisionConfig
CLIP_SIZES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "hidden_size": 768,
        "ffn_hidden_size": 3072,
        "num_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_dim": 32,
    }
)
_LARGE: Final = {
    "hidden_size": 1024,
    "ffn_hidden_size": 4096,
    "num_layers": 24,
    "num_attention_heads": 16,
    "patch_dim": 14,
}
#: what of it the hub's models have otherwise
CLIP_MODELS: Final[Mapping[str, Mapping[str, int]]] = MappingProxyType(
    {
        "openai/clip-vit-large-patch14-336": {**_LARGE, "image_size": 336},
        "openai/clip-vit-large-patch14": _LARGE,
        "openai/clip-vit-base-patch16": {"patch_dim": 16},
    }
)


LANGUAGE: Final = "language_transformer_config"
VISION: Final = "vision_transformer_config"
PROJECTION: Final = "vision_projection_config"
_TORCH_DTYPE: Final = "params_dtype"


@dataclass(frozen=True, slots=True)
class PartConfig(OneName):
    """A field that holds the config of a part of the model, of one of ``classes``. ``field`` is where its
    model config stands in the whole model's, None for that of the decoder, which is the whole model's own."""

    name: str
    classes: NemoClasses
    field: str | None = None

    def fits(self, fields: Mapping[str, Value]) -> bool:
        """Whether the part's config is of one of the classes."""
        node = fields.get(self.name)
        if not isinstance(node, Node) or node.symbol.name not in self.classes.defaults:
            return False
        return self.classes.fits(node.symbol, node.args)

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        node = fields[self.name]
        if not isinstance(node, Node) or not self.fits(fields):
            raise UnsupportedConfig(
                f"the NeMo config says {self.name}={text(node)}; only {self.classes.config} has a counterpart"
            )
        inner = self.classes.read(node.symbol, node.args, f"the NeMo config's {self.name}")
        if self.field is None:
            config |= inner
        else:
            inner.pop(_TORCH_DTYPE, None)  # of the whole model
            config[self.field] = inner

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        inner = config if self.field is None else {**config[self.field], _TORCH_DTYPE: config[_TORCH_DTYPE]}
        name, args = self.classes.write(inner)
        fields[self.name] = Node(Symbol(self.classes.module, name), args)


class MultiPartClasses(NemoClasses):
    """NeMo classes of a model of several parts: which model it is, the parts' own config classes tell."""

    __slots__ = ()

    def fits(self, config_class: Symbol, given: Mapping[str, Value]) -> bool:
        if not NemoClasses.fits(self, config_class, given):
            return False
        fields = {**self.defaults.get(config_class.name, {}), **given}
        return all(rule.fits(fields) for rule in self.rules if isinstance(rule, PartConfig))

    def write(self, config: Mapping[str, Value]) -> tuple[str, dict[str, Value]]:
        fields: dict[str, Value] = {}
        for rule in self.rules:
            rule.write(config, fields)
        return self.config, fields


@dataclass(frozen=True, slots=True)
class Pixels:
    """``patch_dim``, and the fields of which only a class token would make use: the size of an image."""

    names = frozenset({"patch_dim", "img_h", "img_w", "spatial_patch_size"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        Count("patch_dim").read(fields, config)

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        size = config["patch_dim"]
        fields |= {"patch_dim": size, "spatial_patch_size": size, "img_h": 24 * size, "img_w": 24 * size}


@dataclass(frozen=True, slots=True)
class Width:
    """``hidden_size`` and ``embed_dim`` of Qwen's towers, which are one number."""

    names = frozenset({"hidden_size", "embed_dim"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        if fields["hidden_size"] != fields["embed_dim"]:
            raise UnsupportedConfig(
                f"the NeMo config of the vision tower says hidden_size={text(fields['hidden_size'])} and "
                f"embed_dim={text(fields['embed_dim'])}, which must be equal"
            )
        Count("hidden_size").read(fields, config)

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields["hidden_size"] = fields["embed_dim"] = config["hidden_size"]


@dataclass(frozen=True, slots=True)
class ClipTower:
    """The sizes of transformers' own CLIP tower, which NeMo's ``HFCLIPVisionConfig`` takes from a model of
    the hub by its name, or else from the defaults of transformers' class, ``hidden_size`` apart."""

    names = frozenset({"hidden_size", "pretrained_model_name_or_path", "add_class_token"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        name = fields["pretrained_model_name_or_path"]
        Count("hidden_size").read(fields, config)
        if name is None:
            sizes = {**CLIP_SIZES, "hidden_size": config["hidden_size"]}
        elif isinstance(name, str) and name in CLIP_MODELS:
            sizes = {**CLIP_SIZES, **CLIP_MODELS[name]}
        else:
            raise UnsupportedConfig(
                f"the NeMo config takes the vision tower's sizes from {text(name)!r}, which is unknown here",
                hint=f"known: {', '.join(CLIP_MODELS)}",
            )
        heads = sizes["num_attention_heads"]
        config |= {**sizes, "num_query_groups": heads, "kv_channels": sizes["hidden_size"] // heads}
        config["add_class_token"] = fields["add_class_token"]

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        for name, sizes in CLIP_MODELS.items():
            if all(config[key] == value for key, value in {**CLIP_SIZES, **sizes}.items()):
                fields["pretrained_model_name_or_path"] = name
                return
        fields["hidden_size"] = config["hidden_size"]
        free = {key: value for key, value in CLIP_SIZES.items() if key != "hidden_size"}
        if wrong := [f"{key}={config[key]}" for key, value in free.items() if config[key] != value]:
            raise UnsupportedConfig(
                f"config.json: vision_config has {', '.join(wrong)}, which HFCLIPVisionConfig cannot say",
                hint=f"it takes the sizes of {', '.join(CLIP_MODELS)} by name, or the default ones with "
                "another hidden_size",
            )


@dataclass(frozen=True, slots=True)
class DropClassToken:
    """``drop_vision_class_token``; a class token that is kept must be counted: ``add_class_token``."""

    names = frozenset({"drop_vision_class_token"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        drop = fields["drop_vision_class_token"]
        counted = config["vision"].pop("add_class_token")
        if drop is not True and (drop is not False or counted is not True):
            raise UnsupportedConfig(
                f"the NeMo config says drop_vision_class_token={text(drop)}, but the vision tower's "
                f"add_class_token={text(counted)}: the class token is neither dropped nor counted"
            )
        config["drop_vision_class_token"] = drop

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        drop = config["drop_vision_class_token"]
        fields["drop_vision_class_token"] = drop
        tower = fields[VISION]
        fields[VISION] = Node(tower.symbol, {**tower.args, "add_class_token": not drop}, tower.kind)


#: fields of the whole model's config that repeat the decoder's, or are of training
OUTER: Final[tuple[NemoRule, ...]] = (
    ParamsDtype(),
    Unused(
        tuple(
            """
            activation_func add_bias_linear add_qkv_bias attention_dropout
            encoder_pipeline_model_parallel_size encoder_tensor_model_parallel_size ffn_hidden_size
            freeze_language_model freeze_vision_model freeze_vision_projection gated_linear_unit hidden_size
            init_method_std kv_channels language_model_from_pretrained layernorm_epsilon
            layernorm_zero_centered_gamma normalization num_attention_heads num_layers num_moe_experts
            num_query_groups position_embedding_type qk_layernorm rotary_base rotary_interleaved seq_length
            share_embeddings_and_output_weights vision_model_from_pretrained
            vision_projection_from_pretrained window_size mrope_section
            """.split()
        )
    ),
)
