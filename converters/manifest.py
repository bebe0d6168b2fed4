"""``nemoconv_manifest.json``: what was written, from what, with a CRC-32 of every byte that matters.

The same input, version and options give the same manifest: it holds no time, no random id, no path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import CorruptCheckpoint
from ..formats.text import plain_json
from ..mappings.hf.fields import Value
from ..tensors.checksum import crc32

if TYPE_CHECKING:
    from ..resharding.plan import Payload
    from ..stores.files import Folder
    from ..stores.output import OutputDirectory, OutputFile

NAME: Final = "nemoconv_manifest.json"
VERSION: Final = 1
_CHUNK: Final = 4 << 20
#: how a manifest ends: with the checksum of all that stands before
_END: Final = re.compile(rb',"crc32":"([0-9a-f]{8})"\}\s*\Z')
#: how it begins, before any key that somebody could have changed
_BEGIN: Final = b'{"manifest_version":1,'
_CRC32: Final = re.compile(r"[0-9a-f]{8}")
#: the checkpoint whose manifest is left alone
_DISREGARDED: Final[ContextVar[Path | None]] = ContextVar("nemoconv_manifest_disregarded", default=None)


@contextmanager
def disregarded(path: Path) -> Iterator[None]:
    """Within, the checkpoint at ``path`` has no manifest: what lies there is left alone."""
    token = _DISREGARDED.set(path)
    try:
        yield
    finally:
        _DISREGARDED.reset(token)


def build(header: Mapping[str, Value], payloads: Iterable[Payload], output: OutputDirectory) -> bytes:
    """The manifest of a staged output: tensors by file and offset; ``crc32`` is of all other bytes of
    the file, so that a header that gives two tensors each other's names is noticed too."""
    tensors: dict[str, list[list[Value]]] = {}
    for payload in payloads:
        row = [payload.name, payload.offset, payload.nbytes, f"{payload.crc32:08x}"]
        tensors.setdefault(payload.file.name, []).append(row)
    files = {}
    for name, file in sorted(output.files().items()):
        entry: dict[str, Value] = {"size": file.size}
        if name in tensors:
            rows = entry["tensors"] = sorted(tensors[name], key=lambda row: row[1])
            frame = 0
            for offset, nbytes in gaps(rows, file.size):
                frame = _crc32(file, offset, nbytes, frame)
            entry["crc32"] = f"{frame:08x}"
        else:
            entry["crc32"] = f"{_crc32(file, 0, file.size):08x}"
        files[name] = entry
    manifest = {"manifest_version": VERSION, **header, "files": files}
    said = json.dumps(manifest, ensure_ascii=False, separators=(",", ":")).encode()[:-1]
    return said + b',"crc32":"%08x"}\n' % crc32(said)


def _crc32(file: OutputFile, offset: int, nbytes: int, checksum: int = 0) -> int:
    """The checksum of a part of a staged file, which may be larger than memory."""
    for at in range(offset, offset + nbytes, _CHUNK):
        checksum = crc32(file.read_back(at, min(_CHUNK, offset + nbytes - at)), checksum)
    return checksum


def gaps(rows: Iterable[Sequence[Value]], size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what lies between and around the tensors of a file; rows come in order."""
    at = 0
    for _, offset, nbytes, _ in rows:
        if offset > at:
            yield at, offset - at
        at = max(at, offset + nbytes)
    if size > at:
        yield at, size - at


def read(directory: Folder) -> dict[str, Value] | None:
    """The manifest of a checkpoint that this tool wrote, None when there is none.

    Raises CorruptCheckpoint when it is not one; what it says is checked where it is used.
    """
    if _DISREGARDED.get() == directory.path or not directory.exists(NAME):
        return None
    where = str(directory.path / NAME)
    data = directory.read(NAME)
    end = _END.search(data, max(0, len(data) - 40))
    changed = CorruptCheckpoint(
        f"{where}: has another checksum than it says",
        hint="it changed after it was written; copy it again, or remove it to go without",
    )
    if end is not None and crc32(data[: end.start()]) != int(end[1], 16):
        raise changed
    manifest = plain_json.loads(data, where, max_bytes=256 << 20)
    if not isinstance(manifest, dict) or manifest.get("manifest_version") != VERSION:
        raise CorruptCheckpoint(f"{where}: is not a manifest of version {VERSION}")
    if end is None and data.startswith(
        _BEGIN
    ):  # ours, so it had a checksum; who edits it writes other spaces
        raise changed
    for key in ("files", "model_config", "inert_config"):
        if not isinstance(manifest.get(key), dict):
            raise CorruptCheckpoint(f"{where}: {key} is not a table")
    for name, entry in manifest["files"].items():
        if not _is_file(entry):
            raise CorruptCheckpoint(f"{where}: the entry of {name!r} is malformed")
    return manifest


def _is_file(entry: object) -> bool:
    """A size, a checksum, and perhaps a row for each tensor: name, offset, bytes, checksum."""
    if not isinstance(entry, dict) or not _is_natural(entry.get("size")):
        return False
    if not _is_checksum(entry.get("crc32")):
        return False
    rows = entry.get("tensors", [])
    return isinstance(rows, list) and all(
        isinstance(row, list)
        and len(row) == 4
        and isinstance(row[0], str)
        and _is_natural(row[1])
        and _is_natural(row[2])
        and row[1] + row[2] <= entry["size"]
        and _is_checksum(row[3])
        for row in rows
    )


def _is_checksum(value: object) -> bool:
    return isinstance(value, str) and _CRC32.fullmatch(value) is not None


def _is_natural(value: object) -> bool:
    return type(value) is int and value >= 0
