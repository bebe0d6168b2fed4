"""An ONNX model as a checkpoint: where it is found, what is told of it, and what cannot be read."""

from __future__ import annotations

import json
import shutil

import numpy
import onnx_source
import pytest
import tiny

from nemoconv.converters.look.inspect import inspect
from nemoconv.converters.look.verify import verify
from nemoconv.converters.onnx.reader import OnnxCheckpoint
from nemoconv.converters.registry import open_checkpoint, recognize
from nemoconv.converters.run.convert import convert
from nemoconv.errors import (
    CorruptCheckpoint,
    NemoconvError,
    UnsafeCheckpoint,
    UnsupportedArchitecture,
    UnsupportedError,
    UnsupportedFormat,
)

from .onnx_samples import assert_equal, edited, refused, sample

onnx = pytest.importorskip("onnx")


# --- any model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["genai_llama", "optimum_qwen2"])
def test_without_a_config(tmp_path, name):
    """Nothing is guessed; the weights can be had under the graph's names."""
    arrays = sample(tmp_path / "model", name, config=False)
    message = refused(tmp_path / "model", UnsupportedArchitecture, 5)
    assert message == "MODEL: has no config.json, and an ONNX graph does not say what model it is"
    facts = inspect(tmp_path / "model")
    assert facts["problem"].startswith(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(onnx_source.CONFIGS[name.partition("_")[2]]))
    convert(tmp_path / "model", tmp_path / "out", to="hf", config=tmp_path / "config.json")
    assert_equal(tmp_path / "out", arrays)


@pytest.mark.parametrize("name", ["genai_llama", "dynamo_qwen3"])
def test_to_safetensors(tmp_path, name):
    sample(tmp_path / "model", name)
    report = convert(tmp_path / "model", tmp_path / "out", to="safetensors", verify=True)
    message = onnx.load(tmp_path / "model" / "model.onnx")
    expected = {t.name: onnx.numpy_helper.to_array(t) for t in message.graph.initializer}
    from safetensors.numpy import load_file

    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].dtype == array.dtype
        assert found[key].shape == array.shape
        assert found[key].tobytes() == array.tobytes()
    assert report.tensors_out == len(expected)
    assert verify(tmp_path / "out").equal
    assert verify(tmp_path / "model", tmp_path / "out").equal


def test_what_safetensors_cannot_hold(tmp_path):
    tensor = onnx.TensorProto(name="w4", data_type=onnx.TensorProto.INT4, dims=(2,), raw_data=b"\x21")
    text = onnx.helper.make_tensor("words", onnx.TensorProto.STRING, [1], [b"a"])
    for extra, words in ((tensor, "INT4: w4"), (text, "STRING: words")):
        folder = tmp_path / extra.name
        sample(folder, "optimum_llama", config=False)
        edited(folder, lambda graph, extra=extra: graph.initializer.append(extra))
        assert f"safetensors cannot hold {words}" in refused(folder, UnsupportedError, 5, to="safetensors")
        assert inspect(folder)["not converted"] == {words.partition(":")[0]: extra.name}


def test_inspect(tmp_path):
    sample(tmp_path / "model", "genai_llama")
    facts = inspect(tmp_path / "model")
    assert facts["format"] == "onnx"
    assert facts["architecture"] == "llama"
    assert facts["names"] == "found by places in the graph"
    assert facts["inputs"]["past_key_values.1.value"] == (
        "FLOAT ['batch_size', 2, 'past_sequence_length', 'kv_cache_dim']"
    )
    assert facts["outputs"]["logits"].startswith("FLOAT ['batch_size', 'sequence_length', ")
    assert facts["operations"]["com.microsoft.GroupQueryAttention"] == 2
    assert facts["external data"] == ["model.onnx.data"]
    assert set(facts["files"]) == {"model.onnx", "model.onnx.data"}
    assert facts["dtypes"] == {"float32": {"tensors": 21, "parameters": facts["parameters"]}}


def test_verify_alone(tmp_path):
    sample(tmp_path / "model", "optimum_llama")
    assert "21 tensors (llama): complete" in verify(tmp_path / "model").describe()
    (tmp_path / "model" / "config.json").unlink()
    assert "architecture unknown" in verify(tmp_path / "model").describe()


def test_damaged_graphs_never_escape(tmp_path):
    """Whatever a byte is changed to: names are found or an error of ours says why not."""
    sample(tmp_path / "model", "genai_llama")
    path = tmp_path / "model" / "model.onnx"
    data = path.read_bytes()
    random = numpy.random.default_rng(2)
    outcomes = set()
    for _ in range(400):
        changed = bytearray(data)
        for place in random.integers(0, len(data), 3):
            changed[place] = random.integers(0, 256)
        path.write_bytes(changed)
        try:
            with OnnxCheckpoint(tmp_path / "model") as checkpoint:
                checkpoint.describe()
                checkpoint.model()
            outcomes.add("read")
        except NemoconvError as error:
            assert error.exit_code in (3, 4, 5)
            outcomes.add(type(error).__name__)
    assert {"read", "CorruptCheckpoint", "MappingError"} <= outcomes


@pytest.mark.parametrize("name", ["dynamo_mixtral", "dynamo_phi3", "genai_gpt_oss"])
def test_rewired_graphs_never_escape(tmp_path, name):
    """Inputs taken away and exchanged, other operations and attributes: an error of ours, if any."""
    sample(tmp_path / "model", name)
    path = tmp_path / "model" / "model.onnx"
    data, outcomes = path.read_bytes(), set()
    for seed in range(40):
        random = numpy.random.default_rng(seed)
        message = onnx.ModelProto.FromString(data)
        nodes = message.graph.node
        node, other = nodes[random.integers(len(nodes))], nodes[random.integers(len(nodes))]
        place = random.integers(max(1, len(node.input)))
        change = random.integers(4)
        if change == 0 and node.input:
            del node.input[place]
        elif change == 1 and node.input:
            node.input[place] = other.output[0]
        elif change == 2:
            node.op_type = other.op_type
        elif node.attribute:
            number = random.integers(-3, 4)
            changed = node.attribute[random.integers(len(node.attribute))]
            changed.CopyFrom(onnx.helper.make_attribute(changed.name, int(number)))
        path.write_bytes(message.SerializeToString())
        try:
            with OnnxCheckpoint(tmp_path / "model") as checkpoint:
                checkpoint.model()
            outcomes.add("read")
        except NemoconvError as error:
            assert error.exit_code in (3, 4, 5)
            outcomes.add(type(error).__name__)
    assert {"read", "CorruptCheckpoint", "MappingError"} <= outcomes


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda value: value.t.external_data.add(key="location", value="secret"), UnsafeCheckpoint,
         "has its elements in another file"),
        (lambda value: setattr(value.t, "data_location", 1), UnsafeCheckpoint, "elements in another file"),
        (lambda value: setattr(value.t, "raw_data", b"?"), CorruptCheckpoint, "has no elements"),
        (lambda value: value.CopyFrom(onnx.helper.make_attribute("value", 7)), CorruptCheckpoint,
         "holds 7, not a tensor"),
    ],
)  # fmt: skip
def test_constants_that_are_none(tmp_path, change, kind, words):
    """A constant of the graph is read nowhere but in the graph."""
    sample(tmp_path / "model", "optimum_gpt_neox")

    def edit(graph):
        constants = {node.output[0]: node for node in graph.node if node.op_type == "Constant"}
        cut = next(node for node in graph.node if node.op_type == "Slice" and "attention" in node.name)
        change(constants[cut.input[3]].attribute[0])

    edited(tmp_path / "model", edit)
    code = 4 if kind is UnsafeCheckpoint else 3
    assert words in refused(tmp_path / "model", kind, code)


@pytest.mark.parametrize("op", ["MatMul", "Mul", "Gather", "Transpose", "Softmax", "Split", "Concat"])
def test_operations_without_inputs(tmp_path, op):
    sample(tmp_path / "model", "optimum_llama")
    edited(tmp_path / "model", lambda graph: graph.node.append(onnx.helper.make_node(op, [], ["strange"])))
    if op == "Split" or op == "Concat":  # not looked at unless they follow a weight
        convert(tmp_path / "model", tmp_path / "out", to="hf", dry_run=True)
    else:
        assert "has 0 inputs" in refused(tmp_path / "model", CorruptCheckpoint, 3)


# --- finding the model -----------------------------------------------------------------------------


def test_places_of_a_model(tmp_path):
    arrays = sample(tmp_path / "model", "genai_llama")
    graph = tmp_path / "model" / "model.onnx"
    assert recognize(graph).name == recognize(tmp_path / "model").name == "onnx"
    convert(graph, tmp_path / "a", to="hf", verify=True)
    assert_equal(tmp_path / "a", arrays)
    (tmp_path / "model" / "onnx").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / "model" / name).rename(tmp_path / "model" / "onnx" / name)
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    convert(tmp_path / "model", tmp_path / "b", to="hf")  # config and tokenizer lie above the graph
    assert_equal(tmp_path / "b", arrays)
    assert (tmp_path / "b" / "tokenizer.json").read_text() == "{}"


def test_a_hub_cache(tmp_path):
    arrays = sample(tmp_path / "plain", "genai_llama")
    repo = tmp_path / "models--org--tiny"
    (repo / "blobs").mkdir(parents=True)
    snapshot = repo / "snapshots" / "0123abcd"
    (snapshot / "onnx").mkdir(parents=True)
    for number, path in enumerate(sorted((tmp_path / "plain").iterdir())):
        shutil.move(path, repo / "blobs" / str(number))
        place = snapshot if path.name == "config.json" else snapshot / "onnx"
        up = "../../blobs" if place == snapshot else "../../../blobs"
        (place / path.name).symlink_to(f"{up}/{number}")
    for number, path in enumerate((snapshot, snapshot / "onnx" / "model.onnx")):
        convert(path, tmp_path / str(number), to="hf", config=snapshot)
        assert_equal(tmp_path / str(number), arrays)
    (snapshot / "onnx" / "model.onnx.data").unlink()
    (tmp_path / "secret").write_bytes(bytes(1 << 20))
    (snapshot / "onnx" / "model.onnx.data").symlink_to("../../../../secret")
    assert "leads outside the checkpoint" in refused(snapshot, UnsafeCheckpoint, 4)


def test_several_models_and_none(tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("encoder.onnx", "decoder.onnx"):
        (tmp_path / "model" / name).write_bytes(b"")
    message = refused(tmp_path / "model", UnsupportedFormat, 5)
    assert message == "MODEL: has 2 ONNX models: decoder.onnx, encoder.onnx"
    with pytest.raises(CorruptCheckpoint, match="is not ONNX: it has no graph"):
        open_checkpoint(tmp_path / "model" / "encoder.onnx")


def test_safetensors_beside_a_graph_are_the_model(tmp_path):
    """What nemoconv and others write: a Hugging Face directory with a graph in it."""
    arrays = tiny.write(tmp_path / "model")
    (tmp_path / "model" / "model.onnx").write_bytes(b"not looked at")
    assert recognize(tmp_path / "model").name == "hf"
    convert(tmp_path / "model", tmp_path / "out", to="hf")
    assert_equal(tmp_path / "out", arrays)


def test_a_config_that_contradicts_the_graph(tmp_path):
    sample(tmp_path / "model", "optimum_llama")
    message = onnx.load(tmp_path / "model" / "model.onnx")
    told = {**onnx_source.CONFIGS["llama"], "rope_theta": 5.0}
    onnx.helper.set_model_props(message, {"nemoconv.config": json.dumps(told)})
    (tmp_path / "model" / "model.onnx").write_bytes(message.SerializeToString())
    assert "nemoconv.config differs from config.json beside it" in refused(
        tmp_path / "model", CorruptCheckpoint, 3
    )
    (tmp_path / "config.json").write_text(json.dumps(onnx_source.CONFIGS["llama"]))
    convert(tmp_path / "model", tmp_path / "out", to="hf", config=tmp_path / "config.json")
    (tmp_path / "model" / "config.json").unlink()
    with OnnxCheckpoint(tmp_path / "model") as checkpoint:
        assert checkpoint.config["rope_theta"] == 5.0


def test_truncated_external_data(tmp_path):
    sample(tmp_path / "model", "genai_llama")
    data = (tmp_path / "model" / "model.onnx.data").read_bytes()
    (tmp_path / "model" / "model.onnx.data").write_bytes(data[:-1])
    assert "ends at" in refused(tmp_path / "model", CorruptCheckpoint, 3)
