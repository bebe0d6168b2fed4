"""T5 in a Megatron job: megatron-core's own T5Model, with attention that takes relative positions.

megatron-core's plain attention refuses them, TransformerEngine's does not run here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import megatron_rank as rank
import torch
from megatron.core.models.T5 import t5_spec
from megatron.core.models.T5.t5_model import T5Model
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig

rank.TRANSFORMER_ENGINE_ONLY |= {
    "layers.pre_cross_attn_layernorm._extra_state",
    "layers.cross_attention.core_attention._extra_state",
    "module.encoder.layers.self_attention.core_attention._extra_state",
    "module.encoder.final_layernorm._extra_state",
}


class AttentionWithBias(DotProductAttention):
    """Scores plus a bias for each distance, as TransformerEngine's attention computes them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bias: torch.Tensor | None = None
        self.scale_mask_softmax.register_forward_pre_hook(self.add)

    def add(self, _: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return given if self.bias is None else (given[0] + self.bias, *given[1:])

    def forward(self, *args: Any, attention_bias: torch.Tensor | None = None, **kwargs: Any) -> Any:
        self.bias = attention_bias
        return super().forward(*args, **kwargs)


def block_spec(spec: Any) -> Any:
    spec.layer_norm = WrappedTorchNorm  # megatron-core takes TransformerEngine's even here
    for layer in spec.layer_specs:
        layer.submodules.self_attention.submodules.core_attention = AttentionWithBias
    return spec


def build(fields: dict[str, Any], tp: int, pp: int, dtype: torch.dtype) -> T5Model:
    """The model as ``configure_model`` of NeMo's T5Config builds it from all fields."""
    known = {field.name for field in dataclasses.fields(TransformerConfig)}
    told = {name: value for name, value in fields.items() if name in known and value is not None}
    activation = {"gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu}
    own = {
        "activation_func": activation[fields["activation_func"].name],
        "bias_activation_fusion": fields["bias_activation_fusion"],
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "params_dtype": dtype,
        "bf16": False,
        "fp16": False,
    }
    config = TransformerConfig(**(told | rank.ON_CPU | own))
    encoder = dataclasses.replace(config, num_layers=fields["encoder_num_layers"])
    model = T5Model(
        config=config,
        encoder_config=encoder,
        transformer_encoder_layer_spec=block_spec(
            t5_spec.get_t5_encoder_with_local_block_spec(encoder.num_layers)
        ),
        transformer_decoder_layer_spec=block_spec(
            t5_spec.get_t5_decoder_with_local_block_spec(config.num_layers)
        ),
        vocab_size=fields["vocab_size"],
        max_sequence_length=fields["max_position_embeddings"],
        parallel_output=False,
        share_embeddings_and_output_weights=fields["share_embeddings_and_output_weights"],
        position_embedding_type=fields["position_embedding_type"],
    )
    return model.to(dtype).eval()


def forward(model: T5Model, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the text read backwards, for the text itself."""
    length = ids.shape[1]
    whole = torch.zeros(1, 1, length, length, dtype=torch.bool)
    causal = torch.triu(torch.ones_like(whole), diagonal=1)
    with torch.no_grad():
        return model(ids, ids.flip(1), whole, causal, whole)
