"""What TransformerEngine's layers compute, in plain torch on one rank, for the stand-ins that only have their state.

NeMo and megatron-core call the layers through wrappers of their own, which stay as they are.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional


def install() -> None:
    """Give the stand-ins a ``forward``. After ``stand_ins.install()`` and before NeMo is imported."""
    import transformer_engine.pytorch as engine

    for layer in (engine.DotProductAttention, engine.LayerNorm, engine.RMSNorm, engine.Linear):
        _remember(layer)
    engine.DotProductAttention.forward = attention
    engine.LayerNorm.forward = lambda self, x: functional.layer_norm(
        x, x.shape[-1:], self.weight, self.bias, self.named["eps"]
    )
    engine.RMSNorm.forward = lambda self, x: functional.rms_norm(
        x, x.shape[-1:], self.weight, self.named["eps"]
    )
    engine.Linear.forward = lambda self, x, **_named: linear(self, x)
    engine.LayerNormLinear.forward = lambda self, x, **_named: linear(self, normal(self, x))


def _remember(layer: type) -> None:
    """Keep the arguments of a layer, of which the stand-in needs few."""
    built = layer.__init__

    def build(self: Any, *given: Any, **named: Any) -> None:
        built(self, *given, **named)
        self.given, self.named = given, named

    layer.__init__ = build  # type: ignore[misc]


def normal(self: Any, x: torch.Tensor) -> torch.Tensor:
    eps, shape = self.named["eps"], x.shape[-1:]
    if self.named.get("normalization") == "RMSNorm":
        return functional.rms_norm(x, shape, self.layer_norm_weight, eps)
    return functional.layer_norm(x, shape, self.layer_norm_weight, self.layer_norm_bias, eps)


def linear(self: Any, x: torch.Tensor) -> Any:
    bias = self.bias if self.bias.numel() else None
    if self.named.get("return_bias"):
        return functional.linear(x, self.weight), bias
    return functional.linear(x, self.weight, bias)


def attention(self: Any, query: Any, key: Any, value: Any, _mask: Any = None, **named: Any) -> torch.Tensor:
    """[sequence, batch, heads, width] or, packed, [tokens, heads, width] -> heads and width joined."""
    causal = "causal" in str(named.get("attn_mask_type", self.named.get("attn_mask_type")))
    if query.ndim == 4:
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        found = _attend(q, k, v, causal)
        return found.permute(2, 0, 1, 3).flatten(2)
    ends = named["cu_seqlens_q"].tolist()
    pieces = []
    for first, last in pairwise(ends):
        q, k, v = (x[first:last].transpose(0, 1)[None] for x in (query, key, value))
        pieces.append(_attend(q, k, v, causal)[0].transpose(0, 1))
    return torch.cat(pieces).flatten(1)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
