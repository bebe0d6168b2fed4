"""What a checkpoint asks of its weights, whether they lie whole or in pieces of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from ...tensors.dtypes import DType
from ...tensors.stored import StoredTensor
from ..base import Piece, TensorSpec


class StoredWeights(Protocol):
    """Tensors by their names in the whole model, as the files have them: nothing is joined here."""

    @property
    def writer(self) -> str:
        """What wrote them."""

    @property
    def cut(self) -> bool:
        """Whether ranks hold pieces of them."""

    @property
    def skipped(self) -> Mapping[str, int]:
        """What is there and no tensor of the model, and how many of each kind."""

    @property
    def repeated(self) -> Sequence[tuple[StoredTensor, StoredTensor]]:
        """What is held more than once and must be equal: (a copy, the first one)."""

    @property
    def derived(self) -> Sequence[tuple[str, StoredTensor]]:
        """What a model computes from its config, kept all the same: (key, tensor)."""

    def names(self) -> Sequence[str]:
        """The tensors' names."""

    def dtype(self, name: str) -> DType:
        """The element type of a tensor, of its first piece."""

    def specs(self, name: str) -> Sequence[tuple[int | None, TensorSpec]]:
        """What headers say of each of a tensor's pieces, with its rank; None for the whole.

        Raises KeyError for an unknown name.
        """

    def pieces(self, name: str) -> Sequence[Piece]:
        """The same, with the places of the bytes."""

    def verify_checksums(self) -> Iterator[tuple[str, int]]:
        """Check those that the files have, yielding (file, bytes read)."""
