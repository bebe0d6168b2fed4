"""What is found out about the weights of an ONNX graph: tensors by their Hugging Face names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ....tensors.stored import StoredTensor

Shape = tuple[int, ...]
#: the key of model.onnx's metadata with which nemoconv marks its own files
MARK: Final = "nemoconv.format"


@dataclass(frozen=True, slots=True)
class Named:
    """Tensors by their Hugging Face names, how the names were found, initializers that are no weights of
    the model, and those that are only approximations: decoded from fewer bits, or norms with 1 added, with
    what they may be off by."""

    tensors: Mapping[str, StoredTensor]
    how: str
    left: Sequence[str] = ()
    decoded: Sequence[str] = ()
    folded: Mapping[str, float] = field(default_factory=dict)
