"""Defaults of NeMo 2's config classes for vision-language models: data only.

Read off the dataclasses of nemo-toolkit 2.5.3 (``nemo/collections/vlm``) and, for the towers that are
transformers' own, off the config.json of the hub's models.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from ...formats.text.fiddle import Node, Symbol
from .configs_dense import GELU, SILU, family

QUICK_GELU: Final = Symbol("nemo.collections.llm.fn.activation", "quick_gelu")
_LLAMA: Final = "nemo.collections.llm.gpt.model.llama"
_QWEN2: Final = "nemo.collections.llm.gpt.model.qwen2"
_QWEN2VL: Final = "nemo.collections.vlm.qwen2vl.model.base"
VISION_BASE: Final = "nemo.collections.vlm.vision.base"
_FLOAT32: Final = Symbol("torch", "float32")
_DTYPES: Final[Mapping[str, object]] = {"bf16": False, "fp16": False, "params_dtype": _FLOAT32}

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
CLIP_DEFAULTS: Final = {
    "HFCLIPVisionConfig": family(hidden_size=1024, add_class_token=False, pretrained_model_name_or_path=None)
}
PROJECTOR_DEFAULTS: Final = {
    "MultimodalProjectorConfig": family(
        _DTYPES,
        projector_type="mlp2x_gelu",
        input_size=1024,
        hidden_size=1024,
        ffn_hidden_size=1024,
        activation_func=GELU,
        bias=True,
    )
}


def _node(module: str, name: str, **arguments: Any) -> Node:
    return Node(Symbol(module, name), arguments)


def _projector(before: int, after: int, middle: int, **more: Any) -> Node:
    sizes = {"input_size": before, "hidden_size": after, "ffn_hidden_size": middle}
    return _node(VISION_BASE, "MultimodalProjectorConfig", **sizes, **more)


# --- LLaVA ---

_LLAVA = family(
    _DTYPES,
    language_transformer_config=None,
    vision_transformer_config=None,
    vision_projection_config=None,
    drop_vision_class_token=True,
    vision_feature_layer=-2,
)


def _llava(language: str, hidden: int) -> Mapping[str, object]:
    return family(
        _LLAVA,
        language_transformer_config=_node(_LLAMA, language),
        vision_transformer_config=_node(
            VISION_BASE,
            "HFCLIPVisionConfig",
            pretrained_model_name_or_path="openai/clip-vit-large-patch14-336",
        ),
        vision_projection_config=_projector(1024, hidden, hidden),
    )


LLAVA_DEFAULTS: Final = {
    "LlavaConfig": _LLAVA,
    "Llava15Config7B": _llava("Llama2Config7B", 4096),
    "Llava15Config13B": _llava("Llama2Config13B", 5120),
}

# --- Qwen2-VL and Qwen2.5-VL ---

_TOWER = family(
    _DTYPES,
    add_class_token=False,
    patch_dim=14,
    num_layers=32,
    num_attention_heads=16,
    add_bias_linear=True,
    add_qkv_bias=True,
    embed_dim=1280,
    hidden_size=1280,
    spatial_merge_size=2,
    temporal_patch_size=2,
    ffn_hidden_size=5120,
    gated_linear_unit=False,
    activation_func=QUICK_GELU,
    kv_channels=80,
    num_query_groups=16,
    normalization="LayerNorm",
    layernorm_epsilon=1e-6,
    init_method_std=0.02,
    model_version="qwen2-vl",
)
QWEN2_VL_TOWER: Final = {"Qwen2VLVisionConfig": _TOWER}
QWEN2_5_VL_TOWER: Final = {
    "Qwen25VLVisionConfig": family(
        _TOWER,
        ffn_hidden_size=3420,
        gated_linear_unit=True,
        activation_func=SILU,
        normalization="RMSNorm",
        fullatt_block_indexes=[7, 15, 23, 31],
        model_version="qwen25-vl",
    )
}
_QWEN_VL = family(
    _DTYPES,
    language_transformer_config=None,
    vision_transformer_config=None,
    vision_projection_config=None,
    drop_vision_class_token=False,
    vision_feature_layer=-2,
)


def _qwen_vl(language: Node, hidden: int, tower: Node, **projector: str) -> Mapping[str, object]:
    return family(
        _QWEN_VL,
        language_transformer_config=language,
        vision_transformer_config=tower,
        vision_projection_config=_projector(5120, hidden, 5120, **projector),
    )


def _qwen2_vl(name: str, hidden: int, **arguments: Any) -> Mapping[str, object]:
    tower = _node(_QWEN2VL, "Qwen2VLVisionConfig", num_layers=32, num_attention_heads=16)
    return _qwen_vl(_node(_QWEN2, name, **arguments), hidden, tower)


def _qwen2_5_vl(name: str, hidden: int, **tower: Any) -> Mapping[str, object]:
    vision = _node(_QWEN2VL, "Qwen25VLVisionConfig", num_layers=32, num_attention_heads=16, **tower)
    return _qwen_vl(_node(_QWEN2, name), hidden, vision, projector_type="mcore_mlp")


QWEN2_VL_DEFAULTS: Final = {
    "Qwen2VLConfig": _QWEN_VL,
    "Qwen2VLConfig2B": _qwen2_vl("Qwen2Config1P5B", 1536, share_embeddings_and_output_weights=True),
    "Qwen2VLConfig7B": _qwen2_vl("Qwen2Config7B", 3584),
    "Qwen2VLConfig72B": _qwen2_vl("Qwen2Config72B", 8192),
}
QWEN2_5_VL_DEFAULTS: Final = {
    "Qwen2VLConfig": _QWEN_VL,
    "Qwen25VLConfig3B": _qwen2_5_vl("Qwen25Config3B", 2048),
    "Qwen25VLConfig7B": _qwen2_5_vl("Qwen25Config7B", 3584),
    "Qwen25VLConfig32B": _qwen2_5_vl("Qwen25Config32B", 5120, ffn_hidden_size=3456),
    "Qwen25VLConfig72B": _qwen2_5_vl("Qwen25Config72B", 8192, ffn_hidden_size=3456),
}
