"""Old names for NeMo 2's config classes for vision-language models."""

from __future__ import annotations

from . import classes
from .clip import CLIP_MODELS, CLIP_SIZES

__all__ = ["CLIP_MODELS", "CLIP_SIZES"]

VISION_BASE = "nemo.collections.vlm.vision.base"
CLIP_DEFAULTS = classes.family("HFCLIPVisionConfig")
PROJECTOR_DEFAULTS = classes.family("MultimodalProjectorConfig")
LLAVA_DEFAULTS = classes.family("LlavaConfig")
QWEN2_VL_TOWER = classes.family("Qwen2VLVisionConfig")
QWEN2_5_VL_TOWER = classes.family("Qwen25VLVisionConfig")
_QWEN2_VL = "Qwen2VLConfig2B", "Qwen2VLConfig7B", "Qwen2VLConfig72B"
_QWEN2_5_VL = "Qwen25VLConfig3B", "Qwen25VLConfig7B", "Qwen25VLConfig32B", "Qwen25VLConfig72B"
QWEN2_VL_DEFAULTS = classes.family("Qwen2VLConfig", *_QWEN2_VL)
QWEN2_5_VL_DEFAULTS = classes.family("Qwen2VLConfig", *_QWEN2_5_VL)
