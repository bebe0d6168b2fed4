"""One rank of a Megatron job with a dense decoder that is no Llama: :mod:`megatron_rank` with another build.

The settings are the defaults of NeMo's config class, with the fields of io.json on top, as in NeMo. Where
NeMo has layers of its own on top of TransformerEngine's, plain ones that compute the same stand in.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import megatron_rank as rank
import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.activations import squared_relu
from megatron.core.fusions import fused_softmax
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import RowParallelLinear
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from nemoconv.converters.nemo2.context import read_context
from nemoconv.mappings import table_for_nemo

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "openai_gelu": lambda x: F.gelu(x, approximate="tanh"),
    "squared_relu": squared_relu,
}
rank.TRANSFORMER_ENGINE_ONLY |= {f"layers.self_attention.{name}_layernorm._extra_state" for name in "qk"} | {
    f"layers.{name}.post_layernorm._extra_state" for name in ("self_attention.linear_proj", "mlp.linear_fc2")
}


class ZeroCentredNorm(torch.nn.Module):
    """TransformerEngine's norm with ``zero_centered_gamma``; torch's norms have no such thing."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.zeros(hidden_size))
        with_bias = config.normalization == "LayerNorm"
        self.bias = torch.nn.Parameter(torch.zeros(hidden_size)) if with_bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.bias is None:
            return F.rms_norm(x, x.shape[-1:], self.weight + 1, self.eps)
        return F.layer_norm(x, x.shape[-1:], self.weight + 1, self.bias, self.eps)


class ProjectionThenNorm(RowParallelLinear):
    """NeMo's ``TERowParallelLinearLayerNorm`` (gemma2.py)."""

    def __init__(self, input_size: int, output_size: int, *, config: TransformerConfig, **rest: Any) -> None:
        super().__init__(input_size, output_size, config=config, **rest)
        self.post_layernorm = ZeroCentredNorm(config, output_size)

    def forward(self, x: torch.Tensor) -> Any:
        out, bias = super().forward(x)
        return self.post_layernorm(out), bias


def soft_capped_attention(cap: float | None) -> type[DotProductAttention]:
    """NeMo's ``Gemma2DotProductAttention`` on texts that are shorter than the window."""

    class Attention(DotProductAttention):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.scale_mask_softmax.register_forward_pre_hook(
                lambda _, given: (soft_cap(given[0], cap), *given[1:])
            )

    return Attention


def soft_cap(x: torch.Tensor, cap: float | None) -> torch.Tensor:
    return cap * torch.tanh(x / cap) if cap else x


class LocalAndGlobalRotary(torch.nn.Module):
    """NeMo's ``Gemma3RotaryEmbedding``."""

    def __init__(self, whole: RotaryEmbedding, local: RotaryEmbedding, factor: float) -> None:
        super().__init__()
        self.whole, self.local = whole, local
        whole.inv_freq /= factor

    def get_rotary_seq_len(self, *args: Any) -> int:
        return self.whole.get_rotary_seq_len(*args)

    def forward(self, *args: Any, **rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self.local(*args, **rest), self.whole(*args, **rest)


def layer_is_local(fields: dict[str, Any], number: int) -> bool:
    return number % sum(fields["interleaved_attn_pattern"]) != 0


def gemma3_attention(fields: dict[str, Any]) -> tuple[type[SelfAttention], type[DotProductAttention]]:
    """NeMo's ``Gemma3SelfAttention`` and ``Gemma3TEDotProductAttention``."""

    class Attention(SelfAttention):
        def forward(self, *args: Any, rotary_pos_emb: Any = None, **rest: Any) -> Any:
            picked = rotary_pos_emb[0 if layer_is_local(fields, self.layer_number) else 1]
            return super().forward(*args, rotary_pos_emb=picked, **rest)

    class Core(DotProductAttention):
        def __init__(self, config: TransformerConfig, layer_number: int, *args: Any, **rest: Any) -> None:
            local = layer_is_local(fields, layer_number)
            config = dataclasses.replace(config, window_size=(fields["window_size"], 0) if local else None)
            super().__init__(config, layer_number, *args, **rest)

    return Attention, Core


def spec(config: TransformerConfig, fields: dict[str, Any]) -> Any:
    """megatron-core's local layers, with other norms and projections where the architecture has them."""
    layer = get_gpt_layer_local_spec(normalization=config.normalization, qk_layernorm=config.qk_layernorm)
    if not config.layernorm_zero_centered_gamma:
        return layer
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = ZeroCentredNorm
    if fields["class"].startswith("Gemma2"):
        attention, mlp = layer.submodules.self_attention.submodules, layer.submodules.mlp.submodules
        attention.linear_proj = mlp.linear_fc2 = ProjectionThenNorm
        attention.core_attention = soft_capped_attention(fields["attn_logit_softcapping"])
    if fields["class"].startswith("Gemma3"):
        attention, mlp = layer.submodules.self_attention.submodules, layer.submodules.mlp.submodules
        attention.linear_proj = mlp.linear_fc2 = ProjectionThenNorm
        attention.q_layernorm = attention.k_layernorm = ZeroCentredNorm
        layer.submodules.self_attention.module, attention.core_attention = gemma3_attention(fields)
    return TransformerBlockSubmodules([layer] * config.num_layers, ZeroCentredNorm)


def build(fields: dict[str, Any], tp: int, pp: int, dtype: torch.dtype) -> GPTModel:
    """The model as NeMo's configure_model builds it from all fields."""
    known = {field.name for field in dataclasses.fields(TransformerConfig)}
    told = {name: value for name, value in fields.items() if name in known and value is not None}
    own = {
        "activation_func": ACTIVATIONS[fields["activation_func"].name],
        "bias_activation_fusion": fields["bias_activation_fusion"],
        "params_dtype": dtype,
        "bf16": False,
        "fp16": False,
    }
    if "query_pre_attn_scalar" in fields:
        own |= {"softmax_scale": fields["query_pre_attn_scalar"] ** -0.5, "window_size": None}
    bases = fields["rotary_base"]
    if isinstance(bases, tuple):
        own |= {"window_size": None, "qk_layernorm": True}
        fields = {**fields, "rotary_base": bases[1]}
    config = TransformerConfig(**(told | rank.ON_CPU | own))
    assert parallel_state.get_pipeline_model_parallel_world_size() == 1
    model = GPTModel(
        config=config,
        transformer_layer_spec=spec(config, fields),
        vocab_size=fields["vocab_size"],
        max_sequence_length=fields["seq_length"],
        parallel_output=False,
        share_embeddings_and_output_weights=fields["share_embeddings_and_output_weights"],
        position_embedding_type=fields["position_embedding_type"],
        rotary_base=fields["rotary_base"],
        rotary_percent=fields["rotary_percent"],
        seq_len_interpolation_factor=fields["seq_len_interpolation_factor"],
    )
    if isinstance(bases, tuple):
        local = RotaryEmbedding(config.kv_channels, 1.0, rotary_base=bases[0], use_cpu_initialization=True)
        scaling = fields["rope_scaling_factor"]
        model.rotary_pos_emb = LocalAndGlobalRotary(model.rotary_pos_emb, local, scaling)
    if fields["class"].startswith("Gemma"):  # NeMo's EmbeddingScalingMixin
        model.embedding.register_forward_hook(lambda _, __, out: out * config.hidden_size**0.5)
    cap = fields.get("final_logit_softcapping")
    model.output_layer.register_forward_hook(lambda _, __, out: (soft_cap(out[0], cap), out[1]))
    return model.to(dtype).eval()


def context_with_defaults(source: Any) -> SimpleNamespace:
    """What a context folder says, with what NeMo's class says where the folder says nothing."""
    context = read_context(source)
    table = table_for_nemo(context.config_class, context.fields, "here")
    defaults = table.nemo.defaults[context.config_class.name]
    return SimpleNamespace(fields={**defaults, **context.fields, "class": context.config_class.name})


def sliding_window_mask(*args: Any) -> torch.Tensor:
    """megatron-core's own, which asks for a CUDA tensor."""
    with rank.OnCPU():
        return own_mask(*args)


own_mask = fused_softmax.get_sliding_window_causal_mask
fused_softmax.get_sliding_window_causal_mask = sliding_window_mask
rank.read_context = context_with_defaults
rank.build = build

if __name__ == "__main__":
    rank.serve()
