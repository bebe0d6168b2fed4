"""What only some checkpoints can do: small protocols, each asked for with ``isinstance`` at one place.

A format whose checkpoints have none of a kind says nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from ..stores.files import Folder, SourceDir, SourceFile
from ..tensors.dtypes import DType
from ..tensors.stored import StoredTensor
from .base import Checkpoint


@runtime_checkable
class Quantized(Protocol):
    """Some tensors may be codes and scales, which are decoded as they are read."""

    def decode_as(self, dtype: DType | None) -> None:
        """Quantized tensors are to be read as ``dtype``, None for bfloat16; others stay as they are."""


@runtime_checkable
class Checksummed(Protocol):
    """The format itself has checksums."""

    def verify_checksums(self) -> Iterator[tuple[str, int]]:
        """Check them, yielding (file, bytes read) on the way. Raises CorruptCheckpoint."""


@runtime_checkable
class Repeating(Protocol):
    """Some tensors may be there more than once."""

    def copies(self) -> Iterator[tuple[StoredTensor, StoredTensor]]:
        """What must be equal bit for bit: (a copy, the one that is read)."""


@runtime_checkable
class HasOptimizer(Protocol):
    """Sets of tensors may go along with the model's under the same names."""

    def companions(self) -> Mapping[str, Checkpoint]:
        """Each set, such as a moment of the optimizer, as a checkpoint of its own.

        Raises UnsupportedError for state that is not kept for each parameter.
        """


@runtime_checkable
class Layered(Protocol):
    """Layers can be taken out."""

    def keep_layers(self, chosen: Sequence[int]) -> None:
        """Be, from now on, the model of these layers only, numbered from 0 in their order.

        Raises UsageError for layers that are not there, UnsupportedConfig where layers are not alike.
        """


@runtime_checkable
class PadsVocabulary(Protocol):
    """Whoever loads it pads the vocabulary by itself."""

    @property
    def vocab_divisor(self) -> int | None:
        """To a multiple of this times the tensor-parallel size; None where the stored rows are taken as they
        are."""


@runtime_checkable
class Tokenized(Protocol):
    """A tokenizer may lie beside the weights."""

    @property
    def tokenizer_files(self) -> Mapping[str, SourceFile]:
        """Its files by their Hugging Face names."""


@runtime_checkable
class Viewed(Protocol):
    """It is not the same for all formats."""

    def view_for(self, name: str) -> Checkpoint:
        """As a conversion into the format ``name`` sees it. Raises UnsupportedArchitecture where it cannot be
        seen so."""


@runtime_checkable
class Selectable(Protocol):
    """Which of several models it is may be left open."""

    def view_beside(self, other: Checkpoint) -> Checkpoint:
        """As a comparison with ``other`` sees it: the model that ``other`` is, if nobody chose."""


@runtime_checkable
class PlainTensors(Protocol):
    """Under the names that it has itself there are other tensors than those of :meth:`Checkpoint.keys`."""

    def plain(self) -> Mapping[str, StoredTensor]:
        """All of them. Raises UnsupportedError where something that holds numbers would be left out."""


@runtime_checkable
class Accompanied(Protocol):
    """Files go along when its tensors are written as they are."""

    def plain_files(self) -> Mapping[str, SourceFile | bytes]:
        """By the names that they get beside the tensors."""


@runtime_checkable
class Filed(Protocol):
    """Its files are not simply those of its directory."""

    def open_folder(self) -> Folder | None:
        """They by name, to be compared with a manifest; None if there can be none."""


def seen_by(source: Checkpoint, name: str) -> Checkpoint:
    """A checkpoint as a conversion into the format ``name`` sees it."""
    return source.view_for(name) if isinstance(source, Viewed) else source


def seen_beside(source: Checkpoint, other: Checkpoint) -> Checkpoint:
    """A checkpoint as a comparison with ``other`` sees it."""
    if isinstance(source, Selectable):
        return source.view_beside(other)
    return seen_by(source, other.format)


def plain_tensors(source: Checkpoint) -> Mapping[str, StoredTensor]:
    """All tensors of a checkpoint under the names that it gives them itself."""
    if isinstance(source, PlainTensors):
        return source.plain()
    return {name: source.stored(name) for name in source.keys()}  # noqa: SIM118 - not a mapping


def folder_of(source: Checkpoint) -> Folder | None:
    """A checkpoint's files by name, None where they cannot be told."""
    return source.open_folder() if isinstance(source, Filed) else SourceDir(source.path)
