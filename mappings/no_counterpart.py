"""Well-known architectures that have no table, and why: nothing but a message to those who ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_SIDE_BY_SIDE: Final = (
    "its layers run attention and MLP side by side, which neither NeMo 2 nor megatron-core does"
)
_NORMS_AFTER: Final = (
    "its layers normalise what attention and MLP give, which NeMo 2's and megatron-core's plain layers do not"
)
_T5: Final = (
    "NeMo 2's encoder-decoder stores its output layer under two names, which no table here can say, and "
    "megatron-core's own attention takes no relative positions, so that nothing could prove it"
)
_ALIBI: Final = "its positions are ALiBi, which NeMo 2 does not have"

NO_COUNTERPART: Final[Mapping[str, str]] = {
    "falcon": _SIDE_BY_SIDE + "; falcon-rw runs them in turn, but with ALiBi",
    "RefinedWeb": _SIDE_BY_SIDE,
    "RefinedWebModel": _SIDE_BY_SIDE,
    "gptj": _SIDE_BY_SIDE,
    "phi": _SIDE_BY_SIDE,
    "cohere": _SIDE_BY_SIDE,
    "cohere2": _SIDE_BY_SIDE,
    "codegen": _SIDE_BY_SIDE,
    "t5": _T5,
    "mt5": _T5,
    "umt5": _T5,
    "bloom": _ALIBI,
    "mpt": _ALIBI,
    "glm4": _NORMS_AFTER,
    "olmo2": _NORMS_AFTER,
    "olmo3": _NORMS_AFTER,
    "exaone4": _NORMS_AFTER,
}
