"""Defaults of NeMo 2's config classes of the GPT-2 family, ChatGLM and Baichuan: data only.

Read off the dataclasses of nemo-toolkit 2.5.3 (``nemo/collections/llm/gpt/model``: ``base.py``,
``starcoder.py``, ``chatglm.py``, ``baichuan.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .configs_dense import GPT, SILU, Defaults, family, sized

_LARGE = family(
    GPT, seq_length=2048, bias_activation_fusion=True, use_transformer_engine_full_layer_spec=True
)
#: the sized classes have layers with other names, which is refused unless a checkpoint says otherwise
GPT_DEFAULTS: Final[Mapping[str, Defaults]] = family(
    GPTConfig=GPT,
    GPTConfig126M=sized(_LARGE, 12, 768, 12, None, 3072),
    GPTConfig5B=sized(_LARGE, 24, 4096, 32, None, 16384),
    GPTConfig7B=sized(_LARGE, 32, 4096, 32, None, 10880),
    GPTConfig20B=sized(_LARGE, 44, 6144, 48, None, 24576),
    GPTConfig40B=sized(_LARGE, 48, 8192, 64, None, 32768),
    GPTConfig175B=sized(
        _LARGE, 96, 12288, 96, None, 49152, attention_dropout=0.0, layernorm_zero_centered_gamma=True
    ),
)  # type: ignore[assignment]

_STARCODER = family(
    GPT,
    seq_length=8192,
    hidden_dropout=0.2,
    attention_dropout=0.2,
    init_method_std=0.01,
    share_embeddings_and_output_weights=False,
    num_query_groups=1,
    bias_activation_fusion=True,
)
STARCODER_DEFAULTS: Final[Mapping[str, Defaults]] = family(
    StarcoderConfig=_STARCODER,
    StarcoderConfig15B=sized(_STARCODER, 40, 6144, 48, 1, 24576, init_method_std=0.02),
)  # type: ignore[assignment]

_CHATGLM = family(
    sized(GPT, 28, 4096, 32, 2, 13696),
    hidden_dropout=0.0,
    attention_dropout=0.0,
    normalization="RMSNorm",
    add_bias_linear=False,
    add_qkv_bias=True,
    rotary_percent=0.5,
    rotary_interleaved=True,
    activation_func=SILU,
    gated_linear_unit=True,
    position_embedding_type="rope",
    share_embeddings_and_output_weights=False,
    make_vocab_size_divisible_by=65024,
)
CHATGLM_DEFAULTS: Final[Mapping[str, Defaults]] = family(
    ChatGLMConfig=_CHATGLM,
    ChatGLM2Config6B=family(_CHATGLM, seq_length=32768),
    ChatGLM3Config6B=family(_CHATGLM, seq_length=8192),
)  # type: ignore[assignment]

_BAICHUAN = family(
    GPT,
    normalization="RMSNorm",
    activation_func=SILU,
    gated_linear_unit=True,
    add_bias_linear=False,
    seq_length=4096,
    layernorm_epsilon=1e-06,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    share_embeddings_and_output_weights=False,
)
BAICHUAN_DEFAULTS: Final[Mapping[str, Defaults]] = family(
    Baichuan2Config=_BAICHUAN,
    Baichuan2Config7B=family(sized(_BAICHUAN, 32, 4096, 32, 32, 11008), position_embedding_type="rope"),
)  # type: ignore[assignment]
