"""Whole files from a checkpoint into an output, in constant memory: archives hold other archives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .files import SourceFile
from .output import OutputDirectory, OutputFile

_CHUNK: Final = 4 << 20


def size_of(source: SourceFile | bytes) -> int:
    """Bytes of a file to be."""
    return len(source) if isinstance(source, bytes) else source.size


def copy_into(file: OutputFile, source: SourceFile | bytes) -> None:
    """Write the whole of ``source`` to ``file``, whose size is set already."""
    if isinstance(source, bytes):
        file.pwrite(source, 0)
        return
    for offset in range(0, source.size, _CHUNK):
        file.pwrite(source.pread(min(_CHUNK, source.size - offset), offset), offset)


def copy_all(output: OutputDirectory, files: Mapping[str, SourceFile | bytes]) -> None:
    """Write files under these names."""
    for name, source in files.items():
        file = output.file(name)
        file.size = size_of(source)
        copy_into(file, source)
