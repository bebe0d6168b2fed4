"""A quantized tensor read in pieces is the same as read whole, and holds no more than it is asked for."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy
import pytest

from nemoconv.errors import CorruptCheckpoint
from nemoconv.resharding.decode.quantized import BAND, MXFP4, BlockScaledFP8, decoded
from nemoconv.stores.files import SourceFile
from nemoconv.tensors.dtypes import BY_NAME
from nemoconv.tensors.read import read_box
from nemoconv.tensors.stored import Extent, StoredTensor, contiguous_strides

RNG = numpy.random.default_rng(3)
BF16 = BY_NAME["bfloat16"]


def stored(folder: Path, name: str, array: numpy.ndarray, dtype: str) -> StoredTensor:
    """An array after 7 bytes of a file: nothing may count on alignment."""
    (folder / name).write_bytes(b"\xff" * 7 + array.tobytes())
    strides = contiguous_strides(array.shape, array.dtype.itemsize)
    extent = Extent(SourceFile(folder / name), 7, (0,) * array.ndim, array.shape, strides)
    return StoredTensor(name, BY_NAME[dtype], array.shape, (extent,))


def blocks_of(codes: numpy.ndarray, scales: numpy.ndarray, block: tuple[int, int]) -> numpy.ndarray:
    rows, columns = codes.shape[-2:]
    wide = scales.repeat(block[0], -2).repeat(block[1], -1)[..., :rows, :columns]
    return (codes.view(ml_dtypes.float8_e4m3fn).astype(numpy.float32) * wide).astype(ml_dtypes.bfloat16)


def same_bits(a: numpy.ndarray, b: numpy.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("shape", "block"),
    [((300, 200), (128, 128)), ((5, 7), (128, 128)), ((64, 33), (1, 33)), ((3, 40, 24), (16, 8))],
    ids=str,
)
def test_any_piece_of_fp8(tmp_path: Path, shape: tuple[int, ...], block: tuple[int, int]) -> None:
    codes = RNG.integers(0, 127, shape, numpy.uint8) | RNG.integers(0, 2, shape, numpy.uint8) << 7
    codes[codes & 127 == 127] = 0
    grid = (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))
    scales = RNG.random(grid, numpy.float32) + numpy.float32(0.1)
    encoding = BlockScaledFP8(
        stored(tmp_path, "w", codes, "float8_e4m3fn"), stored(tmp_path, "s", scales, "float32"), block
    )
    tensor, expected = decoded("w", encoding, BF16), blocks_of(codes, scales, block)
    assert same_bits(read_box(tensor, (0,) * len(shape), shape), expected)
    for _ in range(30):
        start = tuple(int(RNG.integers(0, n)) for n in shape)
        size = tuple(int(RNG.integers(1, n - at + 1)) for n, at in zip(shape, start, strict=True))
        piece = expected[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]
        assert same_bits(read_box(tensor, start, size), numpy.ascontiguousarray(piece))


@pytest.mark.parametrize("transposed", [False, True])
def test_any_piece_of_mxfp4(tmp_path: Path, transposed: bool) -> None:
    packed = RNG.integers(0, 256, (2, 6, 3, 16), numpy.uint8)
    exponents = RNG.integers(100, 150, (2, 6, 3), numpy.uint8)
    encoding = MXFP4(stored(tmp_path, "b", packed, "uint8"), stored(tmp_path, "s", exponents, "uint8"))
    grid = numpy.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], numpy.float32)
    values = numpy.concatenate([grid, -grid])
    pairs = numpy.stack([values[packed & 15], values[packed >> 4]], -1).reshape(2, 6, 3, 32)
    scale = numpy.float32(2.0) ** (exponents.astype(numpy.float32) - 127)
    expected = (pairs * scale[..., None]).reshape(2, 6, 96).astype(ml_dtypes.bfloat16)
    expected = numpy.ascontiguousarray(expected.swapaxes(1, 2)) if transposed else expected
    tensor = decoded("w", encoding, BF16, transposed=transposed)
    shape = tensor.shape
    assert same_bits(read_box(tensor, (0, 0, 0), shape), expected)
    for _ in range(30):
        start = tuple(int(RNG.integers(0, n)) for n in shape)
        size = tuple(int(RNG.integers(1, n - at + 1)) for n, at in zip(shape, start, strict=True))
        piece = expected[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]
        assert same_bits(read_box(tensor, start, size), numpy.ascontiguousarray(piece))


def test_float32_keeps_the_product(tmp_path: Path) -> None:
    codes, scales = numpy.array([[0x39]], numpy.uint8), numpy.array([[1.1]], numpy.float32)
    encoding = BlockScaledFP8(
        stored(tmp_path, "w", codes, "float8_e4m3fn"), stored(tmp_path, "s", scales, "float32"), (1, 1)
    )
    whole = read_box(decoded("w", encoding, BY_NAME["float32"]), (0, 0), (1, 1))
    assert whole[0, 0] == numpy.float32(1.125) * numpy.float32(1.1)
    assert whole[0, 0] != float(read_box(decoded("w", encoding, BF16), (0, 0), (1, 1))[0, 0])


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    codes = numpy.zeros((4096, 1024), numpy.uint8)
    scales = numpy.ones((32, 8), numpy.float32)
    encoding = BlockScaledFP8(
        stored(tmp_path, "w", codes, "float8_e4m3fn"), stored(tmp_path, "s", scales, "float32"), (128, 128)
    )
    (extent,) = decoded("w", encoding, BF16).extents
    buffer = memoryview(bytearray(codes.size * 2))
    tracemalloc.start()
    extent.file.read_into(0, buffer)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * BAND


@pytest.mark.parametrize("grid", [(2, 3), (4, 2), (2, 2, 2), (8,)], ids=str)
def test_scales_that_do_not_fit_are_named(tmp_path: Path, grid: tuple[int, ...]) -> None:
    codes = stored(tmp_path, "w", numpy.zeros((200, 200), numpy.uint8), "float8_e4m3fn")
    with pytest.raises(CorruptCheckpoint, match=r"w of shape \[200, 200\].*\[2, 2\]"):
        BlockScaledFP8(codes, stored(tmp_path, "s", numpy.ones(grid, numpy.float32), "float32"), (128, 128))


@pytest.mark.parametrize("shape", [(4, 3, 8), (16,), (4, 2, 16)], ids=str)
def test_blocks_that_do_not_fit_are_named(tmp_path: Path, shape: tuple[int, ...]) -> None:
    packed = stored(tmp_path, "b", numpy.zeros(shape, numpy.uint8), "uint8")
    with pytest.raises(CorruptCheckpoint, match="MXFP4"):
        MXFP4(packed, stored(tmp_path, "s", numpy.zeros((4, 3), numpy.uint8), "uint8"))


def test_a_file_that_is_cut_short_is_an_error(tmp_path: Path) -> None:
    codes = stored(tmp_path, "w", numpy.zeros((64, 64), numpy.uint8), "float8_e4m3fn")
    encoding = BlockScaledFP8(
        codes, stored(tmp_path, "s", numpy.ones((1, 1), numpy.float32), "float32"), (64, 64)
    )
    (tmp_path / "w").write_bytes(b"short")
    with pytest.raises(CorruptCheckpoint, match="ended at byte"):
        read_box(decoded("w", encoding, BF16), (0, 0), (64, 64))
