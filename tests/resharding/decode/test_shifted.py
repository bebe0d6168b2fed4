"""A vector kept with 1 added, as it is without: float32 arithmetic, rounded once."""

from __future__ import annotations

import ml_dtypes
import numpy
import pytest

from nemoconv.resharding.decode.shifted import less_one
from nemoconv.stores.files import SourceFile
from nemoconv.tensors.dtypes import BY_NAME
from nemoconv.tensors.read import read_box
from nemoconv.tensors.stored import Extent, StoredTensor

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
