"""What the tables of vision-language models share: a decoder and a tower inside a larger model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ...errors import UnsupportedConfig
from ..blocks.stack import VARYING_FACTORS
from ..hf.fields import Value
from ..nemo2 import classes
from ..nemo2.fields import Count, NemoClasses, NemoFixed, NemoRule, ParamsDtype, Unused
from ..nemo2.fields_vision import OUTER
from ..nemo2.symbols import GELU
from ..rules import same
from ..sizes import attention_sizes
from ..table import Module, Rule

#: NeMo's module of projectors and CLIP
VISION_BASE: Final = "nemo.collections.vlm.vision.base"
#: the decoder's names in NeMo's model of several parts
DECODER: Final = "language_model."
#: what the factors of a tower's rules end with
KIND: Final = "vision"
#: files that go along beside the tokenizer's
PROCESSOR_FILES: Final = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
#: NeMo builds no model with more
_MOST_BLOCKS: Final = 4096


def tower_rules(*rules: Rule) -> tuple[Rule, ...]:
    """Rules written with a decoder's factors, for a tower with sizes of its own."""
    return tuple(rule.of_kind(KIND, VARYING_FACTORS) for rule in rules)


PROJECTOR_MODULES: Final = (
    Module("vision_projection.encoder.linear_fc1"),
    Module("vision_projection.encoder.linear_fc2"),
)


def projector_rules(names: Sequence[tuple[str, tuple[str, ...], str]], *, cut: bool) -> tuple[Rule, ...]:
    """A projector of two layers with biases: (name in NeMo, its other names, name in Hugging Face) of each.
    ``cut``: they are megatron-core's parallel layers."""
    (first, also_first, hf_first), (second, also_second, hf_second) = names
    by = "projected_ffn" if cut else None

    def pair(
        nemo: str, other_names: tuple[str, ...], hf: str, axes: str, ends: tuple[str | None, str | None]
    ) -> list[Rule]:
        shapes = (("weight", axes, ends[0]), ("bias", axes.split()[0], ends[1]))
        return [
            same(
                f"{nemo}.{kind}",
                f"{hf}.{kind}",
                shape,
                cut=end,
                other_names=tuple(f"{name}.{kind}" for name in other_names),
            )
            for kind, shape, end in shapes
        ]

    return (
        *pair(first, also_first, hf_first, "projected_ffn projected_in", (by, by)),
        *pair(second, also_second, hf_second, "hidden projected_ffn", (by, None)),
    )


def projector_classes(projector_types: tuple[str, ...]) -> NemoClasses:
    """NeMo's class of projectors, restricted to ``projector_types``, of which the first is written."""
    return NemoClasses(
        module=VISION_BASE,
        model="",
        config="MultimodalProjectorConfig",
        defaults=classes.family("MultimodalProjectorConfig"),
        rules=(
            Count("input_size"),
            Count("hidden_size"),
            Count("ffn_hidden_size"),
            ProjectorType(projector_types),
            NemoFixed("bias", True),
            NemoFixed("activation_func", GELU),
            NemoFixed("gated_linear_unit", False),
            ParamsDtype(),
            Unused(_PLACEHOLDERS),
        ),
    )


#: fields of a config that is a decoder's by its base class only
_PLACEHOLDERS: Final = tuple(
    """
    add_bias_linear add_qkv_bias attention_dropout init_method_std kv_channels layer_spec layernorm_epsilon
    normalization num_attention_heads num_layers num_query_groups
    """.split()
)


class ProjectorType:
    """``projector_type``: spellings of one arithmetic with other names of tensors, which the rules know."""

    names = frozenset({"projector_type"})

    def __init__(self, types: tuple[str, ...]) -> None:
        self.types = types

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        if fields["projector_type"] not in self.types:
            raise UnsupportedConfig(
                f"the NeMo config says projector_type={str(fields['projector_type'])[:60]!r}, which has no "
                f"counterpart; only {' and '.join(map(repr, self.types))} has"
            )

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields["projector_type"] = self.types[0]


def outer_rules(*rules: NemoRule) -> tuple[NemoRule, ...]:
    return (*OUTER, *rules)


def vision_sizes(config: Mapping[str, Value]) -> dict[str, int]:
    """Sizes of the factors of decoder, tower and projector."""
    vision, projection = config["vision"], config["projection"]
    if vision["num_layers"] > _MOST_BLOCKS:
        raise UnsupportedConfig(f"{vision['num_layers']:,} layers of a vision tower are out of range")
    if projection["hidden_size"] != config["hidden_size"]:
        raise UnsupportedConfig(
            f"the projector's output has {projection['hidden_size']} features, the decoder takes "
            f"{config['hidden_size']}"
        )
    tower = attention_sizes({**vision, "vocab_size": 1})
    return {
        **attention_sizes(config),
        **{f"{name}.{KIND}": size for name, size in tower.items() if name in VARYING_FACTORS},
        "blocks": vision["num_layers"],
        "channels": 3,
        "frames": vision.get("temporal_patch_size", 1),
        "patch": vision["patch_dim"],
        "patch_too": vision["patch_dim"],
        "positions": (vision.get("image_size", 0) // vision["patch_dim"]) ** 2 + 1,
        "projected_in": projection["input_size"],
        "projected_ffn": projection["ffn_hidden_size"],
    }
