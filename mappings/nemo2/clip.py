"""Sizes of transformers' CLIP towers, which NeMo 2's ``HFCLIPVisionConfig`` takes by the name of a model."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

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
