"""Functions that fields of NeMo 2's config classes name: activations, and layer specs of single models."""

from __future__ import annotations

from typing import Final

from ...formats.text.fiddle import Symbol

_ACTIVATIONS: Final = "nemo.collections.llm.fn.activation"
_MODELS: Final = "nemo.collections.llm.gpt.model."

SILU: Final = Symbol("torch.nn.functional", "silu")
GELU: Final = Symbol("torch._C._nn", "gelu")
TANH_GELU: Final = Symbol(_ACTIVATIONS, "openai_gelu")
SQUARED_RELU: Final = Symbol(_ACTIVATIONS, "squared_relu")
#: what megatron-core itself has of these
CORE_SQUARED_RELU: Final = Symbol("megatron.core.activations", "squared_relu")
CORE_QUICK_GELU: Final = Symbol("megatron.core.activations", "quick_gelu")

BERT_SPEC: Final = Symbol("nemo.collections.llm.bert.model.base", "default_layer_spec")
BIDIRECTIONAL_SPEC: Final = Symbol(_MODELS + "llama_embedding", "get_nv_embedding_layer_spec")
GEMMA2_SPEC: Final = Symbol(_MODELS + "gemma2", "gemma2_layer_spec")
GEMMA3_SPEC: Final = Symbol(_MODELS + "gemma3", "gemma3_layer_spec")
HETEROGENEOUS_SPEC: Final = Symbol(_MODELS + "llama_nemotron", "heterogeneous_layer_spec")
LLAMA4_SPEC: Final = Symbol(_MODELS + "llama4_utils", "get_llama4_layer_spec")
T5_SPEC: Final = Symbol("nemo.collections.llm.t5.model.t5", "default_layer_spec")
