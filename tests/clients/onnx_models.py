"""Tiny decoders of every architecture that has an ONNX graph, written by transformers."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from . import models

WINDOW = 6
BASE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": models.VOCABULARY,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
ROPE = {"rope_type": "default", "rope_theta": 500.0}
WHOLE = {"rope_parameters": ROPE}
EPSILON = {"rms_norm_eps": 0.02}  # large enough to be felt


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **parameters}}


PARTIAL = rope("default", partial_rotary_factor=0.5)
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "head_dim": 32}

CORRECTED = {
    "moe_intermediate_size": 48,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.7,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 40,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}

#: name -> (config class of transformers, its arguments)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**WHOLE, **EPSILON}),
    "llama-tied-biases": (
        "LlamaConfig",
        {**WHOLE, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 24},
    ),
    "llama-linear": ("LlamaConfig", rope("linear", factor=4.0)),
    "llama-llama3": ("LlamaConfig", rope("llama3", factor=8.0, **LLAMA3)),
    "llama-yarn": (
        "LlamaConfig",
        rope("yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=4.0, beta_slow=0.5),
    ),
    "mistral": ("MistralConfig", {**WHOLE, **EPSILON, "sliding_window": WINDOW, "head_dim": 24}),
    "qwen2": ("Qwen2Config", {**WHOLE, **EPSILON}),
    "qwen3": ("Qwen3Config", {**WHOLE, **EPSILON, "head_dim": 24}),
    "gemma": ("GemmaConfig", {**WHOLE, **EPSILON, "head_dim": 32, "tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2Config",
        {
            **WHOLE,
            **EPSILON,
            "head_dim": 32,
            "tie_word_embeddings": True,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3_text": (
        "Gemma3TextConfig",
        {
            **EPSILON,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
            },
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "head_dim": 32,
            "tie_word_embeddings": True,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 20,
        },
    ),
    "phi3": ("Phi3Config", {**PARTIAL, **EPSILON, "sliding_window": WINDOW}),
    "nemotron": ("NemotronConfig", {**PARTIAL, "norm_eps": 0.02, "head_dim": 32}),
    "starcoder2": (
        "Starcoder2Config",
        {**WHOLE, "norm_epsilon": 0.02, "sliding_window": WINDOW, "tie_word_embeddings": True},
    ),
    "gpt2": ("GPT2Config", {"layer_norm_epsilon": 0.02, "tie_word_embeddings": True}),
    "gpt_bigcode": ("GPTBigCodeConfig", {"layer_norm_epsilon": 0.02, "tie_word_embeddings": True}),
    "gpt_bigcode-many-keys": ("GPTBigCodeConfig", {"multi_query": False, "tie_word_embeddings": True}),
    "gpt_neox": (
        "GPTNeoXConfig",
        {
            **rope("default", partial_rotary_factor=0.25),
            "layer_norm_eps": 0.02,
            "use_parallel_residual": False,
        },
    ),
    "mixtral": ("MixtralConfig", {**WHOLE, **EPSILON, "num_local_experts": 5, "sliding_window": None}),
    "qwen3_moe": ("Qwen3MoeConfig", {**WHOLE, **EPSILON, **EXPERTS, "norm_topk_prob": True}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {**WHOLE, **EPSILON, **EXPERTS, "head_dim": 16, "shared_expert_intermediate_size": 80},
    ),
    "gpt_oss": (
        "GptOssConfig",
        {
            **EPSILON,
            **rope("yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=4.0, beta_slow=0.5),
            "head_dim": 32,
            "sliding_window": WINDOW,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
        },
    ),
    "glm": ("GlmConfig", {**PARTIAL, **EPSILON, "head_dim": 32, "attention_bias": True}),
    "glm4": ("Glm4Config", {**PARTIAL, **EPSILON, "head_dim": 32, "attention_bias": True}),
    "ernie4_5": ("Ernie4_5Config", {**WHOLE, **EPSILON, "head_dim": 24, "tie_word_embeddings": True}),
    "smollm3": (
        "SmolLM3Config",
        {**WHOLE, **EPSILON, "no_rope_layers": [1, 0], "layer_types": ["full_attention"] * 2},
    ),
    "seed_oss": ("SeedOssConfig", {**WHOLE, **EPSILON, "head_dim": 24, "attention_bias": True}),
    "glm4_moe_lite": (
        "Glm4MoeLiteConfig",
        {**WHOLE, **EPSILON, **CORRECTED, **LATENT, "n_group": 1, "topk_group": 1, "q_lora_rank": 24},
    ),
    "glm4_moe": (
        "Glm4MoeConfig",
        {
            **PARTIAL,
            **EPSILON,
            **CORRECTED,
            "head_dim": 32,
            "num_hidden_layers": 3,
            "n_group": 1,
            "topk_group": 1,
            "use_qk_norm": True,
            "attention_bias": True,
        },
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            **EPSILON,
            **CORRECTED,
            **LATENT,
            **rope(
                "yarn",
                factor=4.0,
                original_max_position_embeddings=32,
                mscale=1.0,
                mscale_all_dim=0.7,
                beta_fast=4.0,
                beta_slow=0.5,
            ),
            "n_routed_experts": 8,
            "num_experts_per_tok": 4,
            "n_group": 4,
            "topk_group": 2,
            "q_lora_rank": 24,
        },
    ),
    "deepseek_v2": (
        "DeepseekV2Config",
        {
            **WHOLE,
            **CORRECTED,
            **LATENT,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "q_lora_rank": None,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
        },
    ),
    "llama4_text": (
        "Llama4TextConfig",
        {
            **WHOLE,
            **EPSILON,
            "head_dim": 32,
            "num_hidden_layers": 4,
            "intermediate_size_mlp": 80,
            "num_local_experts": 5,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 7,
            "attn_temperature_tuning": False,
            "no_rope_layers": [1, 1, 1, 0],
            "layer_types": [*["chunked_attention"] * 3, "full_attention"],
        },
    ),
    "qwen3_moe-unnormalized": ("Qwen3MoeConfig", {**WHOLE, **EXPERTS}),
}
GPT2_NAMES = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
#: cases whose attention onnxruntime's operator cannot express
ONE_FLAVOR = ("llama4_text",)
#: changes of config.json that must show, each by itself: what a graph leaves out cannot hide
CONTROLS: dict[str, list[dict[str, Any]]] = {
    "llama": [{"rms_norm_eps": 0.03}, {"rope_theta": 600.0}],
    "llama-linear": [{"rope_scaling": None}],
    "llama-llama3": [{"rope_scaling": None}],
    "llama-yarn": [{"rope_scaling": None}],
    "mistral": [{"sliding_window": WINDOW + 1}],
    "qwen3": [{"rms_norm_eps": 0.03}],
    "gemma2": [
        {"sliding_window": WINDOW + 1},
        {"query_pre_attn_scalar": 24},
        {"attn_logit_softcapping": 2.5},
        {"final_logit_softcapping": 3.5},
    ],
    "gemma3_text": [{"sliding_window": WINDOW + 1}, {"rope_local_base_freq": 60.0}, {"rope_theta": 6000.0}],
    "phi3": [{"sliding_window": WINDOW + 1}, {"partial_rotary_factor": 0.75}],
    "nemotron": [{"partial_rotary_factor": 1.0}, {"norm_eps": 0.03}],
    "starcoder2": [{"sliding_window": WINDOW + 1}, {"norm_epsilon": 0.03}, {"hidden_act": "gelu"}],
    "gpt2": [{"layer_norm_epsilon": 0.03}, {"activation_function": "gelu"}],
    "gpt_neox": [{"partial_rotary_factor": 0.5}, {"layer_norm_eps": 0.03}],
    "gpt_oss": [{"sliding_window": WINDOW + 1}, {"swiglu_limit": 1.0}, {"rms_norm_eps": 0.03}],
    "qwen2_moe": [{"norm_topk_prob": True}],
    "mixtral": [{"num_experts_per_tok": 3}],
    "glm": [{"partial_rotary_factor": 1.0}],
    "glm4": [{"rms_norm_eps": 0.03}],
    "ernie4_5": [{"rope_theta": 600.0}],
    "smollm3": [{"no_rope_layers": [0, 1]}],
    "glm4_moe": [{"routed_scaling_factor": 1.8}, {"num_experts_per_tok": 3}, {"partial_rotary_factor": 1.0}],
    "deepseek_v3": [
        {"routed_scaling_factor": 1.8},
        {"n_group": 1, "topk_group": 1},
        {"rope_scaling": None},
        {"rope_theta": 600.0},
    ],
    "deepseek_v2": [{"topk_method": "greedy"}],
    "llama4_text": [{"attention_chunk_size": 6}, {"use_qk_norm": False}, {"rope_theta": 600.0}],
    "qwen3_moe": [{"norm_topk_prob": False}],
}


def build(folder: Path, case: str, dtype: str = "float32", shard: str = "5GB") -> Path:
    """A model whose activations and logits are of order 1, and a tokenizer."""
    import torch
    import transformers

    name, changes = CASES[case]
    arguments = deepcopy({**BASE, **changes})
    if name.startswith("GPT"):
        del arguments["num_key_value_heads"]
    if name in ("GPT2Config", "GPTBigCodeConfig"):
        arguments = {GPT2_NAMES.get(key, key): value for key, value in arguments.items()}
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**arguments))
    generator = torch.Generator().manual_seed(3)
    one_stored = not ("gemma" in name.lower() or name == "NemotronConfig")
    with torch.no_grad():
        for key, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                noise = 0.3 * noise + (0 if key.endswith("bias") or not one_stored else 1)
            elif "embed" in key or "wte" in key or "wpe" in key:
                noise *= 0.5
            else:
                noise *= 1.5 / weight.shape[-1] ** 0.5
            weight.copy_(noise)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    models.save_bpe(folder)
    return folder
