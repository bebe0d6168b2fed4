"""Old names for :mod:`nemoconv.mappings.nemo2.known` and the Llama family."""

from __future__ import annotations

from . import classes
from .known import INERT, MAPPED, OFF, ONLY_WITH

__all__ = ["INERT", "LLAMA_DEFAULTS", "MAPPED", "OFF", "ONLY_WITH"]

#: Llama4Config and its subclasses (mixtures of experts with other layers) are left out on purpose
LLAMA_DEFAULTS = classes.family("LlamaConfig", without=("Llama4Config",))
