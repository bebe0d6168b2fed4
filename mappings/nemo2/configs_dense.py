"""Defaults of NeMo 2's config classes for dense decoders other than Llama: data only.

Read off the dataclasses of nemo-toolkit 2.5.3 (``nemo/collections/llm/gpt/model``). Only fields that a
table reads; a field that a class leaves to ``GPTConfig`` has the value of ``GPT``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from ...formats.text.fiddle import Symbol

Defaults = Mapping[str, object]
SILU: Final = Symbol("torch.nn.functional", "silu")
GELU: Final = Symbol("torch._C._nn", "gelu")
TANH_GELU: Final = Symbol("nemo.collections.llm.fn.activation", "openai_gelu")
SQUARED_RELU: Final = Symbol("nemo.collections.llm.fn.activation", "squared_relu")
GEMMA3_SPEC: Final = Symbol("nemo.collections.llm.gpt.model.gemma3", "gemma3_layer_spec")
GEMMA2_SPEC: Final = Symbol("nemo.collections.llm.gpt.model.gemma2", "gemma2_layer_spec")


def family(*parents: Defaults, **changes: Any) -> Defaults:
    """The defaults of a class that changes those of its parents."""
    merged: dict[str, object] = {}
    for parent in parents:
        merged |= parent
    return MappingProxyType(merged | changes)


GPT = family(
    num_layers=0,
    hidden_size=0,
    ffn_hidden_size=None,
    num_attention_heads=0,
    num_query_groups=None,
    kv_channels=None,
    vocab_size=None,
    make_vocab_size_divisible_by=128,
    seq_length=1024,
    position_embedding_type="learned_absolute",
    rotary_base=10000,
    rotary_percent=1.0,
    seq_len_interpolation_factor=None,
    normalization="LayerNorm",
    layernorm_epsilon=1e-05,
    layernorm_zero_centered_gamma=False,
    activation_func=GELU,
    bias_activation_fusion=False,
    gated_linear_unit=False,
    add_bias_linear=True,
    add_qkv_bias=False,
    qk_layernorm=False,
    window_size=None,
    share_embeddings_and_output_weights=True,
    init_method_std=0.02,
    attention_dropout=0.1,
    hidden_dropout=0.1,
    bf16=False,
    fp16=False,
    params_dtype=Symbol("torch", "float32"),
    generation_config=None,
)
# What all of these families set: their own classes repeat it.
_DECODER = family(
    GPT,
    position_embedding_type="rope",
    share_embeddings_and_output_weights=False,
    attention_dropout=0.0,
    hidden_dropout=0.0,
    seq_length=4096,
    add_bias_linear=False,
)
GATED = family(_DECODER, normalization="RMSNorm", activation_func=SILU, gated_linear_unit=True)

_MISTRAL = family(
    GATED,
    num_layers=32,
    hidden_size=4096,
    num_attention_heads=32,
    num_query_groups=8,
    ffn_hidden_size=14336,
    seq_length=32768,
    window_size=[4096, 0],
    params_dtype=Symbol("torch", "bfloat16"),
)
_MISTRAL_NEMO = family(
    _MISTRAL,
    num_layers=40,
    hidden_size=5120,
    kv_channels=128,
    seq_length=4096,
    window_size=None,
    rotary_base=1000000.0,
)
MISTRAL_DEFAULTS: Final[Mapping[str, Defaults]] = family(
    MistralConfig7B=_MISTRAL,
    MistralNeMoConfig12B=_MISTRAL_NEMO,
    MistralNeMoConfig123B=family(
        _MISTRAL_NEMO, num_layers=88, hidden_size=12288, ffn_hidden_size=28672, num_attention_heads=96
    ),
)  # type: ignore[assignment]


def sized(
    parent: Defaults, layers: int, hidden: int, heads: int, groups: int | None, ffn: int, **changes: Any
) -> Defaults:
    return family(
        parent,
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_query_groups=groups,
        ffn_hidden_size=ffn,
        **changes,
    )


_QWEN2 = family(GATED, add_qkv_bias=True, vocab_size=151936, layernorm_epsilon=1e-06, rotary_base=1000000.0)
_QWEN2_500M = sized(_QWEN2, 24, 896, 14, 2, 4864)
_QWEN2_1P5B = sized(_QWEN2, 28, 1536, 12, 2, 8960)
_QWEN2_7B = sized(_QWEN2, 28, 3584, 28, 4, 18944, vocab_size=152064)
_QWEN2_LARGE = family(_QWEN2, vocab_size=152064, layernorm_epsilon=1e-05)
_QWEN2_72B = sized(_QWEN2_LARGE, 80, 8192, 64, 8, 29568)
QWEN2_DEFAULTS: Final[Mapping[str, Defaults]] = family(
    Qwen2Config=_QWEN2,
    Qwen2Config500M=_QWEN2_500M,
    Qwen25Config500M=family(_QWEN2_500M, seq_length=32768),
    Qwen2Config1P5B=_QWEN2_1P5B,
    Qwen25Config1P5B=family(_QWEN2_1P5B, seq_length=131072),
    Qwen25Config3B=sized(_QWEN2, 36, 2048, 16, 2, 11008, share_embeddings_and_output_weights=True),
    Qwen2Config7B=_QWEN2_7B,
    Qwen25Config7B=family(_QWEN2_7B, seq_length=131072),
    Qwen25Config14B=sized(_QWEN2_LARGE, 48, 5120, 40, 8, 13824, seq_length=131072),
    Qwen25Config32B=sized(_QWEN2_LARGE, 64, 5120, 40, 8, 27648, seq_length=131072),
    Qwen2Config72B=_QWEN2_72B,
    Qwen25Config72B=family(_QWEN2_72B, seq_length=131072),
)  # type: ignore[assignment]

_QWEN3 = family(
    _QWEN2,
    add_qkv_bias=False,
    qk_layernorm=True,
    kv_channels=128,
    num_query_groups=8,
    max_position_embeddings=40960,
)
_QWEN3_TIED = family(_QWEN3, share_embeddings_and_output_weights=True)
#: without the mixtures of experts of the same module
QWEN3_DEFAULTS: Final[Mapping[str, Defaults]] = family(
    Qwen3Config=_QWEN3,
    Qwen3Config600M=sized(_QWEN3_TIED, 28, 1024, 16, 8, 3072),
    Qwen3Config1P7B=sized(_QWEN3_TIED, 28, 2048, 16, 8, 6144),
    Qwen3Config4B=sized(_QWEN3_TIED, 36, 2560, 32, 8, 9728),
    Qwen3Config8B=sized(_QWEN3, 36, 4096, 32, 8, 12288),
    Qwen3Config14B=sized(_QWEN3, 40, 5120, 40, 8, 17408),
    Qwen3Config32B=sized(_QWEN3, 64, 5120, 64, 8, 25600),
)  # type: ignore[assignment]

PHI3_DEFAULTS: Final[Mapping[str, Defaults]] = family(
    Phi3Config=GATED,
    Phi3ConfigMini=sized(GATED, 32, 3072, 32, 32, 8192, vocab_size=32064),
)  # type: ignore[assignment]

_STARCODER2 = family(
    _DECODER, add_bias_linear=True, bias_activation_fusion=True, seq_length=16384, init_method_std=0.01
)
_STARCODER2_SMALL = family(_STARCODER2, init_method_std=0.018042)
STARCODER2_DEFAULTS: Final[Mapping[str, Defaults]] = family(
    Starcoder2Config=_STARCODER2,
    Starcoder2Config3B=sized(_STARCODER2_SMALL, 30, 3072, 24, 2, 12288, rotary_base=999999.4420358813),
    Starcoder2Config7B=sized(_STARCODER2_SMALL, 32, 4608, 36, 4, 18432, rotary_base=1_000_000),
    Starcoder2Config15B=sized(
        _STARCODER2, 40, 6144, 48, 4, 24576, init_method_std=0.01275, rotary_base=100_000
    ),
)  # type: ignore[assignment]

_NEMOTRON = family(
    sized(_DECODER, 32, 3072, 24, 8, 9216),
    activation_func=SQUARED_RELU,
    layernorm_zero_centered_gamma=True,
    rotary_percent=0.5,
    kv_channels=128,
    init_method_std=0.0134,
)
_NEMOTRON_WIDE = family(_NEMOTRON, kv_channels=None)
NEMOTRON_DEFAULTS: Final[Mapping[str, Defaults]] = family(
    NemotronConfig=_NEMOTRON,
    Nemotron3Config4B=_NEMOTRON,
    Nemotron3Config8B=sized(_NEMOTRON_WIDE, 32, 4096, 32, None, 16384, init_method_std=0.01),
    Nemotron3Config22B=sized(_NEMOTRON_WIDE, 40, 6144, 48, None, 24576, init_method_std=0.008),
    Nemotron4Config15B=sized(_NEMOTRON_WIDE, 32, 6144, 48, 8, 24576),
    Nemotron4Config340B=sized(_NEMOTRON_WIDE, 96, 18432, 96, 8, 73728, init_method_std=0.0063),
)  # type: ignore[assignment]

_GEMMA = family(
    GATED,
    activation_func=TANH_GELU,
    layernorm_zero_centered_gamma=True,
    share_embeddings_and_output_weights=True,
    kv_channels=256,
    seq_length=8192,
)
_GEMMA_2B = sized(_GEMMA, 18, 2048, 8, 1, 16384)
_GEMMA_7B = sized(_GEMMA, 28, 3072, 16, 16, 24576)
GEMMA_DEFAULTS: Final[Mapping[str, Defaults]] = family(
    GemmaConfig=_GEMMA,
    GemmaConfig2B=_GEMMA_2B,
    GemmaConfig7B=_GEMMA_7B,
    CodeGemmaConfig2B=_GEMMA_2B,
    CodeGemmaConfig7B=_GEMMA_7B,
)  # type: ignore[assignment]

_GEMMA2 = family(
    _GEMMA,
    layernorm_epsilon=1e-06,
    window_size=(4096, 0),
    vocab_size=256000,
    transformer_layer_spec=GEMMA2_SPEC,
    query_pre_attn_scalar=224,
    attn_logit_softcapping=50.0,
    final_logit_softcapping=30.0,
)
GEMMA2_DEFAULTS: Final[Mapping[str, Defaults]] = family(
    Gemma2Config=_GEMMA2,
    Gemma2Config2B=sized(_GEMMA2, 26, 2304, 8, 4, 9216, query_pre_attn_scalar=256),
    Gemma2Config9B=sized(_GEMMA2, 42, 3584, 16, 8, 14336, query_pre_attn_scalar=256),
    Gemma2Config27B=sized(_GEMMA2, 46, 4608, 32, 16, 36864, query_pre_attn_scalar=144),
)  # type: ignore[assignment]

_GEMMA3 = family(
    _GEMMA,
    layernorm_epsilon=1e-06,
    kv_channels=None,
    seq_length=131072,
    vocab_size=262208,
    window_size=512,
    rotary_base=(10000, 1000000),
    interleaved_attn_pattern=(5, 1),
    softmax_scale=None,
    is_vision_language=False,
    transformer_layer_spec=GEMMA3_SPEC,
)
_GEMMA3_SEES = family(
    _GEMMA3, kv_channels=256, window_size=1024, rope_scaling_factor=8.0, is_vision_language=True
)
#: without the base class, which NeMo itself cannot build for want of ``rope_scaling_factor``
GEMMA3_DEFAULTS: Final[Mapping[str, Defaults]] = family(
    Gemma3Config1B=family(
        sized(_GEMMA3, 26, 1152, 4, 1, 6912),
        kv_channels=256,
        rope_scaling_factor=1.0,
        seq_length=32768,
        bf16=True,
        vocab_size=262144,
    ),
    Gemma3Config4B=sized(_GEMMA3_SEES, 34, 2560, 8, 4, 10240),
    Gemma3Config12B=sized(_GEMMA3_SEES, 48, 3840, 16, 8, 15360),
    Gemma3Config27B=sized(_GEMMA3_SEES, 62, 5376, 32, 16, 21504, kv_channels=128, softmax_scale=168**-0.5),
)  # type: ignore[assignment]
