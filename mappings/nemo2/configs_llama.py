"""Old names for NeMo 2's config classes that are Llamas under other names."""

from __future__ import annotations

from . import classes
from .symbols import BIDIRECTIONAL_SPEC, HETEROGENEOUS_SPEC

__all__ = ["BIDIRECTIONAL_SPEC", "HETEROGENEOUS_SPEC"]

NANO_DEFAULTS = classes.family("Llama31NemotronNano8BConfig", "Llama31Nemotron70BConfig")
LLAMA_NEMOTRON_DEFAULTS = classes.family("Llama33NemotronSuper49BConfig", "Llama31NemotronUltra253BConfig")
EMBEDDING_DEFAULTS = classes.family("Llama32EmbeddingConfig1B", "Llama32EmbeddingConfig3B")
RERANKER_DEFAULTS = classes.family("Llama32Reranker1BConfig")
