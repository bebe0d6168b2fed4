"""A norm's weight plus 1: had back exactly where only one number gives the sum, and nowhere else."""

from __future__ import annotations

import json

import ml_dtypes
import numpy
import onnx_source
import pytest
import tiny

from nemoconv.converters.onnx.names.offsets import is_exact, rounding
from nemoconv.converters.run.convert import convert
from nemoconv.errors import UnsupportedError
from nemoconv.stores.files import SourceFile
from nemoconv.stores.memory_file import MemoryFile
from nemoconv.tensors.dtypes import BY_NAME
from nemoconv.tensors.stored import Extent, StoredTensor

from ..onnx_samples import refused, sample

onnx = pytest.importorskip("onnx")
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


def gemma(folder, *, dtype):
    """The builder's Gemma, as of bfloat16 weights: (arrays of the model as uint16)."""
    arrays = sample(folder, "genai_gemma", torch_dtype=dtype)
    message = onnx.load(folder / "model.onnx", load_external_data=False)
    data = numpy.fromfile(folder / "model.onnx.data", numpy.uint32) & numpy.uint32(0xFFFF0000)
    arrays = {name: array & numpy.uint32(0xFFFF0000) for name, array in arrays.items()}
    for tensor in message.graph.initializer:
        told = {entry.key: int(entry.value) for entry in tensor.external_data if entry.key != "location"}
        if "norm" in tensor.name:
            name = tensor.name.replace("model.layers.2.final_norm_layernorm", "model.norm")
            values = arrays[name].view(numpy.float32) + ONE
            data[told["offset"] // 4 :][: len(values)] = values.view(numpy.uint32)
    data.tofile(folder / "model.onnx.data")
    return {name: (array >> 16).astype(numpy.uint16) for name, array in arrays.items()}


def test_a_gemma_of_bfloat16_comes_back(tmp_path):
    arrays = gemma(tmp_path / "model", dtype="bfloat16")
    report = convert(tmp_path / "model", tmp_path / "out", to="hf", dtype="bfloat16", exact=True)
    found = tiny.load(tmp_path / "out")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert numpy.array_equal(found[name], array), name
    assert not any("LOSSY" in note for note in report.notes)


def test_a_gemma_that_does_not_say_so_does_not(tmp_path):
    gemma(tmp_path / "model", dtype="float32")
    message = refused(tmp_path / "model", UnsupportedError, 5, dtype="bfloat16")
    assert "holds a norm's weight plus 1, rounded: the weight itself is lost" in message
    assert json.loads((tmp_path / "model" / "config.json").read_text())["torch_dtype"] == "float32"
    assert onnx_source.CONFIGS["gemma"]["torch_dtype"] == "float32"


def test_what_torch_exports_of_a_gemma_of_bfloat16_comes_back(tmp_path):
    """The exporter folds 1 + weight into constants."""
    sample(tmp_path / "model", "dynamo-bfloat16_gemma2", torch_dtype="bfloat16")
    convert(tmp_path / "model", tmp_path / "out", to="hf", dtype="bfloat16", exact=True)
    found = tiny.load(tmp_path / "out")
    told = onnx_source.arrays(onnx_source.CONFIGS["gemma2"], bfloat16=True)
    assert found.keys() == told.keys()
    for name, array in told.items():
        assert numpy.array_equal(found[name], array >> 16), name
