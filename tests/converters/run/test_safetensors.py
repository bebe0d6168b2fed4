"""Tensors alone: every one under the name it has, whatever the model, and nothing left out."""

from __future__ import annotations

import json

import numpy
import pytest
import tiny

from nemoconv.converters.look.inspect import inspect
from nemoconv.converters.look.verify import verify
from nemoconv.converters.registry import open_checkpoint, recognize
from nemoconv.converters.run.convert import convert
from nemoconv.errors import CorruptCheckpoint, LayoutError, UnsupportedArchitecture, UnsupportedError

STRANGE = {
    "scalar": tiny.bits((), "bfloat16", 0),
    "empty": tiny.bits((0, 3), "bfloat16", 1),
    "../../name": tiny.bits((2, 3, 4), "bfloat16", 2),
    "big": tiny.bits((300, 70), "bfloat16", 3),
}


def same(folder, arrays):
    found = tiny.load(folder)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].shape == array.shape
        assert numpy.array_equal(found[name], array), name


@pytest.fixture
def strange(tmp_path):
    """A file of tensors that belong to no model."""
    tiny.save(tmp_path / "strange.safetensors", STRANGE)
    return tmp_path / "strange.safetensors"


def test_a_file_of_anything(strange, tmp_path):
    assert recognize(strange).name == "safetensors"
    report = convert(strange, tmp_path / "out", to="safetensors", verify=True)
    same(tmp_path / "out", STRANGE)
    assert (report.tensors_in, report.tensors_out) == (4, 4)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model.safetensors",
        "nemoconv_manifest.json",
    ]
    assert recognize(tmp_path / "out").name == "safetensors"
    assert verify(tmp_path / "out").manifest
    assert inspect(tmp_path / "out")["tensors"] == 4


def test_shards(strange, tmp_path):
    convert(strange, tmp_path / "out", to="safetensors", max_shard_nbytes=100, verify=True)
    same(tmp_path / "out", STRANGE)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 3
    assert recognize(tmp_path / "out").name == "safetensors"
    convert(tmp_path / "out", tmp_path / "one", to="safetensors")
    same(tmp_path / "one", STRANGE)


@pytest.mark.parametrize("to", ["hf", "nemo2"])
def test_nothing_says_what_model_it_is(strange, tmp_path, to):
    with pytest.raises(UnsupportedArchitecture, match="nothing says what model they are"):
        convert(strange, tmp_path / "out", to=to)


def test_from_a_model(tmp_path):
    """Hugging Face names from a Hugging Face directory, Megatron's from NeMo, layer by layer."""
    arrays = tiny.write(tmp_path / "hf", shards=2)
    convert(tmp_path / "hf", tmp_path / "a", to="safetensors", verify=True)
    same(tmp_path / "a", arrays)
    assert verify(tmp_path / "hf", tmp_path / "a").equal
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2", tensor_parallel_size=2)
    convert(tmp_path / "nemo", tmp_path / "b", to="safetensors", verify=True)
    found = tiny.load(tmp_path / "b")
    name = "decoder.layers.1.mlp.linear_fc2.weight"
    assert numpy.array_equal(found[name], arrays["model.layers.1.mlp.down_proj.weight"])
    with open_checkpoint(tmp_path / "nemo") as checkpoint:
        assert set(found) == set(checkpoint.keys())


def test_a_new_dtype(strange, tmp_path):
    tiny.save(tmp_path / "f32.safetensors", {"w": tiny.bits((5,), "float32", 0) & 0xFFFF0000}, "float32")
    convert(tmp_path / "f32.safetensors", tmp_path / "out", to="safetensors", dtype="bfloat16", exact=True)
    expected = ((tiny.bits((5,), "float32", 0) & 0xFFFF0000) >> 16).astype(numpy.uint16)
    same(tmp_path / "out", {"w": expected})
    header = json.loads((tmp_path / "out" / "nemoconv_manifest.json").read_text())
    assert header["dtype"] == "bfloat16"


def test_differences_are_found(strange, tmp_path):
    convert(strange, tmp_path / "out", to="safetensors")
    other = {**STRANGE, "big": STRANGE["big"].copy(), "more": STRANGE["scalar"]}
    other["big"][7, 9] ^= 1
    tiny.save(tmp_path / "other.safetensors", other)
    result = verify(tmp_path / "out", tmp_path / "other.safetensors")
    assert result.different == ["big", "more"]
    assert result.first.startswith("big: at [7, 9] one holds ")
    other = {**STRANGE, "scalar": tiny.bits((1,), "bfloat16", 0)}
    tiny.save(tmp_path / "third.safetensors", other)
    assert (
        "scalar: bfloat16 [] and bfloat16 [1]" in verify(strange, tmp_path / "third.safetensors").describe()
    )


def test_what_is_refused(strange, tmp_path):
    with pytest.raises(LayoutError, match="no parallel layout"):
        convert(strange, tmp_path / "out", to="safetensors", tensor_parallel_size=2)
    data = strange.read_bytes()
    strange.write_bytes(data[:-1])
    with pytest.raises(CorruptCheckpoint, match="does not fit|end at byte"):
        convert(strange, tmp_path / "out", to="safetensors")
    assert not (tmp_path / "out").exists()


def test_the_reserved_name(tmp_path):
    onnx = pytest.importorskip("onnx")
    tensor = onnx.numpy_helper.from_array(numpy.zeros(3, numpy.float32), "__metadata__")
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    (tmp_path / "m.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(UnsupportedError, match="which safetensors reserves"):
        convert(tmp_path / "m.onnx", tmp_path / "out", to="safetensors")


def test_a_hugging_face_directory_is_still_one(tmp_path):
    """Our manifest beside a config.json, or a lost config.json without the manifest: not tensors alone."""
    tiny.write(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "out", to="hf")
    assert recognize(tmp_path / "out").name == "hf"
    (tmp_path / "hf" / "config.json").unlink()
    assert recognize(tmp_path / "hf").name == "hf"
