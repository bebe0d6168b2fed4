"""What Qwen2-VL and Qwen2.5-VL share: the decoder, the projector and most of the tower.

Source: transformers/models/{qwen2_vl,qwen2_5_vl}, nemo/collections/vlm/qwen2vl/model; for what NeMo has no
setting for, get_rope_index and Qwen25VisionModel there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from ...errors import UnsupportedConfig
from ..architecture import Architecture
from ..blocks.attention import Attention
from ..blocks.mlp import Mlp
from ..blocks.names import Names
from ..blocks.place import ALWAYS, Norm
from ..blocks.stack import Blocks, Stack
from ..hf.fields import ConfigRule, Dtype, Field, FullAttention, Unread, Value
from ..hf.fields_gpt import EvenHeads
from ..hf.fields_projector import Projector
from ..hf.fields_tower import MultimodalRope, VisionHeads
from ..hf.fields_vision import INNER_INERT, Carried, InnerConfig, Must, TiedEmbeddings
from ..llama_like import standard
from ..models.qwen2 import QWEN2
from ..nemo2 import classes
from ..nemo2.fields import (
    Count,
    NemoClasses,
    NemoFixed,
    NemoRule,
    ParamsDtype,
    Same,
    Unused,
    plain,
    text,
    with_rules,
)
from ..nemo2.fields_vision import LANGUAGE, PROJECTION, VISION, MultiPartClasses, PartConfig, Pixels, Width
from ..rules import same
from .vision import (
    DECODER,
    KIND,
    PROCESSOR_FILES,
    PROJECTOR_MODULES,
    outer_rules,
    projector_classes,
    projector_rules,
    tower_rules,
    vision_sizes,
)

BASE: Final = "nemo.collections.vlm.qwen2vl.model.base"
_SECTION: Final = (16, 24, 24)


# config.json

#: patches a side of the square that the projector takes at once; NeMo counts positions by it in any case
_MERGED: Final = 2
TOKENS: Final = (("image_token_id", 151655), ("video_token_id", 151656))
#: which transformers 4.52 and 4.53 repeat in the decoder's config, and read in the outer one
_REPEATED: Final = tuple(
    "image_token_id video_token_id vision_token_id vision_start_token_id vision_end_token_id".split()
)


def text_fields() -> tuple[ConfigRule, ...]:
    """The decoder's keys, with the defaults of the class for a decoder inside."""
    return standard(
        EvenHeads(),
        FullAttention(),
        MultimodalRope(),
        Unread(("tie_word_embeddings",)),
        defaults={
            "num_hidden_layers": 80,
            "hidden_size": 8192,
            "intermediate_size": 29568,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "vocab_size": 152064,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
        },
        without=("attention_bias", "mlp_bias", "dtype"),
    )


def tower_fields(*rules: ConfigRule) -> tuple[ConfigRule, ...]:
    """``rules``, which give width and MLP, and what both towers have."""
    return (
        Field("depth", "num_layers", 32),
        Field("num_heads", "num_attention_heads", 16),
        *rules,
        VisionHeads(),
        Field("patch_size", "patch_dim", 14),
        Field("temporal_patch_size", "temporal_patch_size", 2),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Must("in_channels", 3, 3),
        Must("spatial_merge_size", _MERGED, 2),
        Must("rope_parameters", {"rope_type": "axial", "rope_theta": 10000.0}, None, null=True),
    )


def fields(kind: str, tower: tuple[ConfigRule, ...]) -> tuple[ConfigRule, ...]:
    """All rules of config.json; ``kind`` is the model type."""
    return (
        InnerConfig("text_config", (kind + "_text", kind), text_fields(), flat=True, kept=_REPEATED),
        # transformers 4 gave the tower the model type of the whole
        InnerConfig(
            "vision_config",
            (kind, kind + "_vision"),
            tower,
            field="vision",
            kept=("in_chans", "spatial_patch_size", "embed_dim", "mlp_ratio"),
        ),
        TiedEmbeddings(),
        OutputWidth(),
        Projector(_MERGED, wide=True),
        *(Carried(*token) for token in TOKENS),
        Must("vision_start_token_id", 151652, 151652),
        Unread(("vision_end_token_id", "vision_token_id")),
        Dtype(),
    )


@dataclass(frozen=True, slots=True)
class OutputWidth:
    """The tower's output, which the decoder takes: both configs must say one width."""

    hf_keys = frozenset[str]()
    fields = frozenset[str]()

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        out = config["vision"]["out_hidden_size"]
        if out != config["hidden_size"]:
            raise UnsupportedConfig(
                f"config.json: vision_config gives the decoder {out} features, but it takes "
                f"{config['hidden_size']}"
            )

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        pass


# NeMo's classes


@dataclass(frozen=True, slots=True)
class MropePositions:
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


def nemo_parts(
    tower: NemoClasses, defaults: Mapping[str, Mapping[str, Value]], version: str
) -> MultiPartClasses:
    """NeMo's classes; ``version`` is what its data loading asks for."""
    decoder = replace(QWEN2.table.nemo, rules=with_rules(QWEN2.table.nemo.rules, MropePositions()))
    return MultiPartClasses(
        module=BASE,
        model="Qwen2VLModel",
        config="Qwen2VLConfig",
        defaults=defaults,
        modules=("nemo.collections.vlm.qwen2vl.model.qwen2vl",),
        arguments=(("model_version", version),),
        rules=outer_rules(
            PartConfig(LANGUAGE, decoder),
            PartConfig(VISION, tower, "vision"),
            PartConfig(PROJECTION, projector_classes(("mcore_mlp", "mlp2x_gelu")), "projection"),
            Output(),
            NemoFixed("drop_vision_class_token", False),
            Unused(("vision_feature_layer",)),
        ),
    )


def tower_classes(config: str, *rules: NemoRule) -> NemoClasses:
    """The class of a tower, whose own mathematics its defaults say."""
    own = classes.defaults(config)
    return NemoClasses(
        module=BASE,
        model="",
        config=config,
        defaults=classes.family(config),
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


# the whole


#: of a decoder that takes what the tower gives
_WIDTHS: Final = {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4}
PATCHES: Final = tower_rules(
    same(
        "vision_model.conv1.weight",
        "visual.patch_embed.proj.weight",
        "hidden channels frames patch patch_too",
    )
)
PROJECTOR: Final = projector_rules(
    (
        ("vision_projection.encoder.linear_fc1", ("vision_projection.0",), "visual.merger.mlp.0"),
        ("vision_projection.encoder.linear_fc2", ("vision_projection.2",), "visual.merger.mlp.2"),
    ),
    cut=True,
)


def qwen_vl(
    model_type: str,
    hf_class: str,
    tower: tuple[ConfigRule, ...],
    *,
    norm: Norm,
    mlp: Mapping[str, str],
    nemo2: NemoClasses,
    sample: Mapping[str, Value] = MappingProxyType({}),
    **more: Any,
) -> Architecture:
    """A tower with these config rules, norms and names of its MLP, and a Qwen 2. ``sample``: what config.json
    must say, as transformers' defaults are no model."""
    names = Names(
        layer="visual.blocks.{block}.",
        embedding="",
        final_norm="visual.merger.ln_q",
        head="",
        input_norm="norm1",
        query="attn.qkv",
        key="attn.qkv",
        value="attn.qkv",
        attention_output="attn.proj",
        mlp_norm="norm2",
        **mlp,
    )
    blocks = Blocks(norm, Attention(bias=ALWAYS, output_bias=ALWAYS), Mlp(bias=ALWAYS))
    return Architecture(
        (model_type,),
        hf_class,
        (
            Stack(names, blocks, "vision_model.decoder.", KIND),
            replace(QWEN2.main, megatron=DECODER + "decoder."),
        ),
        fields(model_type, tower),
        nemo2,
        before=(*PATCHES, *PROJECTOR),
        extra_modules=PROJECTOR_MODULES,
        sizes=vision_sizes,
        ignored=QWEN2.ignored,
        spellings=((r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model.")),
        files=PROCESSOR_FILES,
        manifest_fields=(*TOKENS, (INNER_INERT, {})),
        samples=({**_WIDTHS, **sample},),
        proofs=("bit-equal", "transformers logits", "real NeMo logits", "real NeMo import and export"),
        **more,
    )
