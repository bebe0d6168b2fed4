"""Defaults of NeMo 2's config classes that are Llamas under other names: data only.

Read off the dataclasses of nemo-toolkit 2.5.3 (``nemo/collections/llm/gpt/model``: ``llama_nemotron.py``,
``llama_embedding.py``, ``reranker.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ...formats.text.fiddle import Symbol
from .configs import LLAMA_DEFAULTS
from .configs_dense import Defaults, family

_MODULE: Final = "nemo.collections.llm.gpt.model."
HETEROGENEOUS_SPEC: Final = Symbol(_MODULE + "llama_nemotron", "heterogeneous_layer_spec")
BIDIRECTIONAL_SPEC: Final = Symbol(_MODULE + "llama_embedding", "get_nv_embedding_layer_spec")

#: those of Llama-Nemotron that are plain Llamas
NANO_DEFAULTS: Final[Mapping[str, Defaults]] = family(
    Llama31NemotronNano8BConfig=family(LLAMA_DEFAULTS["Llama31Config8B"], kv_channels=128),
    Llama31Nemotron70BConfig=family(LLAMA_DEFAULTS["Llama31Config70B"], kv_channels=128),
)  # type: ignore[assignment]

#: without the JSON text of the layers, which a checkpoint has to give
LLAMA_NEMOTRON_DEFAULTS: Final[Mapping[str, Defaults]] = family(
    Llama33NemotronSuper49BConfig=family(
        LLAMA_DEFAULTS["Llama31Config70B"], transformer_layer_spec=HETEROGENEOUS_SPEC
    ),
    Llama31NemotronUltra253BConfig=family(
        LLAMA_DEFAULTS["Llama31Config405B"], num_layers=162, transformer_layer_spec=HETEROGENEOUS_SPEC
    ),
)  # type: ignore[assignment]

EMBEDDING_DEFAULTS: Final[Mapping[str, Defaults]] = family(
    **{
        f"Llama32EmbeddingConfig{size}": family(
            LLAMA_DEFAULTS[f"Llama32Config{size}"], transformer_layer_spec=BIDIRECTIONAL_SPEC
        )
        for size in ("1B", "3B")
    }
)  # type: ignore[assignment]

_RERANKER = family(
    LLAMA_DEFAULTS["Llama32Config1B"],
    transformer_layer_spec=BIDIRECTIONAL_SPEC,
    pool_type="avg",
    temperature=1.0,
)
RERANKER_DEFAULTS: Final[Mapping[str, Defaults]] = family(
    Llama32Reranker1BConfig=_RERANKER,
    Llama32Reranker500MConfig=family(_RERANKER, num_layers=8),
)  # type: ignore[assignment]
