"""ONNX files: the graph as plain data, and where the elements of every initializer lie.

Nothing of a model is run or loaded: the parser gets the graph without its weights, external data is
located here, and names that come out of the file are opened through the :class:`Folder` only.

Source: onnx.proto; docs/ExternalData.md of the ONNX repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ...errors import CorruptCheckpoint, UnsafeCheckpoint, UnsupportedError, some
from ...extras import import_extra
from ...stores.files import Folder, SourceFile
from ...stores.memory_file import MemoryFile
from ...tensors.dtypes import DType
from ...tensors.stored import Extent, StoredTensor, contiguous_strides
from ..protobuf import Run
from .types import TYPES, OnnxType
from .wire import PAYLOADS, split

if TYPE_CHECKING:
    import numpy

Shape = tuple[int, ...]
MAX_ELEMENTS: Final = 1 << 48
_MAX_AXES: Final = 32
_LFS: Final = b"version https://git-lfs"
_FLOAT, _INT, _STRING, _TENSOR, _GRAPH, _INTS, _GRAPHS = 1, 2, 3, 4, 5, 7, 10  # AttributeProto.AttributeType
_EXTERNAL: Final = 1  # TensorProto.DataLocation
#: the field that holds the elements of a type where raw_data does not; int32_data for all others
_TYPED: Final = {
    "FLOAT": "float_data",
    "DOUBLE": "double_data",
    "INT64": "int64_data",
    "UINT64": "uint64_data",
    "UINT32": "uint64_data",
}
_ALL_TYPED: Final = ("float_data", "double_data", "int64_data", "uint64_data", "int32_data", "string_data")
_KNOWN_KEYS: Final = frozenset({"location", "offset", "length", "checksum", "basepath"})


@dataclass(frozen=True, slots=True)
class Initializer:
    """A constant of the graph. ``nbytes`` at ``offset`` of ``file`` are its elements in C order, packed
    where they have fewer than eight bits; ``file`` is None for strings."""

    name: str
    type: OnnxType
    shape: Shape
    file: SourceFile | None
    offset: int
    nbytes: int
    external: bool

    def extent(self, dtype: DType) -> Extent:
        """All of it as one box of a tensor of type ``dtype``."""
        if self.file is None:
            raise UnsupportedError(f"the initializer {self.name!r} holds {self.type.name}, not numbers")
        strides = contiguous_strides(self.shape, dtype.itemsize)
        return Extent(self.file, self.offset, (0,) * len(self.shape), self.shape, strides)

    def stored(self) -> StoredTensor:
        """As a tensor under its own name. Raises UnsupportedError for a type that no tensor of ours has."""
        dtype = self.type.dtype
        if dtype is None:
            raise UnsupportedError(f"the initializer {self.name!r} is {self.type.name}: not converted")
        return StoredTensor(self.name, dtype, self.shape, (self.extent(dtype),))

    def values(self, limit: int = 1 << 16) -> numpy.ndarray[Any, Any]:
        """The elements of a small one."""
        import numpy

        if self.nbytes > limit or self.file is None or self.type.dtype is None:
            raise UnsupportedError(f"the initializer {self.name!r} is not a small constant")
        data = self.file.pread(self.nbytes, self.offset)
        return numpy.frombuffer(data, self.type.dtype.numpy()).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """An operation: names of values in and out ("" where one is left out), and attributes: numbers,
    strings, tuples of integers, and tensors as messages."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""

    def __str__(self) -> str:
        return f"{self.op} {self.name or self.outputs[0]!r}"


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output of the graph; a size is a number or the name of a symbol."""

    name: str
    type: str
    shape: tuple[int | str, ...] | None

    def __str__(self) -> str:
        return f"{self.type} {[*self.shape] if self.shape is not None else '(any shape)'}"


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """What a model.onnx says. ``parts`` are what it holds beside nodes and initializers, by kind."""

    file: SourceFile
    ir_version: int
    opsets: Mapping[str, int]
    producer: str
    metadata: Mapping[str, str]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[OnnxNode, ...]
    initializers: Mapping[str, Initializer]
    parts: Mapping[str, tuple[str, ...]]

    def require_plain(self, what: tuple[str, ...]) -> None:
        """Raise UnsupportedError if it has parts of these kinds."""
        for kind in what:
            if kind in self.parts:
                raise UnsupportedError(
                    f"{self.file.path}: has {kind} ({some(self.parts[kind], 5)}), which are not converted"
                )


def read_onnx(folder: Folder, name: str, beside: str = "") -> OnnxFile:
    """Read ``name`` of a folder; external data is looked up below ``beside``, the part of the folder that
    the file lies in.

    Raises CorruptCheckpoint for a file that contradicts itself or its external data, UnsafeCheckpoint
    for external data that lies elsewhere, NemoconvError where the ``onnx`` package is not installed.
    """
    file = folder.file(name)
    if file.pread(min(file.size, 64), 0).startswith(_LFS):
        raise CorruptCheckpoint(
            f"{file.path}: is a Git LFS pointer, not the file itself", hint="run 'git lfs pull' there"
        )
    try:
        return _read(folder, file, beside)
    except _NotText as error:
        raise CorruptCheckpoint(f"{file.path}: the name {error} is not UTF-8") from None


def external_files(file: SourceFile) -> list[str]:
    """The files that hold elements of a model.onnx, as it names them: they are not opened, and any of the
    names may be hostile. Raises CorruptCheckpoint, NemoconvError where ``onnx`` is not installed."""
    graph = _parse(split(file).message, file).graph
    try:
        found = {
            _text(entry.value)
            for tensor in graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
    except _NotText as error:
        raise CorruptCheckpoint(f"{file.path}: the name {error} is not UTF-8") from None
    return sorted(found)


class _NotText(ValueError):
    """A string of the file that is none; protobuf gives its bytes then."""


def _text(value: str | bytes) -> str:
    if isinstance(value, bytes):
        raise _NotText(repr(value))
    return value


def _read(folder: Folder, file: SourceFile, beside: str) -> OnnxFile:
    parts = split(file)
    message = _parse(parts.message, file)
    graph = message.graph
    if len(parts.payloads) != len(graph.initializer):
        raise CorruptCheckpoint(f"{file.path}: its initializers cannot be told apart")
    places = _Places(folder, file, beside)
    initializers: dict[str, Initializer] = {}
    for tensor, payload in zip(graph.initializer, parts.payloads, strict=True):
        name = _text(tensor.name)
        if not name or name in initializers:
            raise CorruptCheckpoint(f"{file.path}: two initializers are called {name!r}")
        initializers[name] = places.initializer(tensor, payload)
    places.check_overlaps()
    nodes, found = [], _Parts()
    for node in graph.node:
        nodes.append(_node(node, file, found))
    found.add("functions", (_text(function.name) for function in message.functions))
    found.add("sparse initializers", (_text(sparse.values.name) for sparse in graph.sparse_initializer))
    found.add("training graphs", ("training_info" for _ in message.training_info))
    return OnnxFile(
        file=file,
        ir_version=message.ir_version,
        opsets={_text(entry.domain) or "ai.onnx": entry.version for entry in message.opset_import},
        producer=f"{_text(message.producer_name)} {_text(message.producer_version)}".strip(),
        metadata=_metadata(message, file),
        inputs=tuple(_value(entry) for entry in graph.input if entry.name not in initializers),
        outputs=tuple(_value(entry) for entry in graph.output),
        nodes=tuple(nodes),
        initializers=initializers,
        parts={kind: tuple(names) for kind, names in found.names.items()},
    )


def _metadata(message: Any, file: SourceFile) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in message.metadata_props:
        key = _text(entry.key)
        if key in found:
            raise CorruptCheckpoint(f"{file.path}: its metadata has the key {key!r} twice")
        found[key] = _text(entry.value)
    return found


def _parse(data: bytes, file: SourceFile) -> Any:
    onnx = import_extra("onnx", f"{file.path}: reading ONNX")
    from google.protobuf.message import DecodeError  # comes with onnx

    message = onnx.ModelProto()
    try:
        message.ParseFromString(data)
    except (DecodeError, RecursionError, ValueError) as error:
        raise CorruptCheckpoint(
            f"{file.path}: is not ONNX, or damaged ({error})", hint="compare its size with the original"
        ) from None
    if not message.HasField("graph") or not message.opset_import:
        raise CorruptCheckpoint(f"{file.path}: is not ONNX: it has no graph or names no operator set")
    return message


class _Parts:
    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}

    def add(self, kind: str, names: Any) -> None:
        for name in names:
            self.names.setdefault(kind, []).append(str(name))


def _node(node: Any, file: SourceFile, parts: _Parts) -> OnnxNode:
    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        name = _text(attribute.name)
        if attribute.type in (_GRAPH, _GRAPHS):
            parts.add("sub-graphs", [f"{_text(node.op_type)} {_text(node.name) or name}"])
        elif attribute.type == _STRING:
            attributes[name] = attribute.s.decode("utf-8", "replace")
        elif attribute.type == _INTS:
            attributes[name] = tuple(attribute.ints)
        elif attribute.type in (_FLOAT, _INT, _TENSOR):
            attributes[name] = {_FLOAT: attribute.f, _INT: attribute.i, _TENSOR: attribute.t}[attribute.type]
    if not node.output:
        raise CorruptCheckpoint(f"{file.path}: the node {node.op_type} {node.name!r} has no output")
    domain = _text(node.domain)
    return OnnxNode(
        op=_text(node.op_type),
        name=_text(node.name),
        inputs=tuple(map(_text, node.input)),
        outputs=tuple(map(_text, node.output)),
        attributes=attributes,
        domain="" if domain == "ai.onnx" else domain,
    )


def _value(entry: Any) -> Value:
    kind = entry.type.tensor_type
    known = TYPES.get(kind.elem_type)
    shape = None
    if kind.HasField("shape"):
        shape = tuple(
            size.dim_value if size.HasField("dim_value") else _text(size.dim_param) or "?"
            for size in kind.shape.dim
        )
    return Value(_text(entry.name), known.name if known else "other", shape)


class _Places:
    """Finds the elements of initializers, in the file itself or in files beside it."""

    def __init__(self, folder: Folder, file: SourceFile, beside: str) -> None:
        self._folder, self._file, self._beside = folder, file, beside
        self._external: dict[str, set[tuple[int, int, str]]] = {}

    def initializer(self, tensor: Any, payload: tuple[str, Run] | None) -> Initializer:
        where = f"{self._file.path}: initializer {tensor.name!r}"
        if tensor.data_type not in TYPES:
            raise UnsupportedError(f"{where} has the unknown element type {tensor.data_type}")
        kind = TYPES[tensor.data_type]
        shape, count = _shape(where, tensor.dims)
        if tensor.HasField("segment"):
            raise UnsupportedError(f"{where} is stored in segments")
        if kind.name == "STRING":
            return Initializer(tensor.name, kind, shape, None, 0, 0, False)
        nbytes = -(-count * kind.bits // 8)
        typed = [name for name in _ALL_TYPED if len(getattr(tensor, name))]
        if tensor.data_location == _EXTERNAL:
            if payload or typed:
                raise CorruptCheckpoint(f"{where} has data both inside and outside the file")
            file, offset = self._locate(where, tensor, nbytes)
            return Initializer(tensor.name, kind, shape, file, offset, nbytes, True)
        if len(tensor.external_data):
            raise CorruptCheckpoint(f"{where} names external data and says that it has none")
        if payload is not None and not typed:
            name, run = payload
            if name != "raw_data" and name != _TYPED.get(kind.name):
                raise CorruptCheckpoint(f"{where} is {kind.name}, but lies in {name}")
            if run.length != nbytes:
                raise _wrong_size(where, shape, kind, nbytes, run.length)
            return Initializer(tensor.name, kind, shape, self._file, run.offset, nbytes, False)
        fields = [*([payload[0]] if payload else []), *typed]
        if len(fields) > 1:
            raise CorruptCheckpoint(f"{where} has data twice: {some(fields)}")
        data = self._elements(where, tensor, kind, fields[0]) if fields else b""
        if len(data) != nbytes:
            raise _wrong_size(where, shape, kind, nbytes, len(data))
        return Initializer(
            tensor.name, kind, shape, MemoryFile(self._file, tensor.name, data), 0, nbytes, False
        )

    @staticmethod
    def _elements(where: str, tensor: Any, kind: OnnxType, name: str) -> bytes:
        """Elements that lie in a field of their own type, not as bytes."""
        import numpy

        if name != _TYPED.get(kind.name, "int32_data"):
            raise CorruptCheckpoint(f"{where} is {kind.name}, but lies in {name}")
        if name in PAYLOADS.values():
            return numpy.array(getattr(tensor, name), f"<f{kind.bits // 8}").tobytes()
        values = numpy.array(getattr(tensor, name), "<u8" if name == "uint64_data" else "<i8")
        unsigned = kind.dtype is None or not kind.name.startswith("INT")
        target = numpy.dtype(f"<{'u' if unsigned else 'i'}{max(1, kind.bits // 8)}")
        if (values.astype(target).astype(values.dtype) != values).any():
            raise CorruptCheckpoint(f"{where} is {kind.name}, but {name} holds larger numbers")
        return values.astype(target).tobytes()

    def _locate(self, where: str, tensor: Any, nbytes: int) -> tuple[SourceFile, int]:
        entries: dict[str, str] = {}
        for entry in tensor.external_data:
            key = _text(entry.key)
            if key in entries or key not in _KNOWN_KEYS:
                raise CorruptCheckpoint(f"{where}: external data with a second or unknown key {key!r}")
            entries[key] = _text(entry.value)
        if not entries.get("location") or entries.get("basepath"):
            raise CorruptCheckpoint(f"{where}: external data without a location, or with a base path")
        location = entries["location"]
        # the folder refuses what is absolute, has .., or leads elsewhere through links
        self._folder.exists(location)
        file = self._folder.file(f"{self._beside}/{location}" if self._beside else location)
        offset = _number(where, "offset", entries.get("offset", "0"))
        length = _number(where, "length", entries.get("length", str(nbytes)))
        if length != nbytes:
            raise _wrong_size(where, tuple(tensor.dims), TYPES[tensor.data_type], nbytes, length)
        if offset + nbytes > file.size:
            raise CorruptCheckpoint(
                f"{where} lies at bytes {offset:,}..{offset + nbytes:,} of {location!r}, "
                f"which ends at {file.size:,}",
                hint="the external data is cut short or belongs to another export",
            )
        self._external.setdefault(file.path, set()).add((offset, nbytes, tensor.name))
        return file, offset

    def check_overlaps(self) -> None:
        """Two initializers may share all their bytes, but not some of them."""
        for path, runs in self._external.items():
            last, end, owner = -1, 0, ""
            for offset, nbytes, name in sorted(runs):
                if nbytes and offset < end and (offset, offset + nbytes) != (last, end):
                    raise CorruptCheckpoint(
                        f"{self._file.path}: {name!r} at byte {offset:,} of {path} overlaps {owner!r}"
                    )
                last, end, owner = offset, max(end, offset + nbytes), name


def _shape(where: str, dims: Any) -> tuple[Shape, int]:
    count = 1
    if len(dims) > _MAX_AXES:
        raise UnsafeCheckpoint(f"{where} has {len(dims):,} axes")
    for size in dims:
        count *= size
        if size < 0:
            raise CorruptCheckpoint(f"{where} has an axis of length {size}")
        if count > MAX_ELEMENTS:
            raise UnsafeCheckpoint(f"{where} claims more than {MAX_ELEMENTS:,} elements")
    return tuple(dims), count


def _number(where: str, key: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise CorruptCheckpoint(f"{where}: external data with {key} {text!r}")
    return int(text)


def _wrong_size(where: str, shape: Shape, kind: OnnxType, nbytes: int, found: int) -> CorruptCheckpoint:
    return CorruptCheckpoint(
        f"{where} of shape {list(shape)} and type {kind.name} needs {nbytes:,} bytes, and has {found:,}"
    )
