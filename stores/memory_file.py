"""Bytes that lie in no file by themselves, as a file: elements that a format keeps in another encoding."""

from __future__ import annotations

from ..tensors.byte_source import ByteSource
from .files import SourceFile


class MemoryFile(SourceFile):
    """``data`` under the name ``name`` of the file ``whole`` that it was decoded from."""

    __slots__ = ("_data", "_whole")

    def __init__(self, whole: ByteSource, name: str, data: bytes) -> None:
        self._whole, self._data = whole, data
        self.path, self.name, self.size = f"{whole.path}: {name}", whole.name, len(data)
        self._fd = self._checks = None

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self._data[offset : offset + len(buffer)]

    def position(self, offset: int) -> tuple[str, int]:
        return self._whole.path, 0

    def will_need(self, offset: int, length: int) -> None:
        """Nothing to do: it is in memory."""

    def stored_nbytes(self, length: int) -> int:
        return 0

    @property
    def version(self) -> str:
        return self._whole.version

    @property
    def origins(self) -> tuple[ByteSource, ...]:
        return (self._whole,)

    def check_unchanged(self) -> None:
        self._whole.check_unchanged()
