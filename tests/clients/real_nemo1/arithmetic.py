"""TransformerEngine's and apex's layers in plain torch, for the CPU."""

from __future__ import annotations

import contextlib
import enum
import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any

import torch
from torch.nn import functional


class _State:
    """Extra states as TransformerEngine 2 has them without FP8: any is taken."""

    def get_extra_state(self) -> Any:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        pass


def _parameter(*shape: int, like: dict[str, Any]) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(*shape, dtype=like.get("params_dtype") or torch.float32))


def _normal(x: Any, weight: Any, bias: Any, eps: float, centered: bool) -> Any:
    """LayerNorm, or RMSNorm where there is no bias."""
    scale = weight + 1 if centered else weight
    if bias is not None:
        return functional.layer_norm(x, x.shape[-1:], scale, bias, eps)
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * scale


class LayerNorm(_State, torch.nn.Module):
    has_bias = True

    def __init__(self, hidden_size: int | None = None, eps: float = 1e-5, **named: Any) -> None:
        super().__init__()
        size = hidden_size if hidden_size is not None else named["normalized_shape"]
        self.eps, self.centered = eps, bool(named.get("zero_centered_gamma"))
        self.weight = _parameter(size, like=named)
        self.bias = _parameter(size, like=named) if self.has_bias else None

    def forward(self, x: Any) -> Any:
        return _normal(x, self.weight, self.bias, self.eps, self.centered)


class RMSNorm(LayerNorm):
    has_bias = False


class Linear(_State, torch.nn.Module):
    def __init__(self, in_features: int, out_features: int, **named: Any) -> None:
        super().__init__()
        ranks, mode = named.get("tp_size", 1), named.get("parallel_mode")
        rows = out_features // (ranks if mode == "column" else 1)
        columns = in_features // (ranks if mode == "row" else 1)
        self.apart, self.use_bias = bool(named.get("return_bias")), bool(named.get("bias", True))
        self.weight = _parameter(rows, columns, like=named)
        self.bias = _parameter(rows, like=named) if self.use_bias else torch.Tensor()

    def forward(self, x: Any, **_: Any) -> Any:
        added = self.bias if self.use_bias and not self.apart else None
        result = functional.linear(x, self.weight, added)
        return (result, self.bias) if self.apart else result


class LayerNormLinear(Linear):
    def __init__(self, in_features: int, out_features: int, eps: float = 1e-5, **named: Any) -> None:
        super().__init__(in_features, out_features, **named)
        self.eps, self.centered = eps, bool(named.get("zero_centered_gamma"))
        self.layer_norm_weight = _parameter(in_features, like=named)
        rms = named.get("normalization", "LayerNorm") == "RMSNorm"
        self.layer_norm_bias = None if rms else _parameter(in_features, like=named)

    def forward(self, x: Any, **_: Any) -> Any:
        return super().forward(
            _normal(x, self.layer_norm_weight, self.layer_norm_bias, self.eps, self.centered)
        )


class DotProductAttention(_State, torch.nn.Module):
    """On [tokens, batch, heads, channels]: to all tokens before, or to all."""

    def __init__(self, *_: Any, softmax_scale: float | None = None, **named: Any) -> None:
        super().__init__()
        self.scale = softmax_scale

    def forward(self, query: Any, key: Any, value: Any, *_: Any, **named: Any) -> Any:
        times = query.shape[2] // key.shape[2]
        q, k, v = (
            tensor.repeat_interleave(count, dim=2).permute(1, 2, 0, 3)
            for tensor, count in ((query, 1), (key, times), (value, times))
        )
        causal = "causal" in str(named.get("attn_mask_type", "causal"))
        result = functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=self.scale)
        return result.permute(2, 0, 1, 3).reshape(*query.shape[:2], -1)


class _Softmax(torch.nn.Module):
    """apex's, of whose arguments these are in use."""

    def __init__(self, fp16: bool, bf16: bool, _kind: Any, _fused: bool, mask: Any, fp32: bool, scale: Any):
        super().__init__()
        self.input_in_fp16, self.input_in_bf16, self.input_in_float16 = fp16, bf16, fp16 or bf16
        self.mask_func, self.softmax_in_fp32, self.scale = mask, fp32, scale

    def forward(self, scores: Any, mask: Any) -> Any:
        return self.forward_torch_softmax(scores, mask)


class _Norm(torch.nn.LayerNorm):
    def __init__(self, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps)


_APEX: dict[str, Any] = {
    "FusedScaleMaskSoftmax": _Softmax,
    **dict.fromkeys(("FusedLayerNorm", "MixedFusedLayerNorm", "FastLayerNorm"), _Norm),
    **dict.fromkeys(("FusedRMSNorm", "MixedFusedRMSNorm"), RMSNorm),
    **dict.fromkeys(("FusedAdam", "FusedLAMB"), torch.optim.AdamW),
    "AttnMaskType": enum.Enum("AttnMaskType", "padding causal no_mask padding_causal"),
    "AttnType": enum.Enum("AttnType", "self_attn cross_attn"),
    "ModelType": enum.Enum("ModelType", "encoder_or_decoder encoder_and_decoder"),
    "ConstantNumMicroBatches": type("ConstantNumMicroBatches", (), {}),
    "divide": lambda a, b: a // b,
    "safe_divide": lambda a, b: a // b,
    "get_num_microbatches": lambda: 1,
    "_cast_if_autocast_enabled": lambda *tensors: tensors,
    "_GLOBAL_NUM_MICROBATCHES_CALCULATOR": None,
}


class _Apex(types.ModuleType):
    """apex, or any module in it: what is known above, and functions that do nothing."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _APEX.get(name, lambda *_args, **_named: None)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] != "apex":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Apex(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def install() -> None:
    """After the stand-ins for NeMo 2, before the first import of nemo or megatron."""
    sys.meta_path.insert(0, _Finder())
    engine = importlib.import_module("transformer_engine.pytorch")
    for layer in (LayerNorm, RMSNorm, Linear, LayerNormLinear, DotProductAttention):
        setattr(engine, layer.__name__, layer)
    engine.fp8_autocast = lambda *_args, **_named: contextlib.nullcontext()
