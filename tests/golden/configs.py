"""Tiny config.json files of every registered architecture, and of variants that take other paths.

The key of a config is the name of its case. What a registered architecture is called comes first in it, so that
a case can be found: ``llama``, ``llama, tied``. :func:`missing` tells of architectures without a case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nemoconv.mappings import architectures, described

Config = Mapping[str, Any]

DENSE: Config = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 67,
    "max_position_embeddings": 128,
    "rope_theta": 50000.0,
}
PLAIN: Config = {key: DENSE[key] for key in DENSE if key not in ("num_key_value_heads", "rope_theta")}
GPT: Config = {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 67, "n_positions": 64}
EXPERTS: Config = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LLAMA3: Config = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN: Config = {
    "type": "yarn",
    "factor": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}
DEEPSEEK: Config = {
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "vocab_size": 67,
    "max_position_embeddings": 163840,
    "rope_theta": 10000,
}
DEEPSEEK_V2: Config = {
    **{key: value for key, value in DEEPSEEK.items() if key != "num_nextn_predict_layers"},
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "aux_loss_alpha": 0.001,
    "seq_aux": True,
    "routed_scaling_factor": 1.0,
    "q_lora_rank": None,
    "max_position_embeddings": 1024,
}
GLM_LITE: Config = {**DEEPSEEK, "n_group": 1, "topk_group": 1, "rope_theta": 1000000, "rope_scaling": None}
GLM4_MOE: Config = {
    **DENSE,
    "num_hidden_layers": 4,
    "moe_intermediate_size": 24,
    "head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
    "use_qk_norm": True,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
}
GPT_OSS: Config = {
    **DENSE,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "experts_per_token": 2,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "attention_bias": True,
    "initial_context_length": 4096,
    "swiglu_limit": 7.0,
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
}
LLAMA4: Config = {
    **DENSE,
    "num_hidden_layers": 4,
    "intermediate_size": 24,
    "intermediate_size_mlp": 48,
    "head_dim": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 2,
    "no_rope_layers": [1, 1, 1, 0],
    "attn_temperature_tuning": False,
    "attention_chunk_size": 8192,
    "vocab_size": 66,
}
T5: Config = {
    "num_layers": 2,
    "d_model": 32,
    "d_ff": 48,
    "d_kv": 16,
    "num_heads": 4,
    "vocab_size": 256,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
BIDIREC: Config = {**DENSE, "tie_word_embeddings": True, "pooling": "avg", "rope_scaling": LLAMA3}
FALCON: Config = {
    "num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 40,
    "max_position_embeddings": 64,
}  # fmt: skip
FALCON_NEW: Config = {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}
_VISION_TEXT: Config = {
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "vocab_size": 130,
    "max_position_embeddings": 512,
    "rms_norm_eps": 3e-5,
}
LLAVA: Config = {
    "ignore_index": -100,
    "image_token_index": 5,
    "projector_hidden_act": "gelu",
    "text_config": {
        **_VISION_TEXT,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "torch_dtype": "float16",
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 24,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
QWEN2_5_VL: Config = {
    **_VISION_TEXT,
    "hidden_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "image_token_id": 5,
    "video_token_id": 6,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "use_sliding_window": False,
    "sliding_window": 32768,
    "max_window_layers": 2,
    "tie_word_embeddings": False,
    "vision_config": {
        "depth": 3,
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_heads": 2,
        "in_chans": 3,
        "out_hidden_size": 256,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "spatial_patch_size": 4,
        "window_size": 112,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
}
QWEN2_VL: Config = {
    **QWEN2_5_VL,
    "vision_config": {
        "depth": 3,
        "embed_dim": 32,
        "mlp_ratio": 2,
        "num_heads": 2,
        "in_chans": 3,
        "hidden_size": 256,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "spatial_patch_size": 4,
        "temporal_patch_size": 2,
    },
}
NEMOTRON_H: Config = {
    "hybrid_override_pattern": "M-*M-*",
    "num_hidden_layers": 6,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_head_dim": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 6,
    "n_groups": 4,
    "ssm_state_size": 10,
    "vocab_size": 66,
}
MAMBA2: Config = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_heads": 8,
    "head_dim": 8,
    "state_size": 16,
    "n_groups": 1,
    "expand": 2,
    "tie_word_embeddings": True,
    "vocab_size": 66,
}
CHATGLM: Config = {
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "kv_channels": 16,
    "padded_vocab_size": 67,
    "add_qkv_bias": True,
    "rope_ratio": 500,
}


def _block(heads: int | str | None = 2, factor: float | str | None = 2.0) -> dict[str, Any]:
    """A layer of a nemotron-nas: ``heads`` in a group, ``factor`` of the MLP; None: not there; "linear"."""
    return {
        "attention": {
            "n_heads_in_group": heads if isinstance(heads, int) else None,
            "no_op": heads is None,
            "replace_with_linear": heads == "linear",
            "num_sink_tokens": None,
            "sparsify": None,
            "unshifted_sink": False,
            "use_prefill_window_in_sink_attention": False,
            "window_length": None,
        },
        "ffn": {
            "ffn_mult": factor if isinstance(factor, float) else None,
            "no_op": factor is None,
            "replace_with_linear": factor == "linear",
            "sparsify": None,
        },
    }


_BLOCKS = [
    _block(),
    _block(None, 16.0),
    _block(1, None),
    _block("linear", 2.0),
    _block(2, "linear"),
    _block(None, None),
]
NAS: Config = {
    "auto_map": {"AutoModelForCausalLM": "nvidia/some--modeling_decilm.DeciLMForCausalLM"},
    "num_hidden_layers": len(_BLOCKS),
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": None,
    "intermediate_size": None,
    "vocab_size": 67,
    "rope_theta": 500000.0,
    "rope_scaling": LLAMA3,
    "block_configs": _BLOCKS,
}
_RERANKER = "LlamaBidirectionalForSequenceClassification"

#: case -> (class, config.json without model_type and class); the case begins with the model_type
MODELS: dict[str, tuple[str, Config]] = {
    "baichuan": ("BaichuanForCausalLM", PLAIN),
    "bert": ("BertModel", {**PLAIN, "type_vocab_size": 2}),
    "bert:BertForMaskedLM": ("BertForMaskedLM", {**PLAIN, "type_vocab_size": 2}),
    "bert:BertForPreTraining": ("BertForPreTraining", {**PLAIN, "type_vocab_size": 2}),
    "chatglm": ("ChatGLMModel", CHATGLM),
    "deepseek_v2": ("DeepseekV2ForCausalLM", DEEPSEEK_V2),
    "deepseek_v3": ("DeepseekV3ForCausalLM", {**DEEPSEEK, "ep_size": 1, "rope_scaling": YARN}),
    "ernie4_5": ("Ernie4_5ForCausalLM", {**DENSE, "head_dim": 8}),
    "falcon": ("FalconForCausalLM", FALCON_NEW),
    "gemma": ("GemmaForCausalLM", {**DENSE, "head_dim": 16}),
    "gemma2": ("Gemma2ForCausalLM", {**DENSE, "head_dim": 16, "sliding_window": 20}),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {**DENSE, "head_dim": 16, "sliding_window": 20, "sliding_window_pattern": 2},
    ),
    "glm": ("GlmForCausalLM", {**DENSE, "head_dim": 16}),
    "glm4": ("Glm4ForCausalLM", {**DENSE, "head_dim": 8, "rms_norm_eps": 1e-5}),
    "glm4_moe": ("Glm4MoeForCausalLM", GLM4_MOE),
    "glm4_moe_lite": ("Glm4MoeLiteForCausalLM", GLM_LITE),
    "gpt2": ("GPT2LMHeadModel", GPT),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", GPT),
    "gpt_neox": ("GPTNeoXForCausalLM", {**PLAIN, "use_parallel_residual": False, "rotary_pct": 0.5}),
    "gpt_oss": ("GptOssForCausalLM", GPT_OSS),
    "kimi_k2": (
        "DeepseekV3ForCausalLM",
        {
            **DEEPSEEK,
            "n_group": 1,
            "topk_group": 1,
            "rope_theta": 50000.0,
            "rope_scaling": {**YARN, "beta_fast": 1.0, "factor": 32.0},
            "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"},
        },
    ),
    "llama": ("LlamaForCausalLM", {**DENSE, "num_hidden_layers": 4}),
    "llama4_text": ("Llama4ForCausalLM", LLAMA4),
    "llama_bidirec": ("LlamaBidirectionalModel", BIDIREC),
    f"llama_bidirec:{_RERANKER}": (_RERANKER, {**BIDIREC, "pooling": "last", "temperature": 0.5}),
    "llava": ("LlavaForConditionalGeneration", LLAVA),
    "mamba2": ("Mamba2ForCausalLM", MAMBA2),
    "megatron-bert": ("MegatronBertModel", {**PLAIN, "type_vocab_size": 2}),
    "megatron-bert:MegatronBertForPreTraining": (
        "MegatronBertForPreTraining",
        {**PLAIN, "type_vocab_size": 2},
    ),
    "mimo": ("MiMoForCausalLM", {**DENSE, "num_nextn_predict_layers": 1, "attention_bias": True}),
    "mistral": ("MistralForCausalLM", {**DENSE, "sliding_window": 20}),
    "mixtral": ("MixtralForCausalLM", {**DENSE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "mt5": ("MT5ForConditionalGeneration", T5),
    "nemotron": ("NemotronForCausalLM", {**DENSE, "head_dim": 16}),
    "nemotron-nas": ("DeciLMForCausalLM", NAS),
    "nemotron_h": ("NemotronHForCausalLM", NEMOTRON_H),
    "phi3": ("Phi3ForCausalLM", {**DENSE, "pad_token_id": 0}),
    "qwen2": ("Qwen2ForCausalLM", DENSE),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", QWEN2_5_VL),
    "qwen2_moe": ("Qwen2MoeForCausalLM", {**DENSE, **EXPERTS, "shared_expert_intermediate_size": 40}),
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", QWEN2_VL),
    "qwen3": ("Qwen3ForCausalLM", {**DENSE, "head_dim": 8}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**DENSE, **EXPERTS, "head_dim": 16}),
    "seed_oss": ("SeedOssForCausalLM", {**DENSE, "head_dim": 8}),
    "smollm3": ("SmolLM3ForCausalLM", {**DENSE, "num_hidden_layers": 4, "tie_word_embeddings": True}),
    "stablelm": ("StableLmForCausalLM", DENSE),
    "starcoder2": ("Starcoder2ForCausalLM", {**DENSE, "sliding_window": 20}),
    "t5": ("T5ForConditionalGeneration", T5),
}
#: what has no config here is a Llama by its own name
MODELS |= {
    name: (known.hf_class, DENSE)
    for name in architectures()
    if name not in MODELS and (known := described(name)) is not None and known.follows
}
#: the same architectures on other paths
VARIANTS: dict[str, tuple[str, Config]] = {
    name: (MODELS[name.split(",")[0]][0], {**MODELS[name.split(",")[0]][1], **changes})
    for name, changes in {
        "llama, tied": {"tie_word_embeddings": True},
        "llama, float32": {"torch_dtype": "float32"},
        "llama, float16 mha": {"torch_dtype": "float16", "num_key_value_heads": 4},
        "llama, mqa of wide heads": {"num_key_value_heads": 1, "head_dim": 24},
        "llama, biases": {"attention_bias": True, "mlp_bias": True},
        "llama, attention bias": {"attention_bias": True},
        "llama, mlp bias": {"mlp_bias": True},
        "llama, llama3 rope": {"rope_scaling": LLAMA3},
        "llama, linear rope": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        "llama, rope of transformers 5": {"rope_parameters": {**LLAMA3, "rope_theta": 50000.0}},
        "baichuan, float32": {"torch_dtype": "float32"},
        "bert:BertForPreTraining, float32": {"torch_dtype": "float32"},
        "deepseek_v2, low rank, tied": {"q_lora_rank": 12, "tie_word_embeddings": True},
        "deepseek_v3, no mtp": {"num_nextn_predict_layers": 0},
        "deepseek_v3, full queries": {"q_lora_rank": None},
        "falcon, 7b": {"new_decoder_architecture": False, "num_kv_heads": None},
        "falcon, one norm": {"num_ln_in_parallel_attn": 1, "tie_word_embeddings": False},
        "falcon, one after the other": {
            "new_decoder_architecture": False, "num_kv_heads": None, "multi_query": False,
            "parallel_attn": False, "bias": True,
        },
        "gemma, float32": {"torch_dtype": "float32"},
        "glm4_moe, no norms": {"use_qk_norm": False, "attention_bias": False, "n_shared_experts": 2},
        "glm4_moe, no mtp": {"num_nextn_predict_layers": 0},
        "glm4_moe_lite, no mtp": {"num_nextn_predict_layers": 0},
        "gpt_oss, unscaled": {"rope_scaling": None, "rope_parameters": {"rope_type": "default"}},
        "gpt2, float32": {"torch_dtype": "float32"},
        "llama4_text, every layer": {
            "interleave_moe_layer_step": 1, "no_rope_layers": [], "no_rope_layer_interval": 2,
        },
        "mimo, no mtp": {"num_nextn_predict_layers": 0},
        "mimo, two mtp": {"num_nextn_predict_layers": 2, "head_dim": 16},
        "mixtral, tied": {"tie_word_embeddings": True},
        "nemotron-nas, tied": {"tie_word_embeddings": True},
        "nemotron_h, float32": {"torch_dtype": "float32"},
        "qwen2, tied": {"tie_word_embeddings": True},
        "qwen2_moe, no bias, tied": {"qkv_bias": False, "tie_word_embeddings": True},
        "qwen3_moe, tied, float32": {"tie_word_embeddings": True, "torch_dtype": "float32"},
        "t5, silu": {"feed_forward_proj": "gated-silu"},
    }.items()
}  # fmt: skip


def config(case: str) -> dict[str, Any]:
    """The config.json of a case."""
    hf_class, given = {**MODELS, **VARIANTS}[case]
    kind = case.split(",")[0].split(":")[0]
    return {"architectures": [hf_class], "model_type": kind, "torch_dtype": "bfloat16", **given}


def missing(registered: Iterable[str], elsewhere: Iterable[str]) -> list[str]:
    """Registered architectures of which there is no case, neither here nor ``elsewhere``."""
    return sorted(set(registered) - set(MODELS) - set(elsewhere))
