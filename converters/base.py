"""What a format (:mod:`nemoconv.converters.format`) gives: an open checkpoint to read, a writer to fill."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from ..errors import UsageError
from ..mappings.hf.fields import Value
from ..mappings.table import Table
from ..stores.files import SourceFile
from ..tensors.dtypes import DType
from ..tensors.layout import Layout
from ..tensors.stored import StoredTensor

if TYPE_CHECKING:
    import numpy

#: the names a checkpoint's tensors have: Hugging Face's or Megatron's
Side = Literal["hf", "nemo"]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What headers say of a tensor."""

    name: str
    dtype: DType
    shape: Shape

    @property
    def nbytes(self) -> int:
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return size


@dataclass(frozen=True, slots=True)
class Piece:
    """What one rank holds of a tensor, as the rank's own file has it: which box of the whole that is, or
    whether it is a replica, only a rule can tell. ``rank`` counts as in :meth:`Layout.rank`; None for a
    tensor that lies there whole."""

    name: str
    rank: int | None
    stored: StoredTensor


@dataclass(frozen=True, slots=True)
class Request:
    """A box of a tensor to be written: for rank-cut formats a chunk, otherwise the whole tensor."""

    name: str
    dtype: DType
    shape: Shape
    start: Shape
    box: Shape
    rank: int = 0


@dataclass(frozen=True, slots=True)
class StorageForm:
    """How a checkpoint keeps tensors otherwise than their table means them; who joins them undoes it.

    ``shifted`` are the names of tensors that hold 1 more than they mean. ``in_blocks``: each rank has q, k
    and v of all its heads one below the other, where rules have those of each head together.
    """

    shifted: frozenset[str] = frozenset()
    in_blocks: bool = False


@dataclass(slots=True)
class Model:
    """A model apart from its weights: what one format understood and another writes down.

    ``config`` is the model config in Megatron's names, ``table`` the architecture it belongs to.
    ``inert`` are the config.json keys that do not enter the mathematics and are carried along.
    ``files`` are tokenizer files and the like by their Hugging Face names. ``storage`` is of the checkpoint
    that was read, not of the model. ``notes`` are for the report.
    """

    table: Table
    config: dict[str, Value]
    inert: dict[str, Value] = field(default_factory=dict)
    files: dict[str, SourceFile | bytes] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    #: sizes of factors as the target has them; known once a conversion is planned
    sizes: Mapping[str, int] = field(default_factory=dict)
    storage: StorageForm = field(default_factory=StorageForm)
    notes: list[str] = field(default_factory=list)


class Opened(ABC):
    """Something that holds files open, for ``with``."""

    @abstractmethod
    def close(self) -> None:
        """Release the files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Checkpoint(Opened):
    """An open checkpoint: names, types and shapes from headers, data only when asked for.

    Names are those of ``side``, one per layer, whatever the files stack or cut. What only some checkpoints
    can do is in :mod:`nemoconv.converters.abilities`.
    """

    format: ClassVar[str]
    side: ClassVar[Side]
    path: Path
    layout: Layout = Layout()
    #: False for tensors of which nothing says what model they are
    has_model: ClassVar[bool] = True

    @abstractmethod
    def keys(self) -> Sequence[str]:
        """Tensor names."""

    @abstractmethod
    def spec(self, name: str) -> TensorSpec:
        """Type and shape of a tensor. Raises KeyError for an unknown name."""

    def dtype(self, name: str) -> DType:
        """The element type of a tensor."""
        return self.spec(name).dtype

    @abstractmethod
    def stored(self, name: str) -> StoredTensor:
        """Where the bytes of a tensor lie; its extents tile it."""

    @property
    def cut(self) -> bool:
        """Whether ranks hold pieces of some tensors."""
        return False

    def joins(self, name: str) -> bool:
        """Whether the whole of a tensor is known. Where ranks hold pieces and no rule says how they join,
        it is not: then ``spec``, ``stored`` and ``read`` refuse, and :meth:`pieces` has what is there."""
        return True

    def pieces(self, name: str) -> Sequence[Piece]:
        """What lies in the files of a tensor: the whole, or what each rank holds, in the order of ranks."""
        return [Piece(name, None, self.stored(name))]

    @property
    @abstractmethod
    def config(self) -> Mapping[str, Value]:
        """The config as the Hugging Face config.json has or would have it."""

    @abstractmethod
    def model(self, allow_ignored: Sequence[str] = ()) -> Model:
        """The table and model config. Raises UnsupportedArchitecture, UnsupportedConfig."""

    @abstractmethod
    def describe(self) -> dict[str, Value]:
        """Format-specific facts for ``inspect``: writer, layout, files."""

    def skipped(self) -> Mapping[str, int]:
        """Things in the checkpoint that are not weights of the model, and how many of each."""
        return {}

    def notes(self) -> Sequence[str]:
        """What a report should say of how this checkpoint is read."""
        return ()

    def read(self, name: str, index: tuple[slice | int, ...] | None = None) -> numpy.ndarray[Any, Any]:
        """The tensor, or the part of it that ``index`` (slices with step 1, or integers) selects.

        Only the bytes of that part are read. bfloat16 and float8 come as ml_dtypes' numpy types.
        """
        from ..tensors.read import read_box

        tensor = self.stored(name)
        start, shape, squeeze = _box(name, tensor.shape, index)
        array = read_box(tensor, start, shape)
        return array.reshape([n for axis, n in enumerate(shape) if axis not in squeeze])


def holdings(checkpoint: Checkpoint) -> Iterator[tuple[int | None, TensorSpec]]:
    """(None, what headers say) of every tensor whose whole is known, (rank, ...) of every piece of others."""
    for name in checkpoint.keys():  # noqa: SIM118 - not a mapping
        if checkpoint.joins(name):
            yield None, checkpoint.spec(name)
            continue
        for piece in checkpoint.pieces(name):
            yield piece.rank, TensorSpec(name, piece.stored.dtype, piece.stored.shape)


class HeldTensors(Checkpoint):
    """A checkpoint that knows where all its tensors lie from the moment it is open."""

    _tensors: Mapping[str, StoredTensor]

    def keys(self) -> Sequence[str]:
        return list(self._tensors)

    def spec(self, name: str) -> TensorSpec:
        tensor = self._tensors[name]
        return TensorSpec(name, tensor.dtype, tensor.shape)

    def stored(self, name: str) -> StoredTensor:
        return self._tensors[name]


def _box(
    name: str, shape: Shape, index: tuple[slice | int, ...] | None
) -> tuple[Shape, Shape, frozenset[int]]:
    index = index if index is not None else ()
    if len(index) > len(shape):
        raise UsageError(f"{name} has {len(shape)} axes, the index {len(index)}")
    start, size, squeeze = [], [], set()
    for axis, length in enumerate(shape):
        item = index[axis] if axis < len(index) else slice(None)
        if isinstance(item, int):
            item = slice(item + length if item < 0 else item, (item + length if item < 0 else item) + 1)
            squeeze.add(axis)
            if not 0 <= item.start < length:
                raise UsageError(f"{name}: index {item.start} is outside an axis of length {length}")
        first, last, step = item.indices(length)
        if step != 1:
            raise UsageError(f"{name}: only slices with step 1 can be read")
        start.append(first)
        size.append(max(0, last - first))
    return tuple(start), tuple(size), frozenset(squeeze)
