"""Bytes that are read by position, wherever they lie: what every reader takes, and never a path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class ByteSource(Protocol):
    """A file, a member of an archive, an object in a bucket, or what is decoded from one of these.

    ``size`` is in bytes. ``path`` is what messages call it, ``name`` what its checkpoint calls it.
    """

    name: str
    path: str
    size: int

    @property
    def version(self) -> str:
        """What changes when the bytes do: size and time of a file, an object's ETag."""

    @property
    def short_read(self) -> int:
        """Bytes below which a read of its own costs more than reading on through what is not wanted."""

    @property
    def origins(self) -> Sequence[ByteSource]:
        """What reading this one reads: itself, unless it is decoded from others."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` (a writable view of bytes) from ``offset``, however many reads that takes.

        Raises CorruptCheckpoint where the bytes end before, or are not those that were expected.
        """

    def position(self, offset: int) -> tuple[str, int]:
        """A key that sorts reads as the bytes lie in the store."""

    def will_need(self, offset: int, length: int) -> None:
        """Say that these bytes are read soon."""

    def stored_nbytes(self, length: int) -> int:
        """Bytes in the store behind ``length`` bytes that are read: fewer for what is decoded on the way."""

    def check_unchanged(self) -> None:
        """Raise CorruptCheckpoint if the bytes are no longer those that were opened."""
