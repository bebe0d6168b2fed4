"""Old names for NeMo 2's config classes for dense decoders other than Llama."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from . import classes
from .classes import Defaults
from .symbols import GELU, GEMMA2_SPEC, GEMMA3_SPEC, SILU, SQUARED_RELU, TANH_GELU

__all__ = ["GELU", "GEMMA2_SPEC", "GEMMA3_SPEC", "SILU", "SQUARED_RELU", "TANH_GELU", "Defaults"]


def family(*parents: Defaults, **changes: Any) -> Defaults:
    """The defaults of a class that changes those of its parents."""
    merged: dict[str, Any] = {}
    for parent in parents:
        merged |= parent
    return MappingProxyType(merged | changes)


def __getattr__(name: str) -> Defaults:
    if name == "GPT":
        return classes.defaults("GPTConfig")
    raise AttributeError(name)


MISTRAL_DEFAULTS = classes.family("MistralConfig7B")
QWEN2_DEFAULTS = classes.family("Qwen2Config")
#: without the mixtures of experts of the same module
QWEN3_DEFAULTS = classes.family("Qwen3Config", without=("Qwen3MoEConfig",))
PHI3_DEFAULTS = classes.family("Phi3Config")
STARCODER2_DEFAULTS = classes.family("Starcoder2Config")
NEMOTRON_DEFAULTS = classes.family("NemotronConfig")
GEMMA_DEFAULTS = classes.family("GemmaConfig")
GEMMA2_DEFAULTS = classes.family("Gemma2Config")
#: without the base class, which NeMo itself cannot build for want of ``rope_scaling_factor``
GEMMA3_DEFAULTS = classes.family(*(f"Gemma3Config{size}B" for size in (1, 4, 12, 27)))
