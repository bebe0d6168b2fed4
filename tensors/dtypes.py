"""Element types by their torch names, without torch: sizes, and what each format calls them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy


@dataclass(frozen=True, slots=True)
class DType:
    """One element type. ``itemsize`` is in bytes; ``storage`` is torch's typed storage class."""

    name: str
    itemsize: int
    safetensors: str
    storage: str | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def is_floating_point(self) -> bool:
        return "float" in self.name

    def numpy(self) -> numpy.dtype[Any]:
        """The numpy dtype of the same bits; bfloat16 and the float8 types come from ml_dtypes."""
        import numpy

        if self.name.startswith(("bfloat16", "float8")):
            import ml_dtypes

            kind: numpy.dtype[Any] = numpy.dtype(getattr(ml_dtypes, self.name))
            return kind
        return numpy.dtype(self.name)


# Sources: safetensors README ("Format"), torch/storage.py (typed storage classes), torch.save of 2.13
# for the types that have no typed storage (written through UntypedStorage and _rebuild_tensor_v3).
_ALL: Final = (
    DType("float64", 8, "F64", "DoubleStorage"),
    DType("float32", 4, "F32", "FloatStorage"),
    DType("float16", 2, "F16", "HalfStorage"),
    DType("bfloat16", 2, "BF16", "BFloat16Storage"),
    DType("int64", 8, "I64", "LongStorage"),
    DType("int32", 4, "I32", "IntStorage"),
    DType("int16", 2, "I16", "ShortStorage"),
    DType("int8", 1, "I8", "CharStorage"),
    DType("uint8", 1, "U8", "ByteStorage"),
    DType("bool", 1, "BOOL", "BoolStorage"),
    DType("uint64", 8, "U64"),
    DType("uint32", 4, "U32"),
    DType("uint16", 2, "U16"),
    DType("float8_e4m3fn", 1, "F8_E4M3"),
    DType("float8_e5m2", 1, "F8_E5M2"),
    DType("float8_e8m0fnu", 1, "F8_E8M0"),
)
BY_NAME: Final = {dtype.name: dtype for dtype in _ALL}
BY_SAFETENSORS: Final = {dtype.safetensors: dtype for dtype in _ALL}
BY_STORAGE: Final = {dtype.storage: dtype for dtype in _ALL if dtype.storage}
