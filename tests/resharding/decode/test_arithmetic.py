"""Dequantization against its definition, on every code and every scale."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy
import pytest

from nemoconv.resharding.decode import arithmetic as decode


def nearest_bfloat16(value: Fraction) -> float:
    """Round to nearest, ties to even, in exact arithmetic; far from overflow."""
    if not value:
        return 0.0
    exponent = math.floor(math.log2(abs(value)))
    exponent -= abs(value) < Fraction(2) ** exponent
    step = Fraction(2) ** (max(exponent, -126) - 7)
    return float(round(value / step) * step)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
def test_every_code_has_its_value(kind: str) -> None:
    values = decode.fp8_values(kind)
    bits, bias = (3, 7) if kind == "float8_e4m3fn" else (2, 15)
    for code in range(256):
        exponent, fraction = code >> bits & (1 << 7 - bits) - 1, code & (1 << bits) - 1
        special = code & 127 == 127 if kind == "float8_e4m3fn" else exponent == 31
        if special:
            assert not numpy.isfinite(values[code])
            continue
        size = (fraction + (exponent > 0) * (1 << bits)) * 2.0 ** (max(exponent, 1) - bias - bits)
        assert values[code] == (-size if code & 128 else size)
        assert numpy.signbit(values[code]) == (code > 127)


def test_a_product_is_rounded_once_to_nearest_even() -> None:
    rng = numpy.random.default_rng(1)
    codes = numpy.arange(256, dtype=numpy.uint8)[None].repeat(64, 0)
    scales = (
        rng.random((64, 1), numpy.float32) * numpy.float32(2.0) ** rng.integers(-60, 60, (64, 1))
    ).astype(numpy.float32)
    target = numpy.empty((64, 256), ml_dtypes.bfloat16)
    decode.fp8_into(codes, "float8_e4m3fn", scales, target)
    values = decode.fp8_values("float8_e4m3fn")
    for row in range(64):
        for code in range(0, 256, 7):
            if numpy.isfinite(values[code]):
                product = numpy.float32(values[code]) * scales[row, 0]  # a float32, as the reference has it
                assert float(target[row, code]) == nearest_bfloat16(Fraction(float(product)))


def test_subnormal_results_and_negative_zero_survive() -> None:
    codes = numpy.array([[0x01, 0x80, 0x81, 0x08]], numpy.uint8)
    target = numpy.empty((1, 4), ml_dtypes.bfloat16)
    decode.fp8_into(codes, "float8_e4m3fn", numpy.full((1, 1), 2.0**-120, numpy.float32), target)
    assert target.view(numpy.uint16).tolist() == [[0x0010, 0x8000, 0x8010, 0x0080]]


def test_every_mxfp4_byte_at_every_exponent_is_exact() -> None:
    packed = numpy.arange(256, dtype=numpy.uint8).reshape(16, 16)
    grid = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    for exponent in (0, 1, 100, 127, 200, 250):
        target = numpy.empty((16, 32), ml_dtypes.bfloat16)
        decode.mxfp4_into(packed, numpy.full(16, exponent, numpy.uint8), target)
        scale = Fraction(2) ** (exponent - 127)
        for byte in range(256):
            for place, nibble in enumerate((byte & 15, byte >> 4)):
                found = float(target[byte // 16, byte % 16 * 2 + place])
                expected = Fraction(grid[nibble & 7]) * scale
                assert found == nearest_bfloat16(-expected if nibble & 8 else expected)
                assert math.copysign(1, found) == (-1 if nibble & 8 else 1)


def test_scales_of_eight_bits_are_exponents() -> None:
    codes = numpy.array([0, 126, 127, 128, 254], numpy.uint8)
    expected = [2.0**-127, 0.5, 1.0, 2.0, 2.0**127]
    assert decode.scale_values(codes).tolist() == expected
    assert decode.scale_values(codes.view(ml_dtypes.float8_e8m0fnu)).tolist() == expected
    half = numpy.array([1.5], ml_dtypes.bfloat16)
    assert decode.scale_values(half).tolist() == [1.5]
    assert decode.scale_values(half).dtype == numpy.float32
