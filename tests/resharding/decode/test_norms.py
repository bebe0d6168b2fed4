"""A norm's weight plus 1: had back exactly where only one number gives the sum, and nowhere else."""

from __future__ import annotations

import ml_dtypes
import numpy
import pytest

from nemoconv.resharding.decode.norms import LessOne, is_exact, less_one, rounding
from nemoconv.resharding.decode.quantized import decoded
from nemoconv.stores.files import SourceFile
from nemoconv.stores.memory_file import MemoryFile
from nemoconv.tensors.dtypes import BY_NAME
from nemoconv.tensors.read import read_box
from nemoconv.tensors.stored import Extent, StoredTensor

BFLOAT16, FLOAT16 = BY_NAME["bfloat16"], BY_NAME["float16"]
ONE = numpy.float32(1)


def stored(values):
    values = numpy.asarray(values, numpy.float32)
    file = MemoryFile(SourceFile(__file__), "norm", values.tobytes())
    extent = Extent(file, 0, (0,), values.shape, (4,))
    return StoredTensor("norm", BY_NAME["float32"], values.shape, (extent,))


def weights(kind, *more):
    found = numpy.random.default_rng(0).standard_normal(1000).astype(numpy.float32) * numpy.float32(0.3)
    found = found[numpy.abs(found) > 1e-3]
    return numpy.append(found, numpy.array(more, numpy.float32)).astype(kind)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
def test_few_bits_come_back(dtype):
    held = weights(dtype.numpy(), -1.0, 1.0, -3.0, 7.5, 2.0**-12)
    assert is_exact(stored(held.astype(numpy.float32) + ONE), dtype)


@pytest.mark.parametrize("lost", [0.0, -0.0, 1e-8, -1e-9, 2.0**-20])
def test_small_weights_are_gone(lost):
    held = weights(ml_dtypes.bfloat16, lost)
    assert not is_exact(stored(held.astype(numpy.float32) + ONE), BFLOAT16)


def test_sums_that_may_have_been_rounded_before():
    """1 added in bfloat16: all of the sums are bfloat16 numbers, and so are other sums."""
    held = weights(ml_dtypes.bfloat16)
    sums = stored((held + ml_dtypes.bfloat16(1)).astype(numpy.float32))
    assert not is_exact(sums, BFLOAT16)
    assert rounding(sums) == 2**-8
    assert rounding(stored(numpy.full(4, 5.3))) == 2**-22
    assert rounding(stored((weights(numpy.float16) + numpy.float16(1)).astype(numpy.float32))) == 2**-11


def test_other_weights():
    full = weights(numpy.float32) + ONE
    assert not is_exact(stored(full), BFLOAT16)
    assert not is_exact(stored(full), BY_NAME["float32"])
    assert not is_exact(stored(full), None)
    few = weights(ml_dtypes.bfloat16).astype(numpy.float32) + ONE
    for strange in (numpy.nan, numpy.inf):
        assert not is_exact(stored(numpy.append(few, numpy.float32(strange))), BFLOAT16)


def test_the_rest_of_a_sum_that_is_read():
    values = numpy.array([1.0, 1.5, 0.25, -3.0], numpy.float32)
    tensor = decoded("n", LessOne(stored(values)), BY_NAME["float32"])
    assert read_box(tensor, (1,), (3,)).tolist() == [0.5, -0.75, -4.0]


VALUES = [1.0, 0.0, -0.0, 2.5, 1.0078125, 0.99609375, 300.0, -1.0, numpy.inf, -numpy.inf, numpy.nan, 1e-30]


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32", "float64"])
def test_against_numpy(tmp_path, name):
    kind = numpy.dtype(getattr(ml_dtypes, name, name))
    stored = numpy.array(VALUES, numpy.float64).astype(kind)
    (tmp_path / "x").write_bytes(b"....." + stored.tobytes())
    file = SourceFile(tmp_path / "x")
    # two extents, as of a tensor that lies in chunks
    size = stored.dtype.itemsize
    extents = (
        Extent(file, 5, (0,), (7,), (size,)),
        Extent(file, 5 + 7 * size, (7,), (len(VALUES) - 7,), (size,)),
    )
    shifted = less_one(StoredTensor("norm", BY_NAME[name], stored.shape, extents))
    found = read_box(shifted, (0,), stored.shape)
    wide = numpy.float64 if name == "float64" else numpy.float32
    expected = (stored.astype(wide) - wide(1)).astype(kind)
    assert found.dtype == expected.dtype
    assert numpy.array_equal(found.astype("f8"), expected.astype("f8"), equal_nan=True)
    assert found[0].astype("f8") == 0.0
    part = read_box(shifted, (3,), (2,))
    assert numpy.array_equal(part.astype("f8"), expected[3:5].astype("f8"))
    file.close()
