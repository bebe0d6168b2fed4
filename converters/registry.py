"""Find the converter that reads a path or writes a format."""

from __future__ import annotations

import os
from pathlib import Path

from ..entry_points import entries
from ..errors import CorruptCheckpoint, UnsupportedFormat, UsageError
from ..stores.files import is_there
from .base import Checkpoint, Converter


def converter(name: str) -> Converter:
    """The converter of a format. Raises UsageError for an unknown name."""
    found = entries("converters").get(name)
    if found is None:
        raise UsageError(
            f"unknown format {name!r}", hint=f"one of: {', '.join(sorted(entries('converters')))}"
        )
    loaded: Converter = found.load()()
    return loaded


def recognize(path: Path) -> Converter:
    """The converter whose format ``path`` has.

    Raises UnsupportedFormat that says what was looked for, CorruptCheckpoint for what may not be read.
    """
    if not is_there(path):
        raise UnsupportedFormat(f"{path}: does not exist")
    if not path.exists():
        raise CorruptCheckpoint(f"{path}: is a link to nothing")
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
        raise CorruptCheckpoint(f"{path}: cannot be read (Permission denied)")
    tried = []
    for name in entries("converters"):
        candidate = converter(name)
        if candidate.recognizes(path):
            return candidate
        tried.append(f"{name} ({candidate.looks_for})")
    raise UnsupportedFormat(f"{path}: no known checkpoint format; looked for {'; '.join(tried)}")


def open_checkpoint(path: str | Path, *, config: str | Path | None = None) -> Checkpoint:
    """Open a checkpoint of any format for reading. Only headers are read."""
    place = Path(path)
    return recognize(place).open(place, config=Path(config) if config is not None else None)
