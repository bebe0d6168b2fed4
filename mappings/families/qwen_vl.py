"""What Qwen2-VL and Qwen2.5-VL share: the decoder, the projector and most of the tower.

Source: transformers/models/{qwen2_vl,qwen2_5_vl}, nemo/collections/vlm/qwen2vl/model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ...errors import UnsupportedConfig
from ..blocks import INV_FREQ, TIED
from ..hf.fields import Value
from ..hf.fields_vision import INNER_INERT
from ..models import qwen2
from ..nemo2.fields import Count, NemoClasses, NemoRule, ParamsDtype, Same, Unused, plain, text, with_rules
from ..nemo2.fields import Fixed as NemoFixed
from ..nemo2.fields_vision import LANGUAGE, PROJECTION, VISION, Part, Parts, Pixels, Width
from ..rules import packed_qkv, same
from ..table import Rule
from .qwen_vl_fields import TOKENS
from .vision import (
    DECODER,
    PROCESSOR_FILES,
    TOWER,
    TOWER_MODULES,
    decoder_modules,
    decoder_rules,
    outer_rules,
    projector_classes,
    projector_rules,
    tower_rules,
    vision_sizes,
)

BASE: Final = "nemo.collections.vlm.qwen2vl.model.base"
BLOCKS: Final = "visual.blocks.{block}."
_SECTION: Final = (16, 24, 24)
#: what the tables of both pass to Table
COMMON: Final[dict[str, Any]] = {
    "modules": (*TOWER_MODULES, *decoder_modules(qwen2.TABLE.modules)),
    "sizes": vision_sizes,
    "ignored": (INV_FREQ,),
    "tied": (TIED[0], (DECODER + TIED[1][0], DECODER + TIED[1][1])),
    "spellings": ((r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model.")),
    "files": PROCESSOR_FILES,
    "carried": (*TOKENS, (INNER_INERT, {})),
}


# NeMo's classes


@dataclass(frozen=True, slots=True)
class Positions:
    """``position_embedding_type`` and ``mrope_section`` of the decoder, which the model's config sets."""

    names = frozenset({"position_embedding_type", "mrope_section"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        kind, section = fields["position_embedding_type"], plain(fields.get("mrope_section"))
        if kind not in ("rope", "mrope") or section not in (None, _SECTION):
            raise UnsupportedConfig(
                f"the NeMo config says position_embedding_type={text(kind)}, mrope_section={text(section)}, "
                "which has no counterpart"
            )

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Output:
    """What config.json says of the tower's output, which in NeMo is the projector's."""

    names = frozenset[str]()

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        config["vision"]["out_hidden_size"] = config["projection"]["hidden_size"]

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        pass


def nemo_parts(tower: NemoClasses, defaults: Mapping[str, Mapping[str, Value]], version: str) -> Parts:
    """NeMo's classes; ``version`` is what its data loading asks for."""
    decoder = replace(qwen2.TABLE.nemo, rules=with_rules(qwen2.TABLE.nemo.rules, Positions()))
    return Parts(
        module=BASE,
        model="Qwen2VLModel",
        config="Qwen2VLConfig",
        defaults=defaults,
        modules=("nemo.collections.vlm.qwen2vl.model.qwen2vl",),
        arguments=(("model_version", version),),
        rules=outer_rules(
            Part(LANGUAGE, decoder),
            Part(VISION, tower, "vision"),
            Part(PROJECTION, projector_classes(("mcore_mlp", "mlp2x_gelu")), "projection"),
            Output(),
            NemoFixed("drop_vision_class_token", False),
            Unused(("vision_feature_layer",)),
        ),
    )


def tower_classes(config: str, defaults: Mapping[str, Mapping[str, Value]], *rules: NemoRule) -> NemoClasses:
    """The class of a tower, whose own mathematics its defaults say."""
    own = defaults[config]
    return NemoClasses(
        module=BASE,
        model="",
        config=config,
        defaults=defaults,
        rules=(
            Count("num_layers"),
            Count("num_attention_heads"),
            Width(),
            Count("ffn_hidden_size"),
            Count("num_query_groups"),
            Count("kv_channels"),
            Pixels(),
            Count("temporal_patch_size"),
            Same("init_method_std"),
            NemoFixed("transformer_layer_spec", None),
            *(NemoFixed(name, own[name]) for name in _AS_IT_IS),
            ParamsDtype(),
            Unused(("attention_dropout", "class_token_len", "model_version")),
            *rules,
        ),
    )


_AS_IT_IS: Final = tuple(
    """
    activation_func add_bias_linear add_class_token add_qkv_bias gated_linear_unit layernorm_epsilon
    normalization spatial_merge_size
    """.split()
)


# tensors


def rules_of(norms: tuple[str, ...], *mlp: Rule) -> tuple[Rule, ...]:
    """All rules; ``norms`` are the kinds of a norm's parameters, ``mlp`` the rules of the tower's MLP."""
    attention, proj = TOWER + "self_attention.linear_qkv", TOWER + "self_attention.linear_proj."
    return (
        *tower_rules(
            same(
                "vision_model.conv1.weight",
                "visual.patch_embed.proj.weight",
                "hidden channels frames patch patch_too",
            ),
            *(
                same(
                    f"{attention}.layer_norm_{kind}",
                    f"{BLOCKS}norm1.{kind}",
                    "hidden",
                    also=(f"{TOWER}input_layernorm.{kind}",),
                )
                for kind in norms
            ),
            packed_qkv(attention + ".weight", BLOCKS + "attn.qkv.weight"),
            packed_qkv(attention + ".bias", BLOCKS + "attn.qkv.bias", bias=True),
            same(
                proj + "weight",
                BLOCKS + "attn.proj.weight",
                "hidden (group query_head head_dim)",
                cut="group",
            ),
            same(proj + "bias", BLOCKS + "attn.proj.bias", "hidden"),
            *(
                same(
                    f"{TOWER}mlp.linear_fc1.layer_norm_{kind}",
                    f"{BLOCKS}norm2.{kind}",
                    "hidden",
                    also=(f"{TOWER}pre_mlp_layernorm.{kind}",),
                )
                for kind in norms
            ),
            *mlp,
            *(
                same(f"vision_model.decoder.final_layernorm.{kind}", f"visual.merger.ln_q.{kind}", "hidden")
                for kind in norms
            ),
        ),
        *projector_rules(
            (
                ("vision_projection.encoder.linear_fc1", ("vision_projection.0",), "visual.merger.mlp.0"),
                ("vision_projection.encoder.linear_fc2", ("vision_projection.2",), "visual.merger.mlp.2"),
            ),
            cut=True,
        ),
        *decoder_rules(qwen2.TABLE.rules, {}),
    )
