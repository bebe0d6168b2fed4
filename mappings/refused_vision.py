"""Well-known vision-language models that have no table, and why. Checked against NeMo 2.5.3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: of image and text (and sound), of which NeMo 2.5 has no Megatron model: nemo/collections/vlm has LLaVA,
#: Qwen2-VL, Qwen2.5-VL and those named below
_UNKNOWN_TO_NEMO: Final = tuple(
    """
    aya_vision blip-2 chameleon deepseek_vl deepseek_vl_v2 emu3 florence2 fuyu gemma3n glm4v glm4v_moe
    got_ocr2 idefics idefics2 idefics3 instructblip instructblipvideo janus kimi_vl kosmos-2 llava_next_video
    llava_onevision minicpmv mistral3 molmo ovis paligemma perception_lm phi3_v phi4_multimodal phi4mm pixtral
    qwen2_5_omni qwen3_omni_moe qwen3_vl qwen3_vl_moe smolvlm video_llava vipllava
    """.split()
)
_NO_VISION_MODEL: Final = (
    "NeMo 2 has no Megatron model of it, so nothing says what its tensors would be called there"
)
_INTERNVL: Final = "NeMo 2 has its vision tower (InternViT) alone, and no model that joins it to a decoder"

VISION_LANGUAGE: Final[Mapping[str, str]] = {
    **dict.fromkeys(_UNKNOWN_TO_NEMO, _NO_VISION_MODEL),
    "internvl": _INTERNVL,
    "internvl_chat": _INTERNVL,
    "llava_next": (
        "NeMo 2 packs its images by the grid and the tower's sizes that transformers takes by default, "
        "whatever the config says (pack_image_features), and no table here describes it yet"
    ),
    "mllama": (
        "NeMo 2 keeps its cross-attention layers and the second encoder of its tower as stacks of their own "
        "(xattn_layers, global_transformer), and part of its input embedding under another name, which no "
        "table here can say"
    ),
    "gemma3": (
        "NeMo 2 has its vision tower and projector in the published sizes alone (Gemma3VLVisionConfig), "
        "which no table here describes; its decoder alone is 'gemma3_text'"
    ),
    "llama4": (
        "NeMo 2's vision tower of it (unfolding convolution, pixel shuffle, adapter) has no table "
        "here; its decoder alone is 'llama4_text'"
    ),
}
