"""The arithmetic of dequantization: eight- and four-bit codes times their scales, in float32.

Every product is taken in float32 and rounded once, to nearest with ties to even, into the type asked
for: what transformers (``integrations/finegrained_fp8.py``, ``integrations/mxfp4.py``) and DeepSeek's own
``weight_dequant`` compute. Products of a power of two are exact.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy

Array = numpy.ndarray[Any, Any]

#: columns of MXFP4 values that share a scale, and the bytes that hold them (OCP Microscaling, version 1.0)
MXFP4_GROUP, MXFP4_NBYTES = 32, 16
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


@cache
def fp8_values(kind: str) -> Array:
    """float32 [256]: what each code of ``float8_e4m3fn`` or ``float8_e5m2`` stands for."""
    import ml_dtypes

    codes = numpy.arange(256, dtype=numpy.uint8)
    values: Array = codes.view(numpy.dtype(getattr(ml_dtypes, kind))).astype(numpy.float32)
    return values


@cache
def fp4_pairs() -> Array:
    """uint64 [256]: the two float32 of a byte of E2M1 codes, the one of the low four bits first."""
    byte = numpy.arange(256)
    values = numpy.array(_E2M1, numpy.float32)
    return numpy.stack([values[byte & 15], values[byte >> 4]], axis=1).view(numpy.uint64).ravel()


@cache
def e8m0_values() -> Array:
    """float32 [256]: 2 ** (code - 127). Code 255, which the format calls NaN, is infinity, as in torch."""
    with numpy.errstate(over="ignore"):
        return numpy.ldexp(numpy.float32(1), numpy.arange(256) - 127)


def scale_values(stored: Array) -> Array:
    """Stored scales as float32; eight-bit ones are exponents of two (E8M0)."""
    if stored.dtype.itemsize == 1:
        return e8m0_values()[stored.view(numpy.uint8)]
    return stored.astype(numpy.float32)


def fp8_into(codes: Array, kind: str, scales: Array, target: Array) -> None:
    """``target`` [rows, columns] = codes [rows, columns] (uint8) times scales, float32 that broadcast
    against them. ``target`` is of any floating type."""
    values = numpy.take(fp8_values(kind), codes, mode="wrap")
    _product_into(values, scales, target)


def mxfp4_into(packed: Array, exponents: Array, target: Array) -> None:
    """``target`` [groups, 32] = packed [groups, 16] (uint8, two values a byte) times 2 to the power of
    exponents [groups] (uint8, biased by 127)."""
    pairs = numpy.take(fp4_pairs(), packed, mode="wrap")
    _product_into(pairs.view(numpy.float32), e8m0_values()[exponents][:, None], target)


def _product_into(values: Array, scales: Array, target: Array) -> None:
    with numpy.errstate(over="ignore", invalid="ignore"):
        numpy.multiply(values, scales, out=values)
        numpy.copyto(target, values, casting="unsafe")
