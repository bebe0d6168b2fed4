"""The keys that config.json has in much-used text models, with small numbers in place of the sizes.

The keys are those of the files as they were published, written down from memory in November 2026 and held against
the config classes and documentation of transformers 5.23; values that are no sizes are the published ones.
"""

from __future__ import annotations

from typing import Any, Final

Config = dict[str, Any]

SMALL: Final[Config] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 256,
}
USUAL: Final[Config] = {
    **SMALL,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 2048,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0",
    "use_cache": True,
}
THETA: Final[Config] = {**USUAL, "attention_dropout": 0.0, "rope_theta": 10000.0}
LLAMA: Final[Config] = {**USUAL, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
LLAMA3_ROPE: Final[Config] = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LLAMA31: Final[Config] = {
    **LLAMA,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "eos_token_id": [2, 3, 4],
    "mlp_bias": False,
    "pretraining_tp": 1,
    "rope_scaling": LLAMA3_ROPE,
    "rope_theta": 500000.0,
}
MISTRAL: Final[Config] = {**THETA, "model_type": "mistral", "architectures": ["MistralForCausalLM"]}
QWEN2: Final[Config] = {
    **THETA,
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "max_window_layers": 2,
    "sliding_window": 4096,
    "use_sliding_window": False,
}
QWEN3: Final[Config] = {
    **QWEN2,
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 32,
    "rope_scaling": None,
    "sliding_window": None,
}
EXPERTS: Final[Config] = {
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}
QWEN3_MOE: Final[Config] = {
    **QWEN3,
    **EXPERTS,
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "mlp_only_layers": [],
}
GPT2: Final[Config] = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 5,
    "embd_pdrop": 0.1,
    "eos_token_id": 5,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 64,
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 64,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 256,
}
BERT: Final[Config] = {
    **SMALL,
    "architectures": ["BertForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 64,
    "model_type": "bert",
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "transformers_version": "4.6.0.dev0",
    "type_vocab_size": 2,
    "use_cache": True,
}
POOLER: Final[Config] = {
    "directionality": "bidi",
    "pooler_fc_size": 768,
    "pooler_num_attention_heads": 12,
    "pooler_num_fc_layers": 3,
    "pooler_size_per_head": 128,
    "pooler_type": "first_token_transform",
}
T5: Final[Config] = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 96,
    "d_kv": 16,
    "d_model": 64,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_heads": 4,
    "num_layers": 2,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "vocab_size": 256,
}
DEEPSEEK_V3: Final[Config] = {
    **THETA,
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "aux_loss_alpha": 0.001,
    "ep_size": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "moe_intermediate_size": 32,
    "moe_layer_freq": 1,
    "n_group": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 0,
    "pretraining_tp": 1,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "rope_scaling": None,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "v_head_dim": 16,
}
PHI3: Final[Config] = {
    **THETA,
    "model_type": "phi3",
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "embd_pdrop": 0.0,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 0,
    "resid_pdrop": 0.0,
    "rope_scaling": None,
    "sliding_window": 2047,
}
GLM4_MOE: Final[Config] = {
    **THETA,
    "model_type": "glm4_moe",
    "architectures": ["Glm4MoeForCausalLM"],
    "attention_bias": True,
    "first_k_dense_replace": 1,
    "head_dim": 16,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts_per_tok": 2,
    "num_nextn_predict_layers": 0,
    "pad_token_id": 0,
    "partial_rotary_factor": 0.5,
    "rope_scaling": None,
    "routed_scaling_factor": 1.0,
    "topk_group": 1,
    "use_qk_norm": False,
}
NEMOTRON_H: Final[Config] = {
    **{key: value for key, value in USUAL.items() if key != "hidden_act"},
    "model_type": "nemotron_h",
    "architectures": ["NemotronHForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_head_dim": 16,
    "auto_map": {"AutoModelForCausalLM": "modeling_nemotron_h.NemotronHForCausalLM"},
    "chunk_size": 128,
    "conv_kernel": 4,
    "expand": 2,
    "head_dim": 16,
    "hidden_dropout": 0.0,
    "hybrid_override_pattern": "M-*-",
    "layer_norm_epsilon": 1e-05,
    "mamba_head_dim": 16,
    "mamba_hidden_act": "silu",
    "mamba_num_heads": 8,
    "mamba_proj_bias": False,
    "mlp_bias": False,
    "mlp_hidden_act": "relu2",
    "n_groups": 2,
    "num_hidden_layers": 4,
    "num_logits_to_keep": 1,
    "rescale_prenorm_residual": True,
    "residual_in_fp32": False,
    "ssm_state_size": 16,
    "time_step_floor": 0.0001,
    "time_step_limit": [0.0, float("inf")],  # bare in the published file
    "time_step_max": 0.1,
    "time_step_min": 0.001,
    "time_step_rank": 256,
    "use_bias": False,
    "use_conv_bias": True,
    "use_mamba_kernels": True,
}
MAMBA2: Final[Config] = {
    "architectures": ["Mamba2ForCausalLM"],
    "bos_token_id": 0,
    "chunk_size": 16,
    "conv_kernel": 4,
    "eos_token_id": 0,
    "expand": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.1,
    "layer_norm_epsilon": 1e-05,
    "model_type": "mamba2",
    "n_groups": 1,
    "norm_before_gate": True,
    "num_heads": 8,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "rescale_prenorm_residual": False,
    "residual_in_fp32": True,
    "rms_norm": True,
    "state_size": 16,
    "tie_word_embeddings": True,
    "time_step_floor": 0.0001,
    "time_step_max": 0.1,
    "time_step_min": 0.001,
    "time_step_rank": 16,
    "torch_dtype": "float32",
    "use_bias": False,
    "use_cache": True,
    "use_conv_bias": True,
    "vocab_size": 256,
}
GPT_NEOX: Final[Config] = {
    **SMALL,
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 64,
    "model_type": "gpt_neox",
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
}


def of(base: Config, model_type: str = "", hf_class: str = "", **changes: Any) -> Config:
    """``base`` as another class's; a key with the value ... is left out."""
    named = {"model_type": model_type, "architectures": [hf_class]} if model_type else {}
    return {key: value for key, value in {**base, **named, **changes}.items() if value is not ...}


#: model -> config.json, for those that are converted with transformers' logits
CONVERTED: Final[dict[str, Config]] = {
    "meta-llama/Llama-2-7b-hf": of(LLAMA, _name_or_path="x", pretraining_tp=1, rope_scaling=None),
    "meta-llama/Llama-3.1-8B": LLAMA31,
    "meta-llama/Llama-3.2-1B": of(LLAMA31, head_dim=16, tie_word_embeddings=True),
    "huggyllama/llama-7b": of(LLAMA, max_sequence_length=2048, pad_token_id=0, num_key_value_heads=...),
    "decapoda-research/llama-7b-hf": of(
        LLAMA, "llama", "LLaMAForCausalLM", max_sequence_length=2048, pad_token_id=0
    ),
    "lmsys/vicuna-7b-v1.5": of(LLAMA, _name_or_path="vicuna-7b-v1.5", pad_token_id=0, pretraining_tp=1),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": of(LLAMA, attention_bias=False, rope_scaling=None, rope_theta=1e4),
    "HuggingFaceTB/SmolLM2-135M": of(
        LLAMA31, is_llama_config=True, rope_interleaved=False, rope_scaling=None, tie_word_embeddings=True,
        **{"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}},
    ),
    "01-ai/Yi-6B": of(LLAMA, pad_token_id=0, rope_theta=5000000.0),
    "deepseek-ai/deepseek-coder-6.7b-base": of(
        LLAMA, pretraining_tp=1, rope_scaling={"factor": 4.0, "type": "linear"}, rope_theta=100000
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": LLAMA31,
    "mistralai/Mistral-7B-v0.1": of(MISTRAL, sliding_window=4096, attention_dropout=...),
    "mistralai/Mistral-7B-Instruct-v0.3": of(MISTRAL, sliding_window=None),
    "mistralai/Mistral-Nemo-Base-2407": of(MISTRAL, head_dim=32, sliding_window=None),
    "mistralai/Mixtral-8x7B-v0.1": of(
        THETA, "mixtral", "MixtralForCausalLM", num_experts_per_tok=2, num_local_experts=4,
        output_router_logits=False, router_aux_loss_coef=0.02, sliding_window=None,
    ),
    "Qwen/Qwen2.5-0.5B-Instruct": of(QWEN2, tie_word_embeddings=True),
    "Qwen/Qwen2.5-7B": of(QWEN2, use_mrope=False),
    "Qwen/QwQ-32B": of(QWEN2, pad_token_id=3),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": of(QWEN2, use_mrope=False),
    "Qwen/Qwen1.5-MoE-A2.7B": of(
        {**QWEN2, **EXPERTS}, "qwen2_moe", "Qwen2MoeForCausalLM", norm_topk_prob=False,
        shared_expert_intermediate_size=48,
    ),
    "Qwen/Qwen3-0.6B": of(QWEN3, tie_word_embeddings=True),
    "Qwen/Qwen3-Embedding-0.6B": of(QWEN3, tie_word_embeddings=True),
    "Qwen/Qwen3-30B-A3B": QWEN3_MOE,
    "Qwen/Qwen3-Coder-30B-A3B-Instruct": of(
        QWEN3_MOE, qkv_bias=False, shared_expert_intermediate_size=0, use_qk_norm=True
    ),
    "google/gemma-2b": of(
        THETA, "gemma", "GemmaForCausalLM", attention_bias=False, head_dim=32, hidden_act="gelu",
        hidden_activation=None, pad_token_id=0, rope_scaling=None, tie_word_embeddings=True,
    ),
    "google/gemma-2-2b": of(
        THETA, "gemma2", "Gemma2ForCausalLM", attention_bias=False, attn_logit_softcapping=50.0,
        cache_implementation="hybrid", final_logit_softcapping=30.0, head_dim=32,
        hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh", pad_token_id=0,
        query_pre_attn_scalar=32, sliding_window=4096, tie_word_embeddings=True,
    ),
    "google/gemma-3-1b-it": of(
        THETA, "gemma3_text", "Gemma3ForCausalLM", attention_bias=False, attn_logit_softcapping=None,
        cache_implementation="hybrid", final_logit_softcapping=None, head_dim=32, hidden_act=...,
        hidden_activation="gelu_pytorch_tanh", pad_token_id=0, query_pre_attn_scalar=32,
        rope_local_base_freq=10000, rope_scaling=None, rope_theta=1000000, sliding_window=512,
        sliding_window_pattern=6, tie_word_embeddings=True, num_hidden_layers=6,
    ),
    "microsoft/phi-4": of(PHI3, sliding_window=None, rope_theta=250000),
    "microsoft/Phi-3-mini-4k-instruct": of(PHI3, auto_map={"AutoConfig": "configuration_phi3.Phi3Config"}),
    "openai-community/gpt2": GPT2,
    "distilbert/distilgpt2": of(GPT2, _num_labels=1, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}),
    "microsoft/DialoGPT-medium": of(GPT2, task_specific_params={"conversational": {"max_length": 1000}}),
    "bigcode/starcoder2-3b": of(
        USUAL, "starcoder2", "Starcoder2ForCausalLM", attention_dropout=0.1,
        attention_softmax_in_fp32=True, embedding_dropout=0.1, hidden_act="gelu_pytorch_tanh",
        layer_norm_epsilon=1e-05, mlp_type="default", norm_epsilon=1e-05, norm_type="layer_norm",
        residual_dropout=0.1, rope_theta=999999.4, scale_attention_softmax_in_fp32=True,
        scale_attn_weights=True, sliding_window=4096, use_bias=True, rms_norm_eps=...,
        tie_word_embeddings=...,
    ),
    "stabilityai/stablelm-2-1_6b": of(
        USUAL, "stablelm", "StableLmForCausalLM", layer_norm_eps=1e-05, partial_rotary_factor=0.25,
        rope_theta=10000, use_qkv_bias=True, num_key_value_heads=4, rms_norm_eps=...,
    ),
    "zai-org/glm-4-9b-hf": of(
        THETA, "glm", "GlmForCausalLM", attention_bias=True, head_dim=16, pad_token_id=0,
        partial_rotary_factor=0.5,
    ),
    "zai-org/GLM-4-9B-0414": of(
        THETA, "glm4", "Glm4ForCausalLM", attention_bias=True, head_dim=16, pad_token_id=0,
        partial_rotary_factor=0.5, rms_norm_eps=1e-05,
    ),
    "zai-org/GLM-4.5-Air": GLM4_MOE,
    "deepseek-ai/DeepSeek-V3 (bfloat16)": of(
        DEEPSEEK_V3, auto_map={"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"}
    ),
    "moonshotai/Moonlight-16B-A3B": of(
        DEEPSEEK_V3, q_lora_rank=None, n_group=1, auto_map={"AutoConfig": "configuration_deepseek.DeepseekV3Config"}
    ),
    "nvidia/Minitron-4B-Base": of(
        THETA, "nemotron", "NemotronForCausalLM", attention_bias=False, head_dim=16, hidden_act="relu2",
        mlp_bias=False, norm_eps=1e-05, partial_rotary_factor=0.5, rms_norm_eps=..., rope_percent=0.5,
    ),
    "nvidia/Nemotron-H-8B-Base-8K": NEMOTRON_H,
    "AntonV/mamba2-130m-hf": MAMBA2,
    "arcee-ai/AFM-4.5B (without yarn)": of(
        THETA, "arcee", "ArceeForCausalLM", attention_bias=False, head_dim=16, hidden_act="relu2",
        mlp_bias=False, rope_scaling=None,
    ),
    "google-bert/bert-base-uncased": BERT,
    "google-bert/bert-base-chinese": of(BERT, **POOLER),
    "google-bert/bert-large-cased": of(BERT, **POOLER, gradient_checkpointing=...),
    "google/flan-t5-small": of(
        T5, feed_forward_proj="gated-gelu", num_decoder_layers=2, n_positions=512,
        relative_attention_max_distance=128, tie_word_embeddings=False,
    ),
    "HuggingFaceTB/SmolLM3-3B": of(
        THETA, "smollm3", "SmolLM3ForCausalLM", attention_bias=False, layer_types=["full_attention"] * 4,
        max_window_layers=28, mlp_bias=False, no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0],
        num_hidden_layers=4, pad_token_id=3, pretraining_tp=2, rope_scaling=None, sliding_window=None,
        tie_word_embeddings=True, use_sliding_window=False,
    ),
    "ByteDance-Seed/Seed-OSS-36B-Base": of(
        THETA, "seed_oss", "SeedOssForCausalLM", attention_bias=True, attention_out_bias=False, head_dim=16,
        attention_dropout=0.1, mlp_bias=False, pad_token_id=1, residual_dropout=0.1,
        rope_scaling={"rope_type": "default"},
    ),
    "baidu/ERNIE-4.5-0.3B-PT": of(
        USUAL, "ernie4_5", "Ernie4_5ForCausalLM", head_dim=16, pad_token_id=0, rope_theta=500000.0,
        tie_word_embeddings=True, use_bias=False,
    ),
}  # fmt: skip

#: model -> (config.json, what of the reason must be said)
REFUSED: Final[dict[str, tuple[Config, str]]] = {
    "EleutherAI/pythia-70m": (of(GPT_NEOX, use_parallel_residual=True), "use_parallel_residual"),
    "google-t5/t5-small": (
        of(T5, n_positions=512, task_specific_params={"summarization": {"prefix": "summarize: "}}),
        "T5 of the first version",
    ),
    "EleutherAI/gpt-neox-20b": (of(GPT_NEOX, hidden_act="gelu_fast"), "use_parallel_residual|hidden_act"),
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B": (
        of(
            NEMOTRON_H, hybrid_override_pattern="ME*E", moe_intermediate_size=32, n_routed_experts=4,
            moe_shared_expert_intermediate_size=32, n_shared_experts=1, num_experts_per_tok=2,
            routed_scaling_factor=2.5, norm_topk_prob=True, n_group=1, topk_group=1,
        ),
        "'ME.E' are not all of the kinds",
    ),
    "mistralai/Mamba-Codestral-7B-v0.1": (of(MAMBA2, n_groups=8, ssm_cfg={}, fused_add_norm=True), "n_groups=8"),
    "allenai/OLMo-2-1124-7B": (of(LLAMA, "olmo2", "Olmo2ForCausalLM"), "normalise only what attention"),
    "microsoft/phi-2": (of(LLAMA, "phi", "PhiForCausalLM"), "side by side"),
    "bigscience/bloom-560m": ({"model_type": "bloom", "n_layer": 2}, "ALiBi"),
    "facebook/opt-125m": ({"model_type": "opt", "ffn_dim": 96}, "layers of its own"),
    "FacebookAI/roberta-base": (of(BERT, "roberta", "RobertaForMaskedLM"), "'bert', the nearest"),
    "FacebookAI/xlm-roberta-base": (of(BERT, "xlm-roberta", "XLMRobertaForMaskedLM"), "'bert', the nearest"),
    "ibm-granite/granite-3.3-2b-base": (of(LLAMA, "granite", "GraniteForCausalLM"), "residual_multiplier"),
    "CohereLabs/c4ai-command-r-v01": (of(LLAMA, "cohere", "CohereForCausalLM"), "side by side"),
    "Qwen/Qwen3-Next-80B-A3B": (of(QWEN3_MOE, "qwen3_next", "Qwen3NextForCausalLM"), "gated delta nets"),
    "internlm/internlm3-8b-instruct": (of(LLAMA, "internlm3", "InternLM3ForCausalLM"), "'llama', the nearest"),
}  # fmt: skip
