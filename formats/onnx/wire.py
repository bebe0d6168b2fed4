"""Split a model.onnx into its graph and the runs of bytes that are tensors, without reading the latter.

ONNX is protocol buffers, which parsers hold in memory whole: gigabytes when weights lie inside. The
messages are walked here just far enough to leave the payloads of initializers out; what is left is a
small message for a real parser, and every payload is a place in the file.

Source: onnx.proto (field numbers); protobuf's "Encoding" page (a message that occurs twice is merged, the
elements of its repeated fields one after another).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ...errors import CorruptCheckpoint, UnsafeCheckpoint, UnsupportedFormat
from ...stores.files import SourceFile
from ..protobuf import BYTES, Malformed, ProtobufMessage, Run, field, varint

#: what may be left when the payloads are taken out; a graph of 50,000 weights needs 20 MB
MAX_GRAPH: Final = 64 << 20
#: nodes, initializers and other parts of a graph
MAX_FIELDS: Final = 1 << 20
#: protobuf's own limit: no other reader opens a larger file
MAX_FILE: Final = (2 << 30) - 1

# Tags of bytes: the field's number << 3 | 2.
_GRAPH: Final = 7 << 3 | 2  # ModelProto
_INITIALIZER: Final = 5 << 3 | 2  # GraphProto
#: TensorProto: fields whose bytes in the file are the elements in little-endian order
PAYLOADS: Final = {9 << 3 | 2: "raw_data", 4 << 3 | 2: "float_data", 10 << 3 | 2: "double_data"}


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
    try:
        return _Walk(file).model()
    except Malformed as error:
        raise CorruptCheckpoint(
            f"{file.path}: is not ONNX, or damaged: {error}",
            hint="compare the file's size with the original; a Git LFS pointer needs 'git lfs pull'",
        ) from None


class _Walk:
    def __init__(self, file: SourceFile) -> None:
        self._path = file.path
        self._message = ProtobufMessage(file.pread, file.size)
        self._kept = self._count = 0
        self._payloads: list[tuple[str, Run] | None] = []

    def model(self) -> Split:
        out = bytearray()
        for tag, run, _ in self._message.fields():
            if tag == _GRAPH:
                self._nest(out, tag, self._graph(run))
            else:
                self._copy(out, tag, run)
        return Split(bytes(out), self._payloads)

    def _graph(self, whole: Run) -> bytes:
        out = bytearray()
        for tag, run, _ in self._message.fields(whole):
            self._count += 1
            if self._count > MAX_FIELDS:
                raise UnsafeCheckpoint(f"{self._path}: a graph of more than {MAX_FIELDS:,} parts")
            if tag == _INITIALIZER:
                self._nest(out, tag, self._tensor(run))
            else:
                self._copy(out, tag, run)
        return bytes(out)

    def _tensor(self, whole: Run) -> bytes:
        out = bytearray()
        payload: tuple[str, Run] | None = None
        for tag, run, _ in self._message.fields(whole):
            name = PAYLOADS.get(tag)
            if name is None:
                self._copy(out, tag, run)
            elif payload is None:
                payload = name, run
            else:
                raise Malformed(f"a tensor has {payload[0]} and then {name}", run.offset)
        self._payloads.append(payload)
        return bytes(out)

    def _copy(self, out: bytearray, tag: int, run: Run) -> None:
        self._keep(run.length + 20)
        out += varint(tag)
        if tag & 7 == BYTES:
            out += varint(run.length)
        out += self._message.bytes(run)

    def _nest(self, out: bytearray, tag: int, inner: bytes) -> None:
        self._keep(20)
        out += field(tag, inner)

    def _keep(self, nbytes: int) -> None:
        self._kept += nbytes
        if self._kept > MAX_GRAPH:
            raise UnsafeCheckpoint(
                f"{self._path}: a graph of more than {MAX_GRAPH:,} bytes, weights not counted"
            )
