"""What ``torch.save`` wrote before torch 1.6: five pickles one after another, then the storages.

The pickles are a magic number, a protocol number, facts about the machine, the object, and the keys of
its storages; then, for each key in that order, the number of elements (int64) and their bytes. Source:
torch/serialization.py, ``_legacy_save`` and ``_legacy_load``.
"""

from __future__ import annotations

import pickletools
import struct
from typing import Any, Final

from ...errors import CorruptCheckpoint, UnsafeCheckpoint, UnsupportedError
from ...stores.files import SourceFile
from .pickles import MAX_BYTES, MAX_OPCODES, Known, loads
from .tensors import Storage, TensorRef, persistent_storage
from .zip import MAX_RECORDS

#: the first pickle, as protocol 2 writes it: the long 0x1950a86a20f9469cfc6c
MAGIC: Final = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_PROTOCOL: Final = 1001
_COUNT = struct.Struct("<q")
_BLOCK: Final = 1 << 20
_MAX_LINE: Final = 4096


class LegacyFile:
    """The object at [offset, offset + length) of a file, and where its storages lie."""

    def __init__(self, file: SourceFile, offset: int, length: int, known: Known) -> None:
        self._file = file
        self._stream = _Stream(file, offset, offset + length)
        self._storages: dict[str, Storage] = {}
        self._load({}, "magic number")
        if self._load({}, "protocol") != _PROTOCOL:
            raise CorruptCheckpoint(f"{file.path}: is of an unknown version of torch's older layout")
        machine = self._load({}, "machine")
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise UnsupportedError(
                f"{file.path}: written on a big-endian machine", hint="save it on a little-endian"
            )
        self.value = self._load(known, "object")
        self._places = self._place_storages()

    def _load(self, known: Known, what: str) -> Any:
        data = self._stream.pickle(what)
        where = f"{self._file.path}: {what}"
        return loads(data, known=known, where=where, persistent_load=self._storage)

    def _storage(self, key: Any) -> Storage:
        """The id of the zip layout and, as a sixth part, a view of another storage (torch 0.3)."""
        if type(key) is not tuple or len(key) not in (5, 6) or (len(key) == 6 and key[5] is not None):
            raise UnsupportedError(
                "a storage that is a view of another, or a module with its source code",
                hint="load and save it once more with torch",
            )
        storage = persistent_storage(key[:5])
        if self._storages.setdefault(storage.key, storage).nbytes != storage.nbytes:
            raise CorruptCheckpoint(f"two sizes for the storage {storage.key[:100]!r}")
        return storage

    def _place_storages(self) -> dict[str, int]:
        path = self._file.path
        keys = self._load({}, "keys")
        if not isinstance(keys, list) or len(keys) > MAX_RECORDS:
            raise CorruptCheckpoint(f"{path}: the keys of its storages are no list")
        places: dict[str, int] = {}
        at = self._stream.at
        for key in keys:
            storage = self._storages.get(key) if isinstance(key, str) else None
            if storage is None or key in places:
                raise CorruptCheckpoint(f"{path}: the object does not name its storages once each")
            (count,) = _COUNT.unpack(self._file.pread(_COUNT.size, at))
            itemsize = storage.dtype.itemsize if storage.dtype else 1
            if count * itemsize != storage.nbytes:
                raise CorruptCheckpoint(
                    f"{path}: the storage at byte {at:,} has {count:,} elements, which are not the "
                    f"{storage.nbytes:,} bytes that its tensors tell of"
                )
            places[key] = at + _COUNT.size
            at = places[key] + storage.nbytes
        if at != self._stream.end:
            raise CorruptCheckpoint(
                f"{path}: its storages end at byte {at:,}, the file at {self._stream.end:,}",
                hint="the copy looks cut short; compare its size with the original",
            )
        missing = self._storages.keys() - places.keys()
        if missing:
            raise CorruptCheckpoint(f"{path}: {len(missing)} storages of its tensors are missing")
        return places

    def place(self, tensor: TensorRef) -> int:
        return self._places[tensor.storage.key] + tensor.storage_offset * tensor.dtype.itemsize


class _Stream:
    """What pickletools reads from: a window of a file, of which no more is read than pickles hold."""

    def __init__(self, file: SourceFile, at: int, end: int) -> None:
        self._file, self.at, self.end = file, at, end
        self._start = at
        self._block = b""

    def read(self, size: int) -> bytes:
        size = min(size, self.end - self.at)
        if self.at + size - self._start > MAX_BYTES:
            raise UnsafeCheckpoint(
                f"{self._file.path}: a pickle of more than the {MAX_BYTES:,} bytes allowed"
            )
        while len(self._block) < size:
            place = self.at + len(self._block)
            self._block += self._file.pread(min(_BLOCK, self.end - place), place)
        data, self._block = self._block[:size], self._block[size:]
        self.at += size
        return data

    def readline(self) -> bytes:
        end = self._block.find(b"\n")
        if end < 0:
            self._block += self._file.pread(
                min(_MAX_LINE, self.end - self.at - len(self._block)), self.at + len(self._block)
            )
            end = self._block.find(b"\n")
        if not 0 <= end < _MAX_LINE:
            raise ValueError("a line that is too long")
        return self.read(end + 1)

    def tell(self) -> int:
        return self.at

    def pickle(self, what: str) -> bytes:
        """The bytes of the pickle that starts here. Nothing of it is interpreted but where it ends."""
        self._start = self.at
        try:
            for count, _ in enumerate(pickletools.genops(self)):  # type: ignore[arg-type]
                if count > MAX_OPCODES:
                    raise UnsafeCheckpoint(
                        f"{self._file.path}: a pickle of more than {MAX_OPCODES:,} opcodes"
                    )
        except (ValueError, IndexError, OverflowError, struct.error) as error:
            if isinstance(error, UnsafeCheckpoint):
                raise
            raise CorruptCheckpoint(
                f"{self._file.path}: the {what} at byte {self._start:,} is no whole pickle",
                hint="the copy may be damaged; compare its checksum with the original",
            ) from None
        return self._file.pread(self.at - self._start, self._start)
