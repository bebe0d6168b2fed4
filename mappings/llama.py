"""Llama 1, 2, 3, 3.1, 3.2, 3.3, CodeLlama, TinyLlama, SmolLM2 and what else is a ``LlamaForCausalLM``.

Source: transformers/models/llama, megatron/core/models/gpt, nemo/collections/llm/gpt/model/llama.py.
"""

from nemoconv.mappings.config_fields import Biases, Dtype, Field, Fixed, HeadDim
from nemoconv.mappings.nemo_configs import LLAMA_DEFAULTS
from nemoconv.mappings.nemo_configs_llama import NANO_DEFAULTS
from nemoconv.mappings.nemo_fields import NemoClasses
from nemoconv.mappings.rope import Rope
from nemoconv.mappings.rules import fused_qkv, gated, same, vocabulary
from nemoconv.mappings.table import Module, Table

HF = "model.layers.{layer}."
NEMO = "decoder.layers.{layer}."
UNTIED = (("share_embeddings_and_output_weights", False),)
BIASES = (("add_bias_linear", True),)
ATTENTION_BIAS = (("attention_bias", True),)
MLP_BIAS = (("mlp_bias", True),)

TABLE = Table(
    architecture="llama",
    hf_class="LlamaForCausalLM",
    nemo=NemoClasses(
        module="nemo.collections.llm.gpt.model.llama",
        model="LlamaModel",
        config="LlamaConfig",
        scaled_config="Llama31Config",
        defaults={**LLAMA_DEFAULTS, **NANO_DEFAULTS},
        modules=("nemo.collections.llm.gpt.model.llama_nemotron",),
    ),
    fields=(
        Field("num_hidden_layers", "num_layers", 32),
        Field("hidden_size", "hidden_size", 4096),
        Field("intermediate_size", "ffn_hidden_size", 11008),
        Field("num_attention_heads", "num_attention_heads", 32),
        Field("num_key_value_heads", "num_query_groups", default_from="num_attention_heads"),
        HeadDim(),
        Field("vocab_size", "vocab_size", 32000),
        Field("max_position_embeddings", "seq_length", 2048),
        Field("rms_norm_eps", "layernorm_epsilon", 1e-6, kind=float),
        Field("initializer_range", "init_method_std", 0.02, kind=float),
        Field("attention_dropout", "attention_dropout", 0.0, kind=float),
        Field("tie_word_embeddings", "share_embeddings_and_output_weights", False, kind=bool),
        Biases(),
        Fixed("hidden_act", "silu"),
        Fixed("rope_interleaved", False),
        Rope(),
        Dtype(),
    ),
    rules=(
        vocabulary("embedding.word_embeddings.weight", "model.embed_tokens.weight"),
        same(
            NEMO + "self_attention.linear_qkv.layer_norm_weight",
            HF + "input_layernorm.weight",
            "hidden",
            also=(NEMO + "input_layernorm.weight",),
        ),
        fused_qkv(
            NEMO + "self_attention.linear_qkv.weight",
            *(HF + f"self_attn.{name}_proj.weight" for name in "qkv"),
        ),
        fused_qkv(
            NEMO + "self_attention.linear_qkv.bias",
            *(HF + f"self_attn.{name}_proj.bias" for name in "qkv"),
            bias=True,
            when=BIASES,
            hf_when=ATTENTION_BIAS,
        ),
        same(
            NEMO + "self_attention.linear_proj.weight",
            HF + "self_attn.o_proj.weight",
            "hidden (group query_head head_dim)",
            cut="group",
        ),
        same(
            NEMO + "self_attention.linear_proj.bias",
            HF + "self_attn.o_proj.bias",
            "hidden",
            when=BIASES,
            hf_when=ATTENTION_BIAS,
        ),
        same(
            NEMO + "mlp.linear_fc1.layer_norm_weight",
            HF + "post_attention_layernorm.weight",
            "hidden",
            also=(NEMO + "pre_mlp_layernorm.weight",),
        ),
        gated(NEMO + "mlp.linear_fc1.weight", HF + "mlp.gate_proj.weight", HF + "mlp.up_proj.weight"),
        gated(
            NEMO + "mlp.linear_fc1.bias",
            HF + "mlp.gate_proj.bias",
            HF + "mlp.up_proj.bias",
            bias=True,
            when=BIASES,
            hf_when=MLP_BIAS,
        ),
        same(NEMO + "mlp.linear_fc2.weight", HF + "mlp.down_proj.weight", "hidden ffn", cut="ffn"),
        same(
            NEMO + "mlp.linear_fc2.bias",
            HF + "mlp.down_proj.bias",
            "hidden",
            when=BIASES,
            hf_when=MLP_BIAS,
        ),
        same("decoder.final_layernorm.weight", "model.norm.weight", "hidden"),
        vocabulary("output_layer.weight", "lm_head.weight", when=UNTIED),
    ),
    modules=(
        Module(NEMO + "self_attention.core_attention"),
        Module(NEMO + "self_attention.linear_proj"),
        Module(NEMO + "self_attention.linear_qkv"),
        Module(NEMO + "mlp.linear_fc1"),
        Module(NEMO + "mlp.linear_fc2"),
        Module("decoder.final_layernorm"),
    ),
    ignored=(HF + "self_attn.rotary_emb.inv_freq",),
    tied=(
        ("lm_head.weight", "model.embed_tokens.weight"),
        ("output_layer.weight", "embedding.word_embeddings.weight"),
    ),
    verified=("bit-equal", "transformers logits", "megatron-core logits", "real NeMo export"),
)
