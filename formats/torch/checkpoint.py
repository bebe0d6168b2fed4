"""Whole files of ``torch.save``: a state dict of many tensors (``model_weights.ckpt``, ``*.pt``, ``*.pth``).

Both layouts are read in place: the zip archive (:mod:`nemoconv.formats.torch.zip`) and what torch
before 1.6 wrote (:mod:`nemoconv.formats.torch.legacy`). Zip archives are written, with every offset
known before the first byte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final, Protocol

from ...errors import CorruptCheckpoint, UnsupportedFormat
from ...stores.files import SourceFile
from ...tensors import checksum
from ...tensors.dtypes import DType
from ...tensors.stored import Extent, StoredTensor
from . import items as torch_items
from . import legacy as torch_legacy
from . import pickle_writer as opcodes
from . import zip as torch_zip
from . import zip_records
from .common import COMMON_KNOWN
from .pickle_writer import PickleWriter
from .pickles import Known, PickledDict, Stub, check_bounded
from .tensors import TensorRef
from .zip import Archive, Record

_ZIP_MAGIC: Final = b"PK\x03\x04"

#: classes met beside the weights in checkpoints of Lightning and Megatron-LM, all of them inert.
#: Sources: lightning/pytorch/utilities/parsing.py, omegaconf's and megatron/training's pickles
_LIGHTNING: Final = ("lightning.pytorch", "pytorch_lightning", "lightning_fabric", "lightning.fabric")
STATE_DICTS_KNOWN: Final[Known] = {
    **COMMON_KNOWN,
    **{(f"{package}.utilities.parsing", "AttributeDict"): PickledDict for package in _LIGHTNING[:2]},
    **{(f"{package}.utilities.data", "AttributeDict"): PickledDict for package in _LIGHTNING[2:]},
    **dict.fromkeys(
        [
            ("omegaconf.dictconfig", "DictConfig"),
            ("omegaconf.listconfig", "ListConfig"),
            ("omegaconf.base", "ContainerMetadata"),
            ("omegaconf.base", "Metadata"),
            ("omegaconf.base", "SCMode"),
            *(("omegaconf.nodes", f"{kind}Node") for kind in "Any Boolean Bytes Enum Float".split()),
            *(("omegaconf.nodes", f"{kind}Node") for kind in "Integer Path String".split()),
            ("typing", "Any"),
            ("typing", "Union"),
            ("typing", "Optional"),
            ("typing", "Dict"),
            ("typing", "List"),
            *((module, name) for module in ("builtins", "__builtin__") for name in ("str", "float", "bool")),
            ("megatron.model.enums", "ModelType"),
            ("megatron.model.enums", "AttnMaskType"),
            ("megatron.core.transformer.enums", "AttnMaskType"),
            ("megatron.enums", "ModelType"),
        ],
        Stub,
    ),
}


class _Layout(Protocol):
    """One of the two layouts: an object, and where the tensors in it lie."""

    value: Any

    def place(self, tensor: TensorRef) -> int: ...


class _Zip:
    """The zip layout at [offset, offset + length) of a file."""

    def __init__(self, file: SourceFile, offset: int, length: int, known: Known) -> None:
        self._file = file
        self._archive = Archive(file, offset, length, file.path)
        self.value = self._archive.load(known)

    def place(self, tensor: TensorRef) -> int:
        stored = self._archive.payload(tensor)
        if self._archive.has_checksums:
            name = f"record data/{tensor.storage.key}"
            self._file.expect(stored.record_offset, stored.record_nbytes, stored.crc32, name)
        return stored.offset


class TorchFile:
    """An open ``torch.save`` file, or one that lies at [offset, offset + length) of a file.

    ``value`` is the object it holds; tensors in it are :class:`TensorRef`, objects of other classes
    stubs. Only headers are read. Raises CorruptCheckpoint, UnsafeCheckpoint for names that no
    checkpoint needs, UnsupportedFormat for a file that torch did not write.
    """

    def __init__(
        self,
        file: SourceFile,
        offset: int = 0,
        length: int | None = None,
        *,
        known: Known = STATE_DICTS_KNOWN,
    ) -> None:
        self.file, self.offset = file, offset
        self.length = file.size - offset if length is None else length
        if not self.length:
            raise CorruptCheckpoint(f"{file.path}: is empty", hint="the copy is not whole; make it again")
        start = file.pread(min(len(torch_legacy.MAGIC), self.length), offset)
        self.is_zip = start.startswith(_ZIP_MAGIC)
        if self.is_zip:
            self._layout: _Layout = _Zip(file, offset, self.length, known)
        elif start == torch_legacy.MAGIC:
            self._layout = torch_legacy.LegacyFile(file, offset, self.length, known)
        else:
            raise UnsupportedFormat(
                f"{file.path}: is no file of torch.save",
                hint="it starts with neither a zip archive nor the mark of torch before 1.6",
            )
        self.value = self._layout.value
        check_bounded(self.value, file.path)

    def tensor(self, name: str, tensor: TensorRef) -> StoredTensor:
        """Where the elements of a tensor of ``value`` lie."""
        itemsize = tensor.dtype.itemsize
        strides = tuple(step * itemsize for step in tensor.strides)
        place = self._layout.place(tensor)
        start = (0,) * len(tensor.shape)
        extents = (Extent(self.file, place, start, tensor.shape, strides),) if prod(tensor.shape) else ()
        return StoredTensor(name, tensor.dtype, tensor.shape, extents)

    def verify_crc(self) -> int:
        """Compare the checksums of the zip layout (the older has none); the bytes that were read."""
        return torch_zip.verify_crc(self.file, self.offset, self.length) if self.is_zip else 0


@dataclass(frozen=True, slots=True)
class StateDict:
    """A state dict: its tensors, what else it holds (``_extra_state``: None or bytes), and what stood
    around it (epoch, hyper-parameters, optimizer) in a checkpoint of Lightning's."""

    file: TorchFile
    tensors: dict[str, StoredTensor]
    others: dict[str, Any] = field(default_factory=dict)
    around: dict[str, Any] = field(default_factory=dict)


def read_state_dict(file: SourceFile, offset: int = 0, length: int | None = None) -> StateDict:
    """The state dict of a ``torch.save`` file: flat, nested, or under ``state_dict``.

    Names of nested dictionaries are joined by dots. Raises what :class:`TorchFile` raises, and
    CorruptCheckpoint for an object that is no state dict.
    """
    opened = TorchFile(file, offset, length)
    value, around = opened.value, {}
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        around = {str(key): item for key, item in value.items() if key != "state_dict"}
        value = value["state_dict"]
    if not isinstance(value, dict):
        raise CorruptCheckpoint(f"{file.path}: holds a {type(value).__name__}, not a state dict")
    tensors: dict[str, StoredTensor] = {}
    others: dict[str, Any] = {}
    for name, leaf in leaves(value, file.path):
        if name in tensors or name in others:
            raise CorruptCheckpoint(f"{file.path}: {name!r} is there twice")
        if isinstance(leaf, TensorRef) and not name.endswith("_extra_state"):
            tensors[name] = opened.tensor(name, leaf)
        else:
            others[name] = leaf
    return StateDict(opened, tensors, others, around)


def leaves(value: Mapping[Any, Any], where: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything in nested dictionaries, in order.

    Raises CorruptCheckpoint for a name that is no text.
    """
    for key, item in value.items():
        if not isinstance(key, str):
            raise CorruptCheckpoint(f"{where}: a state dict with a key that is a {type(key).__name__}")
        if isinstance(item, dict):
            yield from leaves(item, where, f"{prefix}{key}.")
        else:
            yield prefix + key, item


# Writing

_PADDING: Final = b"FB"  # the extra field that torch pads with
#: (dtype, shape) of a tensor, the name of the tensor that it shares its bytes with, or None
Entry = tuple[DType, tuple[int, ...]] | str | None


class StateDictItem:
    """The archive of an OrderedDict of contiguous tensors, to stand at byte ``offset`` of a file.

    ``entries`` gives (dtype, shape) of each tensor, None for a name whose value is None, or the name of
    the tensor that this one is (tied weights, of which torch keeps the bytes once). Write the
    bytes of tensor i at ``payload_offsets[i]`` (a multiple of ``alignment`` in the file) and, at any
    time, what :meth:`frames` yields. The archive has ``length`` bytes. torch names the folder inside
    it, ``root``, after the file. ``pickled`` is a data.pkl to use instead, whose tensors are the records
    ``data/0``, ``data/1`` and so on in the order of ``entries``.
    """

    def __init__(
        self,
        entries: Mapping[str, Entry],
        offset: int = 0,
        *,
        root: str = "model_weights",
        alignment: int = 64,
        pickled: bytes | None = None,
    ) -> None:
        self.offset = offset
        self._root = root.encode() + b"/"
        kinds = [entry for entry in entries.values() if isinstance(entry, tuple)]
        self.nbytes = [prod(shape) * dtype.itemsize for dtype, shape in kinds]
        self._front = bytearray()
        self._fixed: list[Record] = []
        self._add_small("data.pkl", pickled if pickled is not None else _pickle(entries))
        self._add_small("byteorder", b"little")
        self._add_small("version", b"3\n")
        at = len(self._front)
        self._headers: list[int] = []
        self._extras: list[bytes] = []
        offsets: list[int] = []
        for number, nbytes in enumerate(self.nbytes):
            name = self._name(number)
            bare = at + len(zip_records.local_header(name, nbytes, 0)) + 4
            padding = -(offset + bare) % alignment
            self._headers.append(at)
            self._extras.append(struct.pack("<2sH", _PADDING, padding) + b"Z" * padding)
            offsets.append(offset + bare + padding)
            at = bare + padding + nbytes
        #: of each tensor, in the file
        self.payload_offsets: tuple[int, ...] = tuple(offsets)
        self._end = at
        self.length = at + len(self._directory([0] * len(offsets)))

    def _name(self, number: int) -> bytes:
        return self._root + b"data/%d" % number

    def _add_small(self, name: str, data: bytes) -> None:
        record = Record(name, len(self._front), len(data), checksum.crc32(data), 0)
        self._fixed.append(record)
        full = self._root + name.encode()
        self._front += zip_records.local_header(full, len(data), record.crc32) + data

    def _directory(self, crc32s: Sequence[int]) -> bytes:
        entries = [(self._root + r.name.encode(), r.nbytes, r.crc32, r.header) for r in self._fixed]
        entries += [
            (self._name(number), nbytes, crc32, header)
            for number, (nbytes, crc32, header) in enumerate(
                zip(self.nbytes, crc32s, self._headers, strict=True)
            )
        ]
        return zip_records.central_directory(entries, self._end)

    def frames(self, crc32s: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """(offset in the file, bytes) of all that is not tensors; ``crc32s`` are those of the tensors."""
        yield self.offset, bytes(self._front)
        rows = zip(self.nbytes, crc32s, self._headers, self._extras, strict=True)
        for number, (nbytes, crc32, header, extra) in enumerate(rows):
            yield self.offset + header, zip_records.local_header(self._name(number), nbytes, crc32, extra)
        yield self.offset + self._end, self._directory(crc32s)


def _pickle(entries: Mapping[str, Entry]) -> bytes:
    """data.pkl of an OrderedDict, each tensor with a storage of its own."""
    writer = PickleWriter()
    writer.name("collections", "OrderedDict")
    writer.raw(opcodes.EMPTY_TUPLE + opcodes.REDUCE + opcodes.MARK)
    own = [name for name, entry in entries.items() if isinstance(entry, tuple)]
    numbers = {name: str(number) for number, name in enumerate(own)}
    for name, entry in entries.items():
        writer.text(name)
        first = entry if isinstance(entry, str) else name
        described = entries[first]
        if isinstance(described, tuple):
            torch_items.put_tensor(writer, *described, numbers[first])
        else:
            writer.raw(opcodes.NONE)
    writer.raw(opcodes.SETITEMS)
    return writer.finish()
