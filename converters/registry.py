"""Find the converter that reads a path or writes a format."""

from __future__ import annotations

import os
from pathlib import Path

from nemoconv.converters.base import Checkpoint, Converter
from nemoconv.errors import UnsupportedFormat, UsageError
from nemoconv.plugins import entries


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

    Raises UnsupportedFormat that says what was looked for.
    """
    if not os.path.lexists(path):
        raise UnsupportedFormat(f"{path}: does not exist")
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
