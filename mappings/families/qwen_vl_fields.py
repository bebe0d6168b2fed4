"""What Qwen2-VL's and Qwen2.5-VL's config.json have in common.

Source: transformers/models/{qwen2_vl,qwen2_5_vl}; for what NeMo has no setting for, get_rope_index and
Qwen25VisionModel in nemo/collections/vlm/qwen2vl/model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ...errors import UnsupportedConfig
from ..hf.fields import ConfigRule, Dtype, Field, Fixed, FullAttention, Unread, Value
from ..hf.fields_gpt import EvenHeads
from ..hf.fields_projector import Projector
from ..hf.fields_tower import MultimodalRope, VisionHeads
from ..hf.fields_vision import Carried, Inner, Must, TiedEmbeddings

#: patches a side of the square that the projector takes at once; NeMo counts positions by it in any case
_MERGED: Final = 2
TOKENS: Final = (("image_token_id", 151655), ("video_token_id", 151656))
#: which transformers 4.52 and 4.53 repeat in the decoder's config, and read in the outer one
_REPEATED: Final = tuple(
    "image_token_id video_token_id vision_token_id vision_start_token_id vision_end_token_id".split()
)


def text_fields() -> tuple[ConfigRule, ...]:
    """The decoder's keys, with the defaults of the class for a decoder inside."""
    return (
        Field("num_hidden_layers", "num_layers", 80),
        Field("hidden_size", "hidden_size", 8192),
        Field("intermediate_size", "ffn_hidden_size", 29568),
        Field("num_attention_heads", "num_attention_heads", 64),
        Field("num_key_value_heads", "num_query_groups", 8, default_from="num_attention_heads"),
        EvenHeads(),
        Field("vocab_size", "vocab_size", 152064),
        Field("max_position_embeddings", "seq_length", 32768),
        Field("rms_norm_eps", "layernorm_epsilon", 1e-5, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        FullAttention(),
        Fixed("hidden_act", "silu"),
        MultimodalRope(),
        Unread(("tie_word_embeddings",)),
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
        Inner("text_config", (kind + "_text", kind), text_fields(), flat=True, kept=_REPEATED),
        # transformers 4 gave the tower the model type of the whole
        Inner(
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
