"""Rows divided by their lengths as they are read, whatever part of them is asked for."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy
import pytest
from safetensors.numpy import save_file

from nemoconv.errors import CorruptCheckpoint
from nemoconv.formats.safetensors import read_header
from nemoconv.resharding.decode.norms import UnitRows
from nemoconv.resharding.decode.quantized import decoded
from nemoconv.stores.files import SourceDir
from nemoconv.tensors.read import read_box
from nemoconv.tensors.stored import StoredTensor

ROWS, COLUMNS = 40, 4000  # more than a band


def stored(folder: Path, array: numpy.ndarray) -> StoredTensor:  # type: ignore[type-arg]
    save_file({"w": array}, folder / "model.safetensors")
    return read_header(SourceDir(folder).file("model.safetensors"))[0]["w"]


@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, numpy.float16, numpy.float32])
def test_every_part_is_the_same_part_of_the_whole(tmp_path: Path, kind: type) -> None:
    weights = numpy.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype(kind)
    weights[3] = 0
    weights[4, 7] = numpy.nan
    weights[5] = -0.0
    wide = weights.astype(numpy.float64)
    lengths = numpy.maximum(numpy.sqrt((wide**2).sum(1, keepdims=True)), 1e-12)
    expected = (wide / lengths).astype(kind)
    tensor = stored(tmp_path, weights)
    unit = decoded("w", UnitRows(tensor), tensor.dtype)
    whole = read_box(unit, (0, 0), (ROWS, COLUMNS))
    bits = numpy.dtype(f"u{whole.dtype.itemsize}")
    away = numpy.abs(whole.view(bits).astype(numpy.int64) - expected.view(bits).astype(numpy.int64))
    numbers = ~numpy.isnan(wide).any(1)
    assert away[numbers].max() <= 1  # the lengths are rounded to float32
    assert (away[numbers] == 0).mean() > (0.6 if kind is numpy.float32 else 0.999)
    assert numpy.isnan(whole[4].astype(float)).all()
    assert whole[3].tobytes() == weights[3].tobytes()
    assert whole[5].tobytes() == weights[5].tobytes()
    for start, shape in [((0, 0), (1, 1)), ((2, 3990), (3, 10)), ((39, 1), (1, 3999)), ((6, 0), (34, 4000))]:
        part = read_box(unit, start, shape)
        inside = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
        assert part.tobytes() == numpy.ascontiguousarray(whole[inside]).tobytes()


@pytest.mark.parametrize("array", [numpy.zeros(4, numpy.float32), numpy.zeros((2, 2), numpy.int32)])
def test_what_is_no_matrix_of_numbers_is_refused(tmp_path: Path, array: numpy.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(CorruptCheckpoint, match="w is"):
        UnitRows(stored(tmp_path, array))
