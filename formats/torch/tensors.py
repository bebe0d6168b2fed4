"""Tensors as torch pickles them: calls of ``_rebuild_*`` over storages, read as plain records.

Nothing of torch is run: a tensor is where its elements lie in a storage, checked against its size. Sources:
torch/serialization.py (``_save``, ``_load``), torch/_utils.py (``_rebuild_*``).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Final

from ...errors import CorruptCheckpoint, UnsafeCheckpoint, UnsupportedError
from ...tensors.dtypes import BY_NAME, BY_STORAGE, DType
from .pickles import Constant, Known, PickledDict, Stub, brief

#: more axes than any tensor has; it bounds the work a shape can cause
MAX_AXES: Final = 64
#: security.md 3.2
MAX_ELEMENTS: Final = 1 << 48


@dataclass(frozen=True, slots=True)
class Storage:
    """A persistent id of data.pkl: record ``data/<key>`` of ``nbytes``; no dtype when untyped."""

    dtype: DType | None
    key: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor of data.pkl, checked against its storage. Strides and offset count elements."""

    storage: Storage
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage_offset: int


@dataclass(frozen=True, slots=True)
class _Unsupported:
    """A type of torch's that no format here can hold."""

    name: str


def _ints(value: object, what: str) -> tuple[int, ...]:
    if type(value) is not tuple or len(value) > MAX_AXES or any(type(n) is not int for n in value):
        raise CorruptCheckpoint(f"a tensor whose {what} is not a tuple of at most {MAX_AXES} ints")
    return value


def _check_strides(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    """Refuse tensors whose elements share bytes: few bytes could then claim to be terabytes."""
    steps = sorted((step, size) for step, size in zip(strides, shape, strict=True) if size != 1)
    reach = 0
    for step, size in steps:
        if step <= reach:
            raise UnsafeCheckpoint(
                f"a tensor of shape {shape} with strides {strides}, whose elements overlap",
                hint="save it again with .contiguous()",
            )
        reach += step * (size - 1)


def _tensor(storage: object, dtype: DType, offset: object, shape: Any, strides: Any) -> TensorRef:
    if type(storage) is not Storage:
        raise CorruptCheckpoint("a tensor without a storage")
    shape, strides = _ints(shape, "shape"), _ints(strides, "stride")
    if type(offset) is not int or offset < 0 or any(size < 0 for size in shape):
        raise CorruptCheckpoint(f"a tensor of shape {shape} at storage offset {brief(offset)}")
    if len(shape) != len(strides):
        raise CorruptCheckpoint(f"a tensor with {len(shape)} axes and {len(strides)} strides")
    count = prod(shape)
    if count > MAX_ELEMENTS:
        raise UnsafeCheckpoint(f"a tensor of {count:,} elements, more than {MAX_ELEMENTS:,}")
    last = offset - 1
    if count:
        _check_strides(shape, strides)
        last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True) if size != 1)
    if (last + 1) * dtype.itemsize > storage.nbytes:
        raise CorruptCheckpoint(
            f"a {dtype} tensor of shape {shape}, strides {strides} and storage offset {offset},"
            f" which needs more than the {storage.nbytes:,} bytes of its storage"
        )
    return TensorRef(storage, dtype, shape, strides, offset)


def _rebuild_tensor_v2(
    storage: Any,
    offset: object,
    shape: object,
    strides: object,
    _requires_grad: object = False,
    _hooks: object = None,
    metadata: object = None,
) -> TensorRef:
    if type(storage) is not Storage or storage.dtype is None:
        raise CorruptCheckpoint("a tensor without a typed storage")
    if metadata:
        raise UnsupportedError("a lazily conjugated or negated tensor; save it resolved")
    return _tensor(storage, storage.dtype, offset, shape, strides)


def _rebuild_tensor_v3(
    storage: Any,
    offset: object,
    shape: object,
    strides: object,
    _requires_grad: object,
    _hooks: object,
    dtype: object,
    metadata: object = None,
) -> TensorRef:
    if isinstance(dtype, _Unsupported):
        raise UnsupportedError(f"a tensor of type {dtype.name}, which cannot be converted")
    if not isinstance(dtype, DType) or metadata:
        raise CorruptCheckpoint("a tensor without an element type")
    return _tensor(storage, dtype, offset, shape, strides)


def _rebuild_parameter(tensor: object, *_rest: object) -> TensorRef:
    if type(tensor) is not TensorRef:
        raise CorruptCheckpoint("a parameter without a tensor")
    return tensor


def torch_size(values: object = ()) -> tuple[int, ...]:
    """What ``torch.Size`` is read as."""
    return _ints(tuple(values) if type(values) is list else values, "torch.Size")


def persistent_storage(key: Any) -> Storage:
    """('storage', storage class, key of the record, device, number of elements)."""
    if type(key) is not tuple or len(key) != 5 or key[0] != "storage":
        raise CorruptCheckpoint("a persistent id that is not a storage")
    _, kind, record, _, count = key
    if isinstance(kind, _Unsupported):
        raise UnsupportedError(f"a storage of type {kind.name}, which cannot be converted")
    if type(record) is not str or type(count) is not int or not 0 <= count <= MAX_ELEMENTS:
        raise CorruptCheckpoint("a storage whose key or size is malformed")
    if kind is _UNTYPED:
        return Storage(None, record, count)
    if not isinstance(kind, DType):
        raise CorruptCheckpoint("a storage without a type")
    return Storage(kind, record, count * kind.itemsize)


_UNTYPED: Final = object()
_OTHER_STORAGES: Final = (
    "ComplexFloatStorage",
    "ComplexDoubleStorage",
    "QInt8Storage",
    "QUInt8Storage",
    "QInt32Storage",
    "QUInt4x2Storage",
    "QUInt2x4Storage",
)
_OTHER_DTYPES: Final = (
    *("complex32", "complex64", "complex128", "float8_e4m3fnuz", "float8_e5m2fnuz"),
    *("float4_e2m1fn_x2", "qint8", "quint8", "qint32"),
)

#: element types as they stand in data.pkl and .metadata
DTYPES_KNOWN: Final[Known] = {
    **{("torch", name): Constant(dtype) for name, dtype in BY_NAME.items()},
    **{("torch", name): Constant(_Unsupported(f"torch.{name}")) for name in _OTHER_DTYPES},
}

#: what torch.save writes for tensors and the containers around them
TENSORS_KNOWN: Final[Known] = {
    **DTYPES_KNOWN,
    **{("torch", name): Constant(dtype) for name, dtype in BY_STORAGE.items()},
    **{("torch", name): Constant(_Unsupported(f"torch.{name}")) for name in _OTHER_STORAGES},
    ("torch.storage", "UntypedStorage"): Constant(_UNTYPED),
    ("torch", "UntypedStorage"): Constant(_UNTYPED),
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch", "Size"): torch_size,
    ("torch", "device"): Stub,
    ("collections", "OrderedDict"): PickledDict,
}
