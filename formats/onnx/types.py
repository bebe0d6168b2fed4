"""ONNX's element types: their names, their size in bits, and which of ours they are.

Source: onnx.proto, ``TensorProto.DataType``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ...tensors.dtypes import BY_NAME, DType


class OnnxType(NamedTuple):
    """``dtype`` is None for what has no counterpart here; ``bits`` are those of one element."""

    name: str
    bits: int
    dtype: DType | None


def _type(name: str, bits: int, dtype: str | None = None) -> OnnxType:
    return OnnxType(name, bits, BY_NAME[dtype] if dtype else None)


TYPES: Final = {
    1: _type("FLOAT", 32, "float32"),
    2: _type("UINT8", 8, "uint8"),
    3: _type("INT8", 8, "int8"),
    4: _type("UINT16", 16, "uint16"),
    5: _type("INT16", 16, "int16"),
    6: _type("INT32", 32, "int32"),
    7: _type("INT64", 64, "int64"),
    8: _type("STRING", 0),
    9: _type("BOOL", 8, "bool"),
    10: _type("FLOAT16", 16, "float16"),
    11: _type("DOUBLE", 64, "float64"),
    12: _type("UINT32", 32, "uint32"),
    13: _type("UINT64", 64, "uint64"),
    14: _type("COMPLEX64", 64),
    15: _type("COMPLEX128", 128),
    16: _type("BFLOAT16", 16, "bfloat16"),
    17: _type("FLOAT8E4M3FN", 8, "float8_e4m3fn"),
    18: _type("FLOAT8E4M3FNUZ", 8),
    19: _type("FLOAT8E5M2", 8, "float8_e5m2"),
    20: _type("FLOAT8E5M2FNUZ", 8),
    21: _type("UINT4", 4),
    22: _type("INT4", 4),
    23: _type("FLOAT4E2M1", 4),
    24: _type("FLOAT8E8M0", 8, "float8_e8m0fnu"),
    25: _type("UINT2", 2),
    26: _type("INT2", 2),
    27: _type("FLOAT6E2M3", 6),
    28: _type("FLOAT6E3M2", 6),
}
