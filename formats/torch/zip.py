"""Reading the zip archives of ``torch.save`` in place, without torch; :mod:`.items` writes them,
:mod:`.tensors` knows what is pickled in them.

An archive holds ``<root>/data.pkl`` (a pickle of the object, protocol 2), ``<root>/byteorder``,
``<root>/version`` and one record ``<root>/data/<key>`` a storage, all of them stored, never
compressed. Sources: torch/serialization.py (``_save``, ``_load``),
caffe2/serialize/inline_container.cc (padding, zip64), and PKWARE's APPNOTE.TXT.

In a ``.distcp`` file many archives follow one another; so every function here takes a place in a file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Protocol

from ...errors import CorruptCheckpoint, NemoconvError, UnsafeCheckpoint, UnsupportedError
from ...stores.files import SourceFile
from ...tensors import checksum
from ...tensors.dtypes import DType
from .pickles import MAX_BYTES, Known, loads
from .tensors import TENSORS_KNOWN, TensorRef, persistent_storage
from .zip_records import CENTRAL, END, END64, ENTRY, FULL16, FULL32, LOCAL, LOCATOR64

#: a legacy .ckpt holds one record a tensor; no model comes near this
MAX_RECORDS: Final = 200_000

_BLOCK: Final = 1 << 20
#: torch 2.13 puts the first 704 bytes before the payload and 800 to 900 after it
_HEAD: Final = 1024
_TAIL: Final = 1536


class Source(Protocol):
    """What is read at offsets: a SourceFile, or bytes in memory."""

    def pread(self, size: int, offset: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of the central directory; ``header`` is counted from the start of the archive."""

    name: str
    header: int
    nbytes: int
    crc32: int
    flags: int


_CACHED_PICKLE: Final = 2048


@lru_cache(maxsize=1024)
def _load_tensor(data: bytes) -> TensorRef:
    # The chunks of one tensor have equal pickles, and a checkpoint has thousands of chunks.
    tensor = loads(data, known=TENSORS_KNOWN, where="data.pkl", persistent_load=persistent_storage)
    if type(tensor) is not TensorRef:
        raise CorruptCheckpoint("data.pkl: holds no tensor")
    return tensor


class Archive:
    """The records of one torch.save archive at [offset, offset + length) of ``source``.

    Names are without the root directory. Raises CorruptCheckpoint when the directory does not
    describe the bytes, UnsafeCheckpoint for what readers could understand differently: two records
    of one name, compressed or overlapping records.
    """

    __slots__ = ("_head", "_source", "_tail", "length", "offset", "records", "where")

    def __init__(
        self,
        source: Source,
        offset: int,
        length: int,
        where: str,
        *,
        max_records: int = MAX_RECORDS,
    ) -> None:
        self.where = where
        self._source = source
        self.offset = offset
        self.length = length
        if length < END.size:
            raise self._corrupt(f"{length} bytes are no torch.save archive")
        if length <= _HEAD + _TAIL:
            self._head = self._tail = source.pread(length, offset)
        else:
            self._tail = source.pread(_TAIL, offset + length - _TAIL)
            self._head = b""  # read when the directory turns out to be sound
        self.records = self._directory(max_records)
        if not self._head:
            self._head = source.pread(_HEAD, offset)

    def _corrupt(self, what: str) -> CorruptCheckpoint:
        return CorruptCheckpoint(
            f"{self.where}: {what}",
            hint="the file may be cut short or damaged; compare it with the original",
        )

    def read(self, size: int, start: int) -> bytes:
        """``size`` bytes at ``start`` of the archive."""
        if start < 0 or size < 0 or start + size > self.length:
            raise self._corrupt(f"bytes {start:,}..{start + size:,} lie outside the archive")
        if start + size <= len(self._head):
            return self._head[start : start + size]
        if start >= self.length - len(self._tail):
            start -= self.length - len(self._tail)
            return self._tail[start : start + size]
        return self._source.pread(size, self.offset + start)

    def _directory(self, max_records: int) -> dict[str, Record]:
        end = self.length - END.size
        magic, disk, disk2, count2, count, size, start, comment = END.unpack(self.read(END.size, end))
        if magic != 0x06054B50 or comment or disk or disk2 or count != count2:
            raise self._corrupt("no zip directory at its end, so this is not a torch.save archive")
        locator = end - LOCATOR64.size
        if locator >= 0 and self.read(4, locator) == b"PK\x06\x07":
            end = LOCATOR64.unpack(self.read(LOCATOR64.size, locator))[2]
            if end + END64.size > locator:
                raise self._corrupt("the zip64 directory lies outside the archive")
            magic, _, _, _, disk, disk2, count2, count64, size64, start64 = END64.unpack(
                self.read(END64.size, end)
            )
            narrow = ((count, count64, FULL16), (size, size64, FULL32), (start, start64, FULL32))
            if magic != 0x06064B50 or any(a not in (b, full) for a, b, full in narrow):
                raise self._corrupt("its two zip directories contradict each other")
            count, size, start = count64, size64, start64
        if start + size > end or count * CENTRAL.size > size:
            raise self._corrupt("the zip directory lies outside the archive")
        if count > max_records:
            raise UnsafeCheckpoint(f"{self.where}: {count:,} records, more than the {max_records:,} allowed")
        return self._entries(self.read(size, start), count, start)

    def _entries(self, raw: bytes, count: int, limit: int) -> dict[str, Record]:
        records: dict[str, Record] = {}
        root = ""
        at = 0
        ordered = True
        covered = 0
        for _ in range(count):
            if at + CENTRAL.size > len(raw):
                raise self._corrupt("the zip directory is cut short")
            magic, flags, method, crc, packed, nbytes, name_size, extra_size, notes, header = (
                ENTRY.unpack_from(raw, at)
            )
            at += CENTRAL.size
            after = at + name_size + extra_size + notes
            if magic != 0x02014B50 or after > len(raw):
                raise self._corrupt("the zip directory is damaged")
            try:
                full = raw[at : at + name_size].decode("utf-8")
            except UnicodeDecodeError:
                raise self._corrupt("a record whose name is not UTF-8") from None
            if FULL32 in (nbytes, packed, header):
                extra = raw[at + name_size : at + name_size + extra_size]
                nbytes, packed, header = self._wide(extra, nbytes, packed, header)
            at = after
            if not root:
                root = full.partition("/")[0] + "/"
            name = full[len(root) :]
            if not name or not full.startswith(root) or root == "/":
                raise self._corrupt(f"a record named {full[:100]!r} outside {root[:100]!r}")
            if method != 0 or packed != nbytes or flags & 0x2041:
                raise UnsafeCheckpoint(
                    f"{self.where}: record {name[:100]!r} is compressed or encrypted,"
                    " which torch.save never does",
                    hint="save the checkpoint again with torch.save",
                )
            if name in records:
                raise UnsafeCheckpoint(f"{self.where}: two records are named {name[:100]!r}")
            if header + LOCAL.size + name_size + nbytes > limit:
                raise self._corrupt(f"record {name[:100]!r} reaches beyond the zip directory")
            ordered = ordered and header >= covered
            covered = header + LOCAL.size + name_size + nbytes
            records[name] = Record(name, header, nbytes, crc, flags)
        if not ordered:
            self._check_overlap(records, len(root))
        return records

    def _wide(self, extra: bytes, *sizes: int) -> list[int]:
        """The 64-bit sizes and offset of the zip64 field, for those that do not fit in 32 bits."""
        at = 0
        while at + 4 <= len(extra):
            tag, count = struct.unpack_from("<HH", extra, at)
            if tag == 1:
                missing = sum(size == FULL32 for size in sizes)
                if count < 8 * missing or at + 4 + count > len(extra):
                    break
                wide = iter(struct.unpack_from(f"<{missing}Q", extra, at + 4))
                return [next(wide) if size == FULL32 else size for size in sizes]
            at += 4 + count
        raise self._corrupt("a record of 4 GiB or more without its zip64 sizes")

    def _check_overlap(self, records: dict[str, Record], root: int) -> None:
        covered = 0
        for record in sorted(records.values(), key=lambda record: record.header):
            if record.header < covered:
                raise UnsafeCheckpoint(f"{self.where}: record {record.name[:100]!r} overlaps another one")
            name_size = root + len(record.name.encode())
            covered = record.header + LOCAL.size + name_size + record.nbytes

    def record(self, name: str) -> Record:
        found = self.records.get(name)
        if found is None:
            raise self._corrupt(f"record {name[:100]!r} is missing")
        return found

    @property
    def has_checksums(self) -> bool:
        """False for what torch wrote after ``set_crc32_options(False)``: zeros take their place."""
        return any(record.crc32 for record in self.records.values())

    def start(self, record: Record) -> int:
        """Where the bytes of ``record`` start in the archive, from its local header."""
        magic, _, flags, method, _, _, crc, packed, nbytes, name_size, extra_size = LOCAL.unpack(
            self.read(LOCAL.size, record.header)
        )
        start: int = record.header + LOCAL.size + name_size + extra_size
        raw = self.read(name_size, record.header + LOCAL.size)
        if magic != 0x04034B50 or method or raw.partition(b"/")[2] != record.name.encode():
            raise self._corrupt(f"record {record.name[:100]!r} has a damaged header")
        # bit 3: torch 2 writes sizes and checksum behind the data, and again in the directory
        if not flags & 8 and (
            crc != record.crc32
            or packed not in (record.nbytes, FULL32)
            or nbytes not in (record.nbytes, FULL32)
        ):
            raise self._corrupt(
                f"record {record.name[:100]!r} is described in two ways that contradict each other"
            )
        if start + record.nbytes > self.length:
            raise self._corrupt(f"record {record.name[:100]!r} reaches beyond the archive")
        return start

    def bytes_of(self, name: str, limit: int = MAX_BYTES) -> bytes:
        """The whole of a small record."""
        record = self.record(name)
        if record.nbytes > limit:
            raise UnsafeCheckpoint(
                f"{self.where}: {name} has {record.nbytes:,} bytes, more than the {limit:,} allowed"
            )
        return self.read(record.nbytes, self.start(record))

    def check_byteorder(self) -> None:
        """Raise UnsupportedError for an archive of a big-endian machine."""
        if "byteorder" in self.records and self.bytes_of("byteorder", 16) != b"little":
            raise UnsupportedError(
                f"{self.where}: written on a big-endian machine", hint="save it on a little-endian"
            )

    def load(self, known: Known = TENSORS_KNOWN) -> Any:
        """The object of data.pkl, its tensors as TensorRef."""
        self.check_byteorder()
        where = f"{self.where}: data.pkl"
        data = self.bytes_of("data.pkl")
        return loads(data, known=known, where=where, persistent_load=persistent_storage)

    def load_tensor(self) -> TensorRef:
        """The one tensor that data.pkl describes."""
        self.check_byteorder()
        data = self.bytes_of("data.pkl")
        try:
            return (_load_tensor if len(data) <= _CACHED_PICKLE else _load_tensor.__wrapped__)(data)
        except NemoconvError as error:
            raise type(error)(f"{self.where}: {error.message}", hint=error.hint) from None

    def payload(self, tensor: TensorRef) -> StoredPayload:
        """Where the bytes of ``tensor`` are in the file."""
        record = self.record(f"data/{tensor.storage.key}")
        if record.nbytes != tensor.storage.nbytes:
            raise self._corrupt(
                f"record {record.name!r} has {record.nbytes:,} bytes, but data.pkl says"
                f" {tensor.storage.nbytes:,}"
            )
        start = self.offset + self.start(record)
        return StoredPayload(
            tensor.dtype,
            tensor.shape,
            tensor.strides,
            start + tensor.storage_offset * tensor.dtype.itemsize,
            start,
            record.nbytes,
            record.crc32,
        )


@dataclass(frozen=True, slots=True)
class StoredPayload:
    """A tensor inside an archive. ``strides`` count elements, all offsets bytes of the file.

    ``offset`` is the byte of element [0, ..., 0]; ``record_offset``, ``record_nbytes`` and
    ``crc32`` describe the whole record, of which the tensor may be a part.
    """

    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    record_offset: int
    record_nbytes: int
    crc32: int


def _archive(file: SourceFile, offset: int, length: int) -> Archive:
    return Archive(file, offset, length, f"{file.path}: item at byte {offset:,}")


def locate(file: SourceFile, offset: int, length: int, name: str = "the tensor") -> StoredPayload:
    """Where the tensor ``name`` of the torch.save archive at [offset, offset + length) has its bytes.

    Reads the head and the tail of the archive, not the payload. Who then reads the payload with ``file``
    has it compared with the checksum that is stored with it.
    """
    archive = _archive(file, offset, length)
    stored = archive.payload(archive.load_tensor())
    if archive.has_checksums:
        file.expect(stored.record_offset, stored.record_nbytes, stored.crc32, name)
    return stored


def verify_crc(file: SourceFile, offset: int, length: int) -> int:
    """Compare the checksum of every record of an archive that has them; the number of bytes that were read.

    torch never compares them, so a flipped bit in a weight goes unnoticed there. Raises
    CorruptCheckpoint with the name of the damaged record.
    """
    archive = _archive(file, offset, length)
    buffer = memoryview(bytearray(_BLOCK))
    total = 0
    for record in archive.records.values() if archive.has_checksums else ():
        at = offset + archive.start(record)
        crc, left = 0, record.nbytes
        while left:
            block = buffer[: min(left, _BLOCK)]
            file.read_into(at, block)
            crc = checksum.crc32(block, crc)
            at += len(block)
            left -= len(block)
        if crc != record.crc32:
            raise CorruptCheckpoint(
                f"{archive.where}: record {record.name[:100]!r} has checksum {crc:08x},"
                f" but {record.crc32:08x} was stored with it",
                hint="its bytes changed after they were written; copy the file again",
            )
        total += record.nbytes
    return total
