"""``nemoconv_manifest.json``: what was written, from what, with a CRC-32 of every byte that matters.

The same input, version and options give the same manifest: it holds no time, no random id, no path.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from nemoconv.errors import CorruptCheckpoint
from nemoconv.formats import plain_json
from nemoconv.formats.checksum import crc32
from nemoconv.mappings.config_fields import Value

if TYPE_CHECKING:
    from nemoconv.formats.files import SourceDir
    from nemoconv.formats.output import OutputDirectory
    from nemoconv.resharding.plan import Payload

NAME: Final = "nemoconv_manifest.json"
VERSION: Final = 1


def build(header: Mapping[str, Value], payloads: Iterable[Payload], output: OutputDirectory) -> bytes:
    """The manifest of a staged output: tensors by file and offset, other files whole."""
    tensors: dict[str, list[list[Value]]] = {}
    for payload in payloads:
        row = [payload.name, payload.offset, payload.nbytes, f"{payload.crc32:08x}"]
        tensors.setdefault(payload.file.name, []).append(row)
    files = {}
    for name, file in sorted(output.files().items()):
        entry: dict[str, Value] = {"size": file.size}
        if name in tensors:
            entry["tensors"] = sorted(tensors[name], key=lambda row: row[1])
        else:
            entry["crc32"] = f"{crc32(file.read_back()):08x}"
        files[name] = entry
    manifest = {"manifest_version": VERSION, **header, "files": files}
    return (json.dumps(manifest, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


def read(directory: SourceDir) -> dict[str, Value] | None:
    """The manifest of a checkpoint that this tool wrote, None when there is none.

    Raises CorruptCheckpoint when it is not one; what it says is checked where it is used.
    """
    if not directory.exists(NAME):
        return None
    where = str(directory.path / NAME)
    manifest = plain_json.loads(directory.read(NAME), where, max_bytes=256 << 20)
    if not isinstance(manifest, dict) or manifest.get("manifest_version") != VERSION:
        raise CorruptCheckpoint(f"{where}: is not a manifest of version {VERSION}")
    if not isinstance(manifest.get("files"), dict):
        raise CorruptCheckpoint(f"{where}: has no table of files")
    return manifest
