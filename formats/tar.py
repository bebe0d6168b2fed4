"""Tar archives, indexed once and read in place: nothing is ever extracted.

Only regular members and folders are accepted. Python's own ``tarfile`` would also follow links, fill
sparse members and let the last of two equal names win; an archive in which readers could disagree is
refused here. The layout is POSIX.1-2001's (pax), with GNU's long names and base-256 numbers.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn

from ..errors import CorruptCheckpoint, OutputError, UnsafeCheckpoint, UnsupportedFormat
from ..stores.files import FilePart, Folder, SourceFile, plain_parts

BLOCK: Final = 512
GZIP_MAGIC: Final = b"\x1f\x8b"
_MAX_MEMBERS: Final = 100_000
_MAX_EXTENDED: Final = 1 << 20
#: weights hardly compress; a thousandfold is what a bomb does
_MAX_INFLATION: Final = 64
_INFLATE_FREE: Final = 64 << 20
_CHUNK: Final = 4 << 20

_LFS: Final = b"version https://git-lfs"
_WEB: Final = (b"<!doctype html", b"<html")
#: archives that people pack models into, by their first bytes; bzip2's fourth says how large its blocks are
_OTHER_KINDS: Final = {
    b"BZh": "bzip2 data",
    b"\xfd7zXZ\0": "xz data",
    b"\x28\xb5\x2f\xfd": "zstd data",
    b"PK\x03\x04": "a zip archive",
}

_REGULAR: Final = (b"0", b"\0", b"7")
_FOLDER: Final = b"5"
_GNU_NAME, _PAX, _PAX_ALL = b"L", b"x", b"g"
_REFUSED: Final = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a FIFO",
    b"S": "a sparse file",
}


class TarFolder(Folder):
    """An open tar archive, plain or gzip.

    Members are named without a leading ``./``. A gzip archive is inflated once into an unnamed scratch
    file. Raises CorruptCheckpoint for an archive that is cut short or contradicts itself,
    UnsupportedFormat for another kind of archive, UnsafeCheckpoint for members that are no plain files,
    OutputError when scratch space is short.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = SourceFile(path)
        self.compressed = self._file.size >= 2 and self._file.pread(2, 0) == GZIP_MAGIC
        self._whole = inflate(self._file) if self.compressed else self._file
        self._members, self._folders = _index(self._whole)
        self._opened: dict[str, SourceFile] = {}

    def file(self, name: str) -> SourceFile:
        if name not in self._opened:
            self._check(name)
            if name not in self._members:
                raise CorruptCheckpoint(f"{self.path}: has no member {name}")
            self._opened[name] = FilePart(self._whole, name, *self._members[name])
        return self._opened[name]

    def exists(self, name: str) -> bool:
        self._check(name)
        return name in self._members or name in self._folders

    def _check(self, name: str) -> None:
        plain_parts(name, self.path)

    def names(self, under: str = "") -> Iterator[str]:
        return (name for name in sorted(self._members) if _parent(name) == under)

    def folders(self, under: str = "") -> Iterator[str]:
        return (name for name in sorted(self._folders) if _parent(name) == under)

    def opened(self) -> tuple[SourceFile, ...]:
        return tuple(self._opened.values())

    def close(self) -> None:
        self._whole.close()
        self._file.close()


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


# Reading


def _no_tar(file: SourceFile, said: str) -> CorruptCheckpoint | UnsupportedFormat:
    """What to say of a file whose first header is none."""
    start = file.pread(min(file.size, 64), 0)
    if start.startswith(_LFS):
        return CorruptCheckpoint(
            f"{file.path}: is a Git LFS pointer, not the file itself", hint="run 'git lfs pull' there"
        )
    if start.lower().startswith(_WEB):
        return CorruptCheckpoint(f"{file.path}: is a web page, not an archive", hint="download it again")
    for magic, kind in _OTHER_KINDS.items():
        if start.startswith(magic):
            return UnsupportedFormat(
                f"{file.path}: is {kind}; a .nemo archive is a tar, plain or gzip",
                hint="unpack it, and give the folder",
            )
    return CorruptCheckpoint(said, hint="is the file a .nemo archive, and copied whole?")


def _index(file: SourceFile) -> tuple[dict[str, tuple[int, int]], set[str]]:
    """(offset, size) of each regular member, and the names of all folders."""
    members: dict[str, tuple[int, int]] = {}
    folders: set[str] = set()
    extended: dict[str, str] = {}
    at = count = 0
    while True:
        if at + BLOCK > file.size:
            said = f"{file.path}: ends at byte {file.size:,} without an end-of-archive mark"
            if not at:
                raise _no_tar(file, said)
            raise CorruptCheckpoint(said, hint="the copy looks cut short; compare its size with the original")
        block = file.pread(BLOCK, at)
        if not any(block):
            break
        count += 1
        header = _Header(file, at, block, extended)
        if count > _MAX_MEMBERS:
            header.refuse(f"more than {_MAX_MEMBERS:,} members")
        data = at + BLOCK
        at = data + -(-header.size // BLOCK) * BLOCK
        if data + header.size > file.size:
            raise CorruptCheckpoint(
                f"{file.path}: member {header.name!r} ends at byte {data + header.size:,}, "
                f"the archive at {file.size:,}",
                hint="the copy looks cut short; compare its size with the original",
            )
        if header.kind in (_GNU_NAME, _PAX, _PAX_ALL):
            if header.size > _MAX_EXTENDED:
                header.refuse(f"an extended header of {header.size:,} bytes")
            raw = file.pread(header.size, data)
            if header.kind == _GNU_NAME:
                extended["path"] = header.text(raw.rstrip(b"\0"))
            else:  # those for all members hold comments and times in practice
                found = header.records(raw)
                if header.kind == _PAX:
                    extended.update(found)
                elif "path" in found or "size" in found:
                    header.refuse("one name or size for all members")
            continue
        name = header.member_name()
        extended = {}
        if header.kind == _FOLDER or (header.kind == b"\0" and header.name.endswith("/")):
            if name:
                folders.add(name)
        elif header.kind not in _REGULAR:
            header.refuse(_REFUSED.get(header.kind, f"of the unknown type {header.kind!r}"))
        elif not name or name in members:
            header.refuse("there twice" if name else "a file without a name")
        else:
            members[name] = (data, header.size)
    for name in members:
        while name := _parent(name):
            folders.add(name)
    for name in sorted(folders & members.keys()):
        raise UnsafeCheckpoint(f"{file.path}: member {name!r} is both a file and a folder")
    return members, folders


class _Header:
    """One header block. ``extended`` are the records that went before it and overrule it."""

    def __init__(self, file: SourceFile, at: int, block: bytes, extended: dict[str, str]) -> None:
        self._file, self._at, self._where = file, at, f"{file.path}: byte {at:,}"
        self.name = ""
        expected = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        if self.number(block[148:156]) != expected:
            raise self._no_header("its checksum is wrong")
        self.kind = block[156:157]
        name = block[:100].partition(b"\0")[0]
        if block[257:263] == b"ustar\0":
            prefix = block[345:500].partition(b"\0")[0]
            name = prefix + b"/" + name if prefix else name
        self.name = extended.get("path") or self.text(name)
        self.size = self.number(block[124:136])
        if "size" in extended and self.kind not in (_GNU_NAME, _PAX, _PAX_ALL):
            if not (extended["size"].isascii() and extended["size"].isdigit()):
                self.refuse(f"of the size {extended['size']!r}")
            self.size = int(extended["size"][:20])
        if self.kind == _FOLDER:
            self.size = 0

    def refuse(self, what: str) -> NoReturn:
        raise UnsafeCheckpoint(f"{self._where}: member {self.name!r} is {what}")

    def text(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.name = repr(raw[:100])
            self.refuse("not named in UTF-8")

    def number(self, field: bytes) -> int:
        """An octal number, or GNU's base-256 one for what octal digits cannot hold."""
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        digits = field.partition(b"\0")[0].strip(b" ")
        if not digits:
            return 0
        if digits.strip(b"01234567"):
            raise self._no_header(f"{field!r} is no number")
        return int(digits, 8)

    def _no_header(self, why: str) -> CorruptCheckpoint | UnsupportedFormat:
        said = f"{self._where}: not a tar header ({why})"
        if self._at:
            return CorruptCheckpoint(said, hint="is the file copied whole?")
        return _no_tar(self._file, said)

    def records(self, raw: bytes) -> dict[str, str]:
        """The ``length key=value`` lines of a pax header that matter here."""
        found: dict[str, str] = {}
        at = 0
        while at < len(raw):
            length, space, _ = raw[at : at + 20].partition(b" ")
            end = at + int(length) if space and length.isdigit() else 0
            key, equals, value = raw[at + len(length) + 1 : end - 1].partition(b"=")
            if end <= at or end > len(raw) or not equals or raw[end - 1 : end] != b"\n":
                raise CorruptCheckpoint(f"{self._where}: a pax header that is no list of records")
            if key.startswith(b"GNU.sparse"):
                self.refuse("a sparse file")
            if key in (b"path", b"size"):
                if key.decode() in found:
                    self.refuse(f"given two values of {key.decode()!r}")
                found[key.decode()] = self.text(value)
            at = end
        return found

    def member_name(self) -> str:
        """The name without ``./`` and without a last slash; "" for the top folder."""
        if any(not c.isprintable() for c in self.name) or "\\" in self.name:
            self.refuse("a name with control characters or backslashes")
        name = self.name.rstrip("/")
        while name.startswith("./"):
            name = name[2:].lstrip("/")
        if name in ("", "."):
            if self.name.startswith("/"):
                self.refuse("named by an absolute path")
            return ""
        parts = plain_parts(name, self._where)
        if self.name.startswith("/") or "" in parts or "." in parts:
            self.refuse("not a plain relative name")
        return name


# gzip


class _Scratch(SourceFile):
    """The inflated bytes of an archive, in a file that has no name and ends with us."""

    __slots__ = ("_original",)

    def __init__(self, fd: int, size: int, original: SourceFile) -> None:
        self._fd, self.size, self._original, self._checks = fd, size, original, None
        self.path, self.name, self.mtime_ns = original.path, original.name, original.mtime_ns

    @property
    def version(self) -> str:
        return self._original.version

    def check_unchanged(self) -> None:
        self._original.check_unchanged()


def inflate(file: SourceFile, folder: str | None = None) -> SourceFile:
    """A gzip file's content in an unnamed scratch file below ``folder`` (default: TMPDIR).

    Raises UnsafeCheckpoint when it grows as no checkpoint does, OutputError when the space is short.
    """
    folder = folder or tempfile.gettempdir()
    limit = _MAX_INFLATION * file.size + _INFLATE_FREE
    hint = "set TMPDIR to a folder with more space, or gunzip the file yourself"
    engine = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        with tempfile.TemporaryFile(dir=folder) as scratch:
            size = at = 0
            while at < file.size:
                data = file.pread(min(_CHUNK, file.size - at), at)
                at += len(data)
                while data:
                    out = engine.decompress(data, _CHUNK)
                    size += len(out)
                    if size > limit:
                        raise UnsafeCheckpoint(
                            f"{file.path}: grows beyond {limit:,} bytes from {file.size:,}: a gzip bomb"
                        )
                    if shutil.disk_usage(folder).free < len(out):
                        raise OutputError(f"{folder}: too little space to inflate {file.path}", hint=hint)
                    scratch.write(out)
                    data = engine.unconsumed_tail
                    if engine.eof:  # gzip members may follow each other; zeros may pad the last
                        data = engine.unused_data
                        if not data.strip(b"\0"):
                            data = b""
                        else:
                            engine = zlib.decompressobj(zlib.MAX_WBITS | 16)
            if not engine.eof:
                raise CorruptCheckpoint(
                    f"{file.path}: the gzip data end too early",
                    hint="the copy looks cut short; compare its size with the original",
                )
            scratch.flush()
            return _Scratch(os.dup(scratch.fileno()), size, file)
    except zlib.error as error:
        raise CorruptCheckpoint(f"{file.path}: broken gzip data ({error})") from None
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{folder}: cannot inflate {file.path} ({error.strerror})", hint=hint) from None


# Writing


def member_header(name: str, size: int, *, folder: bool = False) -> bytes:
    """The header of one member: reproducible (no times, no owner), with a pax record where the size or
    the name does not fit the old fields."""
    raw = name.encode()
    records = b""
    if len(raw) > 100:
        records += _record("path", name)
    if size >= 8**11:
        records += _record("size", str(size))
    extended = b""
    if records:
        extended = _ustar(b"././@PaxHeader", len(records), _PAX) + records + bytes(-len(records) % BLOCK)
    return extended + _ustar(raw[:100], size, _FOLDER if folder else b"0")


def _record(key: str, value: str) -> bytes:
    """``length key=value``, whose length counts its own digits."""
    rest = len(f" {key}={value}\n".encode())
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return f"{length} {key}={value}\n".encode()


def _ustar(name: bytes, size: int, kind: bytes) -> bytes:
    mode = b"0000755\0" if kind == _FOLDER else b"0000644\0"
    octal = b"%011o\0" % (size if size < 8**11 else 0)
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[100:108], block[108:124], block[124:136] = mode, b"0000000\0" * 2, octal
    block[136:148], block[148:156], block[156:157] = b"%011o\0" % 0, b" " * 8, kind
    block[257:265] = b"ustar\0" + b"00"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


#: two empty blocks end an archive
END: Final = bytes(2 * BLOCK)
