"""Split a model.onnx into its graph and the runs of bytes that are tensors, without reading the latter.

ONNX is protocol buffers, which parsers hold in memory whole: gigabytes when weights lie inside. The
wire format is walked here just far enough to leave the payloads of initializers out; what is left is a
small message for a real parser, and every payload is a place in the file.

Source: onnx.proto (field numbers); protobuf's "Encoding" page (wire types; a message that occurs twice
is merged, the elements of its repeated fields one after another).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from ...errors import CorruptCheckpoint, UnsafeCheckpoint, UnsupportedFormat
from ...stores.files import SourceFile

#: what may be left when the payloads are taken out; a graph of 50,000 weights needs 20 MB
MAX_GRAPH: Final = 64 << 20
#: nodes, initializers and other parts of a graph
MAX_FIELDS: Final = 1 << 20
#: protobuf's own limit: no other reader opens a larger file
MAX_FILE: Final = (2 << 30) - 1
_WINDOW: Final = 1 << 20
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_GRAPH: Final = 7  # ModelProto
_INITIALIZER: Final = 5  # GraphProto
#: TensorProto: fields whose bytes in the file are the elements in little-endian order
PAYLOADS: Final = {9: "raw_data", 4: "float_data", 10: "double_data"}


class Run(NamedTuple):
    """Bytes of a file."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Split:
    """``message``: the ModelProto without payloads. ``payloads``: for each initializer of the main graph,
    in order, the field that held its elements and where they lie, or None."""

    message: bytes
    payloads: list[tuple[str, Run] | None]


def split(file: SourceFile) -> Split:
    """Walk a file. Raises CorruptCheckpoint where it is not protobuf, UnsafeCheckpoint for too much of it."""
    if file.size > MAX_FILE:
        raise UnsupportedFormat(
            f"{file.path}: {file.size:,} bytes, and protobuf ends at {MAX_FILE:,}",
            hint="export the model with external data",
        )
    return _Walk(file).model()


class _Walk:
    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self._start, self._window = 0, b""
        self._kept = self._count = 0
        self._payloads: list[tuple[str, Run] | None] = []

    def model(self) -> Split:
        out = bytearray()
        for number, key, run in self._fields(Run(0, self._file.size)):
            if number == _GRAPH and key & 7 == _BYTES:
                self._nest(out, key, self._graph(run))
            else:
                self._copy(out, key, run)
        return Split(bytes(out), self._payloads)

    def _graph(self, whole: Run) -> bytearray:
        out = bytearray()
        for number, key, run in self._fields(whole):
            self._count += 1
            if self._count > MAX_FIELDS:
                raise UnsafeCheckpoint(f"{self._file.path}: a graph of more than {MAX_FIELDS:,} parts")
            if number == _INITIALIZER and key & 7 == _BYTES:
                self._nest(out, key, self._tensor(run))
            else:
                self._copy(out, key, run)
        return out

    def _tensor(self, whole: Run) -> bytearray:
        out = bytearray()
        payload: tuple[str, Run] | None = None
        for number, key, run in self._fields(whole):
            if number not in PAYLOADS or key & 7 != _BYTES:
                self._copy(out, key, run)
            elif payload is None:
                payload = PAYLOADS[number], run
            else:
                raise self._corrupt(f"a tensor has {payload[0]} and then {PAYLOADS[number]}", run.offset)
        self._payloads.append(payload)
        return out

    def _fields(self, whole: Run) -> Iterator[tuple[int, int, Run]]:
        """(field number, key, run of the value) of the fields of a message."""
        at, end = whole.offset, whole.offset + whole.length
        while at < end:
            begun = at
            key, at = self._varint(at, end)
            wire = key & 7
            if wire == _VARINT:
                _, after = self._varint(at, end)
                run = Run(at, after - at)
            elif wire == _BYTES:
                length, at = self._varint(at, end)
                run = Run(at, length)
            elif wire in (_FIXED64, _FIXED32):
                run = Run(at, 8 if wire == _FIXED64 else 4)
            else:
                raise self._corrupt(f"wire type {wire}", begun)
            at = run.offset + run.length
            if at > end or key >> 3 == 0:
                raise self._corrupt("a field that does not fit its message", begun)
            yield key >> 3, key, run

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """(value, position behind it)."""
        if not self._start <= at or at + 10 > self._start + len(self._window):
            self._start = at
            self._window = self._file.pread(min(_WINDOW, self._file.size - at), at)
        value = shift = 0
        for position in range(at - self._start, min(len(self._window), at - self._start + 10)):
            byte = self._window[position]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                if self._start + position >= end:
                    break
                return value, self._start + position + 1
        raise self._corrupt("a number that does not end", at)

    def _copy(self, out: bytearray, key: int, run: Run) -> None:
        self._keep(run.length + 20)
        self._put(out, key)
        if key & 7 == _BYTES:
            self._put(out, run.length)
        out += self._file.pread(run.length, run.offset)

    def _nest(self, out: bytearray, key: int, inner: bytearray) -> None:
        self._keep(20)
        self._put(out, key)
        self._put(out, len(inner))
        out += inner

    def _keep(self, nbytes: int) -> None:
        self._kept += nbytes
        if self._kept > MAX_GRAPH:
            raise UnsafeCheckpoint(
                f"{self._file.path}: a graph of more than {MAX_GRAPH:,} bytes, weights not counted"
            )

    @staticmethod
    def _put(out: bytearray, value: int) -> None:
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)

    def _corrupt(self, what: str, at: int) -> CorruptCheckpoint:
        return CorruptCheckpoint(
            f"{self._file.path}: is not ONNX, or damaged: {what} at byte {at:,}",
            hint="compare the file's size with the original; a Git LFS pointer needs 'git lfs pull'",
        )
