"""Source files: opened without leaving the checkpoint, read at offsets, never mapped.

A mapped file that shrinks under us kills the process; a short ``pread`` is an ordinary error.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import stat
import threading
from abc import ABC, abstractmethod
from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import CorruptCheckpoint, UnsafeCheckpoint, UnsupportedFormat
from ..tensors.byte_source import ByteSource
from ..tensors.checksum import crc32, crc32_combine

#: no configuration or tokenizer file that we hold in memory is larger (Llama 4's tokenizer.json: 28 MB)
MAX_SMALL_FILE = 256 << 20
#: pieces of records held at most: who reads here and there for days must not fill the memory
_MAX_PIECES = 1 << 16
#: (its first byte, the byte after its last, its CRC-32) of what was read of a record
Piece = tuple[int, int, int]
#: who says a checksum: the format itself
STORED = "was stored with it"
_BLOCK = 4 << 20
_CHANGED = "it changed after it was written; copy the file again"


class SourceFile:
    """One regular file of a checkpoint, read by offset."""

    __slots__ = ("_checks", "_fd", "mtime_ns", "name", "path", "size")

    #: where byte 0 lies in the file that ``fd`` is; more than 0 for a member of an archive
    base = 0
    #: bytes below which a read of its own costs more than reading on through what is not wanted
    short_read = 0

    def __init__(self, path: str | Path, name: str | None = None) -> None:
        self.path = os.fspath(path)
        self.name = name if name is not None else os.path.basename(self.path)
        self._fd: int | None = None
        self._checks: RecordChecks | None = None
        status = os.stat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise UnsafeCheckpoint(f"{self.path}: not a regular file")
        self.size = status.st_size
        self.mtime_ns = status.st_mtime_ns

    @property
    def fd(self) -> int:
        if self._fd is None:
            try:
                self._fd = _open(self.path)
            except FileNotFoundError:
                raise CorruptCheckpoint(f"{self.path}: missing") from None
            except OSError as error:
                raise CorruptCheckpoint(f"{self.path}: cannot be read ({error.strerror})") from None
        return self._fd

    def pread(self, size: int, offset: int) -> bytes:
        """Exactly ``size`` bytes at ``offset``; CorruptCheckpoint when the file ends before."""
        if size < 0 or offset < 0 or offset + size > self.size:
            raise CorruptCheckpoint(
                f"{self.path}: ends at byte {self.size:,}, but {offset:,}..{offset + size:,} are needed",
                hint="the copy looks cut short; compare its size with the original",
            )
        buffer = bytearray(size)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` (a writable view of bytes) from ``offset``."""
        self._fill(offset, buffer)
        if self._checks is not None and (wrong := self._checks.seen(offset, buffer)):
            raise CorruptCheckpoint(f"{self.path}: {wrong}", hint=_CHANGED)

    def _read(self, offset: int, nbytes: int) -> bytes:
        """Bytes that are compared by who reads them."""
        buffer = bytearray(nbytes)
        self._fill(offset, memoryview(buffer))
        return bytes(buffer)

    def _fill(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            try:
                got = os.preadv(self.fd, [buffer[done:]], self.base + offset + done)
            except OSError as error:
                raise CorruptCheckpoint(f"{self.path}: cannot be read ({error.strerror})") from None
            if got == 0:
                raise CorruptCheckpoint(
                    f"{self.path}: ended at byte {offset + done:,} while it was read",
                    hint="was the file changed by another process?",
                )
            done += got

    def expect(self, offset: int, nbytes: int, checksum: int, name: str, by: str = STORED) -> None:
        """Whoever reads these bytes, in whatever pieces, is to have CorruptCheckpoint for another CRC-32.

        ``by`` says who told the checksum. CorruptCheckpoint at once where another was told before.
        """
        if self._checks is None:
            self._checks = RecordChecks()
        if wrong := self._checks.expect(offset, nbytes, checksum, name, by):
            raise CorruptCheckpoint(f"{self.path}: {wrong}", hint=_CHANGED)

    def settle(self, *, untouched: bool = False) -> None:
        """Compare what was read in part, or twice in part, with the checksums that are expected, reading what
        is missing; with ``untouched`` also what was not read at all."""
        for record, pieces in self._checks.rest(untouched=untouched) if self._checks is not None else ():
            found, reached = 0, record.start
            for low, high, checksum in (*pieces, (record.end, record.end, 0)):
                for at in range(reached, low, _BLOCK):
                    found = crc32(self._read(at, min(_BLOCK, low - at)), found)
                found, reached = crc32_combine(found, checksum, high - low), high
            if wrong := record.against(found):
                raise CorruptCheckpoint(f"{self.path}: {wrong}", hint=_CHANGED)

    def read_pieces(self) -> list[Piece]:
        """(first byte, end, CRC-32) of what was read of runs that are expected and not whole yet."""
        return self._checks.pieces() if self._checks is not None else []

    def take_pieces(self, pieces: Iterable[Piece]) -> None:
        """Count in what another process has read of this file."""
        if self._checks is not None and (wrong := self._checks.take(pieces)):
            raise CorruptCheckpoint(f"{self.path}: {wrong}", hint=_CHANGED)

    def position(self, offset: int) -> tuple[str, int]:
        """A key that sorts reads as they lie on the disk."""
        return self.path, offset

    def will_need(self, offset: int, length: int) -> None:
        """Ask the kernel to read ahead, where it can be asked (not on macOS)."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, self.base + offset, length, os.POSIX_FADV_WILLNEED)

    def stored_nbytes(self, length: int) -> int:
        """Bytes on the disk behind ``length`` bytes that are read: fewer for what is decoded on the way."""
        return length

    @property
    def version(self) -> str:
        return f"{self.size}-{self.mtime_ns}"

    @property
    def origins(self) -> tuple[ByteSource, ...]:
        """The files that reading this one reads."""
        return (self,)

    def check_unchanged(self) -> None:
        """Raise CorruptCheckpoint if the file was written to since it was opened."""
        try:
            now = os.stat(self.path)
        except OSError:
            now = None
        if now is None or (now.st_size, now.st_mtime_ns) != (self.size, self.mtime_ns):
            raise CorruptCheckpoint(
                f"{self.path}: changed while it was read",
                hint="run again once nothing writes to it",
            )

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r})"


class FilePart(SourceFile):
    """A member of an archive: a run of bytes of another file, read in place like a file of its own."""

    __slots__ = ("_whole", "base")

    def __init__(self, whole: SourceFile, name: str, offset: int, size: int) -> None:
        self._whole, self.base, self.name, self.size = whole, whole.base + offset, name, size
        self._checks = None
        self.path = f"{whole.path}:{name}"

    @property
    def fd(self) -> int:
        return self._whole.fd

    @property
    def version(self) -> str:
        return self._whole.version

    def position(self, offset: int) -> tuple[str, int]:
        return self._whole.path, self.base + offset

    def check_unchanged(self) -> None:
        self._whole.check_unchanged()

    def close(self) -> None:
        """Nothing to do: the file is the archive's."""


@dataclass(frozen=True, slots=True)
class ChecksummedRun:
    """A run of a file and the CRC-32 that it should have, as ``by`` says."""

    start: int
    end: int
    checksum: int
    name: str
    by: str

    def against(self, found: int) -> str:
        """What is wrong with a record whose bytes have this checksum, nothing if it is as it should be."""
        if found == self.checksum:
            return ""
        return (
            f"{self.name} (bytes {self.start:,}..{self.end:,}) has checksum {found:08x}, "
            f"but {self.checksum:08x} {self.by}"
        )


class RecordChecks:
    """The records of one file whose CRC-32 is known, and what of them was read so far.

    A record may be read in any pieces, in any order, from any thread: checksums of neighbouring pieces are
    combined. One whose pieces do not join up, because bytes were read twice or not at all, is compared by
    whoever asks for the :meth:`rest` and reads what is missing.
    """

    __slots__ = ("_ends", "_held", "_lock", "_more", "_pieces", "_records", "_starts", "_touched", "settled")

    def __init__(self) -> None:
        self._records: dict[int, ChecksummedRun] = {}
        self._starts: list[int] = []
        #: start of a piece -> (its end, its checksum), and its end -> its start
        self._pieces: dict[int, tuple[int, int]] = {}
        self._ends: dict[int, int] = {}
        #: pieces that overlap another one: the same bytes were read twice, from different places on
        self._held: list[Piece] = []
        #: starts of records of which something was read
        self._touched: set[int] = set()
        #: records that overlap these: two writers framed the same bytes differently
        self._more: RecordChecks | None = None
        #: how many records were compared
        self.settled = 0
        self._lock = threading.Lock()

    def expect(self, offset: int, nbytes: int, checksum: int, name: str, by: str = STORED) -> str:
        """The ``nbytes`` at ``offset``, called ``name``, should have this CRC-32, as ``by`` says.

        Returns what is wrong if something else was said of the same bytes before: no byte need be read then.
        """
        if not nbytes:
            return ""
        new = ChecksummedRun(offset, offset + nbytes, checksum, name, by)
        with self._lock:
            known = self._records.get(offset)
            if known is not None and known.end == new.end:
                if known.checksum == checksum:
                    if known.by == STORED:  # a manifest knows the tensor's name
                        self._records[offset] = new
                    return ""
                return (
                    f"{name}: its checksum is {known.checksum:08x}, which {known.by}, but {checksum:08x} {by}"
                )
            if self._free(new):
                self._records[offset] = new
                insort(self._starts, offset)
                return ""
            if self._more is None:
                self._more = RecordChecks()
        return self._more.expect(offset, nbytes, checksum, name, by)

    def _free(self, new: ChecksummedRun) -> bool:
        """Whether no record lies where this one would."""
        at = bisect_right(self._starts, new.start)
        before = self._records[self._starts[at - 1]] if at else None
        after = self._starts[at] if at < len(self._starts) else new.end
        return (before is None or before.end <= new.start) and after >= new.end

    def seen(self, offset: int, data: memoryview) -> str:
        """Told what was read at ``offset``: what is wrong with a record that is whole now, nothing if it is
        as it should be."""
        for record in self._met(offset, offset + len(data)):
            low, high = max(offset, record.start), min(offset + len(data), record.end)
            if wrong := self._join(record, low, high, crc32(data[low - offset : high - offset])):
                return wrong
        return self._more.seen(offset, data) if self._more is not None else ""

    def _met(self, low: int, high: int) -> list[ChecksummedRun]:
        """The records that these bytes touch and that are not settled yet."""
        with self._lock:
            first = max(0, bisect_right(self._starts, low) - 1)
            found = []
            for at in range(first, len(self._starts)):
                record = self._records[self._starts[at]]
                if record.start >= high:
                    break
                if record.end > low:
                    found.append(record)
            return found

    def _join(self, record: ChecksummedRun, low: int, high: int, found: int) -> str:
        """Add a piece of a record to what was read of it; what is wrong with the record once it is whole."""
        start, end = record.start, record.end
        with self._lock:
            if start not in self._records or low >= high:  # another thread has settled it
                return ""
            self._touched.add(start)
            if (low, high) != (start, end) and (low in self._pieces or high in self._ends):
                if len(self._held) < _MAX_PIECES:
                    self._held.append((low, high, found))
                return ""
            if low > start and (before := self._ends.pop(low, None)) is not None:
                found = crc32_combine(self._pieces.pop(before)[1], found, high - low)
                low = before
            if high < end and (after := self._pieces.pop(high, None)) is not None:
                found = crc32_combine(found, after[1], after[0] - high)
                high = after[0]
                del self._ends[high]
            if (low, high) == (start, end):
                self._settled(start)
                return record.against(found)
            if len(self._pieces) < _MAX_PIECES:
                self._pieces[low] = high, found
                self._ends[high] = low
        return ""

    def _settled(self, start: int) -> None:
        """Forget a record that was compared."""
        self.settled += 1
        del self._records[start]
        del self._starts[bisect_right(self._starts, start) - 1]
        self._touched.discard(start)

    def pieces(self) -> list[Piece]:
        """What was read of records that are not whole yet."""
        with self._lock:
            own = [(low, high, found) for low, (high, found) in self._pieces.items()] + self._held
        return own + (self._more.pieces() if self._more is not None else [])

    def take(self, pieces: Iterable[Piece]) -> str:
        """Add what another process has read: what is wrong with a record that is whole now."""
        for low, high, found in pieces:
            for record in self._met(low, high):
                if record.start <= low and high <= record.end:
                    if wrong := self._join(record, low, high, found):
                        return wrong
                    break
            else:
                if self._more is not None and (wrong := self._more.take([(low, high, found)])):
                    return wrong
        return ""

    def rest(self, *, untouched: bool = False) -> Iterator[tuple[ChecksummedRun, list[Piece]]]:
        """Records that were read in part, and pieces that tile the part that was read, in order; with
        ``untouched`` also those of which nothing was read."""
        with self._lock:
            every = sorted(
                [*self._held, *((low, high, found) for low, (high, found) in self._pieces.items())],
                key=lambda piece: (piece[0], -piece[1]),
            )
            wanted = [self._records[at] for at in self._starts if untouched or at in self._touched]
        at = 0
        for record in wanted:
            chosen, reached = [], record.start
            while at < len(every) and every[at][0] < record.end:
                low, high, _ = every[at]
                if low >= reached and high <= record.end:
                    chosen.append(every[at])
                    reached = high
                at += 1
            yield record, chosen
        if self._more is not None:
            yield from self._more.rest(untouched=untouched)


def _open(path: str) -> int:
    # O_NONBLOCK: opening a FIFO must not hang; it has no effect on regular files
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    # thousands of rank files: use what the system allows, not the shell's default of 1,024
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return os.open(path, flags)


def is_there(path: str | Path) -> bool:
    """Whether something has that name, be it a broken link. CorruptCheckpoint where we may not look."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        raise CorruptCheckpoint(f"{path}: cannot be read ({error.strerror})") from None
    return True


def plain_parts(name: str, where: object) -> list[str]:
    """The components of a file name that comes out of a checkpoint.

    Raises UnsafeCheckpoint unless it is relative and stays below where it starts.
    """
    parts = re.split(r"[/\\]", name)
    rooted = name.startswith(("/", "\\")) or ":" in parts[0]
    if not name or "\0" in name or rooted or ".." in parts:
        raise UnsafeCheckpoint(f"{where}: refers to the file {name!r}, which is not a plain relative name")
    return parts


class Folder(ABC):
    """Named files, in a directory or in an archive: what a checkpoint's reader is given."""

    path: Path

    @abstractmethod
    def file(self, name: str) -> SourceFile:
        """The file ``name``, opened once and kept. Raises CorruptCheckpoint where it is missing."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether something of that name is there. Raises UnsafeCheckpoint for one that leads elsewhere."""

    @abstractmethod
    def names(self, under: str = "") -> Iterator[str]:
        """Names of the regular files directly in ``under``, sorted; hidden files too."""

    @abstractmethod
    def folders(self, under: str = "") -> Iterator[str]:
        """Names of the folders directly in ``under``, sorted."""

    def size(self, name: str) -> int:
        """Bytes of the file ``name``, which need not be opened for it."""
        return self.file(name).size

    def read(self, name: str, limit: int = MAX_SMALL_FILE) -> bytes:
        """The whole of a small file."""
        file = self.file(name)
        if file.size > limit:
            raise UnsafeCheckpoint(f"{file.path}: {file.size:,} bytes, more than the {limit:,} allowed")
        return file.pread(file.size, 0)

    @abstractmethod
    def opened(self) -> tuple[SourceFile, ...]:
        """The files asked for so far."""

    @abstractmethod
    def close(self) -> None:
        """Release the files."""


class SourceDir(Folder):
    """A checkpoint directory. Every name that comes out of the checkpoint is opened through it.

    A name must be relative, must not contain ``..`` and must resolve to a regular file inside the
    directory, or, in a Hugging Face hub cache, inside the ``blobs`` directory beside ``snapshots``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise UnsupportedFormat(f"{path}: not a directory")
        self._real = os.path.realpath(self.path)
        self._roots = [self._real]
        parent = os.path.dirname(self._real)
        if os.path.basename(parent) == "snapshots":  # .../models--org--name/snapshots/<revision>
            self._roots.append(os.path.join(os.path.dirname(parent), "blobs"))
        self._files: dict[str, SourceFile] = {}

    def _join(self, name: str) -> str:
        plain_parts(name, self.path)
        return os.path.join(self._real, name)

    def resolve(self, name: str) -> str:
        """The real path of ``name``; UnsafeCheckpoint when it lies outside the checkpoint."""
        real = os.path.realpath(self._join(name))
        if not any(real.startswith(root + os.sep) for root in self._roots):
            raise UnsafeCheckpoint(f"{self.path / name}: leads outside the checkpoint, to {real}")
        return real

    def file(self, name: str) -> SourceFile:
        """The file ``name``, opened once and kept."""
        if name not in self._files:
            real = self.resolve(name)
            if not os.path.lexists(real):
                raise CorruptCheckpoint(f"{self.path / name}: missing")
            self._files[name] = SourceFile(real, name)
        return self._files[name]

    def size(self, name: str) -> int:
        """Bytes of the file ``name``, without opening it: a checkpoint may have thousands."""
        real = self.resolve(name)
        try:
            status = os.stat(real)
        except OSError:
            raise CorruptCheckpoint(f"{self.path / name}: missing", hint="the copy is incomplete") from None
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeCheckpoint(f"{real}: not a regular file")
        return status.st_size

    def exists(self, name: str) -> bool:
        """Whether something of that name is there, be it only a broken link.

        Raises UnsafeCheckpoint for a name that leads elsewhere, so that nobody can ask about it.
        """
        return os.path.lexists(self._join(name))

    def names(self, under: str = "") -> Iterator[str]:
        return self._entries(under, folders=False)

    def folders(self, under: str = "") -> Iterator[str]:
        return self._entries(under, folders=True)

    def _entries(self, under: str, *, folders: bool) -> Iterator[str]:
        folder = os.path.join(self._real, under) if under else self._real
        if not os.path.isdir(folder):
            return
        with os.scandir(folder) as entries:
            found = sorted(entry.name for entry in entries if entry.is_dir() == folders)
        for name in found:
            yield f"{under}/{name}" if under else name

    def opened(self) -> tuple[SourceFile, ...]:
        return tuple(self._files.values())

    def close(self) -> None:
        for file in self._files.values():
            file.close()
