"""Well-known architectures that have no table, and why: nothing but a message to those who ask.

Checked against NeMo 2.5.3 (megatron-core 0.14), megatron-core 0.16.1 and Megatron-Bridge of August 2026.
"""

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


# megatron/core/transformer/transformer_layer.py, ``forward``; nothing in nemo/collections/llm replaces it.
_SIDE_BY_SIDE: Final = (
    "its layers run attention and MLP side by side, and megatron-core's TransformerLayer, which NeMo 2 "
    "builds for every decoder, runs one after the other"
)
_REFINED_WEB: Final = (
    "this is how config.json of the first Falcons spelled it; that of today's files says model_type falcon, "
    "which .nemo archives hold"
)
# gemma2_layer_spec and gemma3_layer_spec in nemo/collections/llm/gpt/model; Megatron-Bridge has no OLMo 2.
_NORMS_AFTER: Final = (
    "its layers normalise only what attention and MLP give, and those layers of NeMo 2 that do so (Gemma 2, "
    "Gemma 3) also normalise what they take"
)
_NORMS_OF_ALL_HEADS: Final = _NORMS_AFTER + "; its norms of q and k span all heads, NeMo 2's only one"
# megatron/bridge/models/exaone/exaone4/exaone4_provider.py, megatron/core/transformer/attention.py (0.16.1)
_EXAONE4: Final = (
    _NORMS_AFTER
    + ". Megatron-Bridge has layers for it, but megatron-core 0.16 builds them without its norms "
    "of q and k"
)
_T5_POSITIONS: Final = (
    "each of its layers has relative positions of its own, and megatron-core's T5 has one for all of a stack"
)
# megatron/core/models/gpt/gpt_model.py: learned_absolute, rope, mrope, yarn or none
_ALIBI: Final = "its positions are ALiBi, which megatron-core's GPTModel does not have"
_MULTIPLIERS: Final = (
    "it multiplies embeddings, residuals and logits by factors (embedding_multiplier, residual_multiplier, "
    "logits_scaling) for which NeMo 2 and megatron-core have no fields"
)
# megatron/core/ssm/gated_delta_net.py, ``sharded_state_dict``
_DELTA_NET: Final = (
    "NeMo 2 has no gated delta nets, and megatron-core 0.16 stores their projections one by one, where "
    "Hugging Face's rows alternate between q, k, v and z from head to head, which no rule here can say"
)
_TURNED_FIRST: Final = (
    "it normalises q and k after the rotary embedding, and megatron-core normalises them before"
)
_SCALED_QUERIES: Final = (
    "it scales queries by their positions (llama_4_scaling_beta), for which NeMo 2 and megatron-core have no "
    "field"
)
_PLAIN_NORMS: Final = (
    "its norms have no weights, for which Megatron would need tensors of ones that no rule here makes"
)
# megatron/core/transformer/attention.py (0.16.1), ``SelfAttention``: a weight of kv_channels elements
_ALL_HEADS_AT_ONCE: Final = (
    "its norms of q and k span all heads, and those of NeMo 2 and megatron-core one head each; only "
    "Megatron-Bridge has an attention for it"
)
# megatron/core/transformer/transformer_config.py (0.16.1): "only supports sigmoid"
_SOFTMAX_CORRECTED: Final = (
    "its router chooses by softmax plus a correction, which megatron-core has with sigmoid only "
    "(moe_router_enable_expert_bias); Megatron-Bridge takes sigmoid instead, which computes something else"
)
_INDEXED: Final = "its attention reads only the tokens that an indexer picks, which NeMo 2 does not have"
_PHI_MOE: Final = (
    "its router picks experts one after another (sparsemixer), and megatron-core's picks them at once"
)
_JETMOE: Final = "its attention is a mixture of experts, too, which NeMo 2 and megatron-core do not have"
_ZERO_EXPERTS: Final = (
    "some of its experts pass tokens on as they are (zero_expert_num), which megatron-core's cannot"
)
NO_COUNTERPART: Final[Mapping[str, str]] = {
    **VISION_LANGUAGE,
    "RefinedWeb": _REFINED_WEB,
    "RefinedWebModel": _REFINED_WEB,
    "gptj": _SIDE_BY_SIDE,
    "phi": _SIDE_BY_SIDE,
    "cohere": _SIDE_BY_SIDE,
    "cohere2": _SIDE_BY_SIDE,
    "codegen": _SIDE_BY_SIDE,
    "umt5": _T5_POSITIONS,
    "bloom": _ALIBI,
    "mpt": _ALIBI,
    "olmo": _PLAIN_NORMS,
    "olmo2": _NORMS_OF_ALL_HEADS,
    "olmo3": _NORMS_OF_ALL_HEADS,
    "exaone4": _EXAONE4,
    "olmoe": _ALL_HEADS_AT_ONCE,
    "minimax_m2": _ALL_HEADS_AT_ONCE,
    "ernie4_5_moe": _SOFTMAX_CORRECTED,
    "deepseek_v32": _INDEXED,
    "glm_moe_dsa": _INDEXED,
    "phimoe": _PHI_MOE,
    "jetmoe": _JETMOE,
    "longcat_flash": _ZERO_EXPERTS,
    "granitemoe": _MULTIPLIERS,
    "hunyuan_v1_moe": _TURNED_FIRST,
    "granite": _MULTIPLIERS,
    "qwen3_next": _DELTA_NET,
    "hunyuan_v1_dense": _TURNED_FIRST,
    "ministral3": _SCALED_QUERIES,
}
