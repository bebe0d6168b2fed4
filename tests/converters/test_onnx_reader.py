"""ONNX models of other exporters come back as the Hugging Face models that they were made from, to the bit."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy
import pytest

from nemoconv import samples
from nemoconv.converters.conversion import convert
from nemoconv.converters.inspection import inspect
from nemoconv.converters.onnx_names import DECODERS
from nemoconv.converters.onnx_reader import OnnxCheckpoint
from nemoconv.converters.registry import open_checkpoint, recognize
from nemoconv.converters.verification import verify
from nemoconv.errors import (
    CorruptCheckpoint,
    MappingError,
    NemoconvError,
    UnsafeCheckpoint,
    UnsupportedArchitecture,
    UnsupportedError,
    UnsupportedFormat,
    UsageError,
)
from nemoconv.mappings import load_table

onnx = pytest.importorskip("onnx")

FIXTURES = Path(__file__).parents[2] / "fixtures"
SAMPLES = FIXTURES / "onnx"


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


source, tiny = module(SAMPLES / "source.py"), module(FIXTURES / "tiny.py")

EXACT = [
    "genai_llama",
    "genai_llama3_tied",
    "genai_qwen3",
    "optimum_llama",
    "optimum_qwen2",
    "dynamo_qwen3",
    "dynamo_llama_biases",
    "dynamo-plain_llama_square",
    "dynamo-plain_gemma",
]


def sample(folder, name, *, config=True, **changes):
    """A sample as its exporter's user has it: beside the model's config.json."""
    shutil.copytree(SAMPLES / name, folder)
    told = source.CONFIGS[name.partition("_")[2]]
    if config:
        (folder / "config.json").write_text(json.dumps({**told, **changes}))
    return source.arrays(told)


def edited(folder, edit):
    """Change the graph in place; weights stay where they are."""
    message = onnx.load(folder / "model.onnx", load_external_data=False)
    edit(message.graph)
    (folder / "model.onnx").write_bytes(message.SerializeToString())


def refused(model, kind, code, *, to="hf", **options):
    out = model.parent / "out"
    with pytest.raises(NemoconvError) as caught:
        convert(model, out, to=to, **options)
    assert type(caught.value) is kind, caught.value
    assert caught.value.exit_code == code
    assert not out.exists()
    return caught.value.message.replace(str(model), "MODEL")


def assert_equal(folder, arrays):
    found = tiny.load(folder)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert numpy.array_equal(found[name], array), name


# --- other exporters -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXACT)
def test_every_bit_comes_back(tmp_path, name):
    arrays = sample(tmp_path / "model", name)
    report = convert(tmp_path / "model", tmp_path / "out", to="hf", verify=True)
    assert_equal(tmp_path / "out", arrays)
    assert "tensor names found by places in the graph" in report.notes
    assert report.source_format == "onnx"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert source.CONFIGS[name.partition("_")[2]].items() <= config.items()


def test_into_nemo_and_back(tmp_path):
    arrays = sample(tmp_path / "model", "dynamo_qwen3")
    convert(tmp_path / "model", tmp_path / "nemo", to="nemo2", tensor_parallel_size=2, verify=True)
    assert verify(tmp_path / "model", tmp_path / "nemo").equal
    convert(tmp_path / "nemo", tmp_path / "out", to="hf")
    assert_equal(tmp_path / "out", arrays)


def test_slices_are_read_through_transposed_weights(tmp_path):
    arrays = sample(tmp_path / "model", "genai_llama")
    with open_checkpoint(tmp_path / "model") as checkpoint:
        for name in checkpoint.keys():  # noqa: SIM118 - not a mapping
            whole = arrays[name]
            index = (slice(1, 5), slice(2, 7))[: whole.ndim]
            assert checkpoint.read(name, index).tobytes() == whole[index].tobytes(), name


def test_bfloat16_comes_back_out_of_float32(tmp_path):
    """An exporter's float32 of a bfloat16 model: every value fits, NaNs with payloads too."""
    arrays = sample(tmp_path / "model", "genai_llama", torch_dtype="bfloat16")
    data = tmp_path / "model" / "model.onnx.data"
    values = numpy.fromfile(data, numpy.uint32) & numpy.uint32(0xFFFF0000)
    values.tofile(data)
    report = convert(tmp_path / "model", tmp_path / "out", to="hf", dtype="bfloat16", exact=True)
    assert_equal(tmp_path / "out", {name: (a >> 16).astype(numpy.uint16) for name, a in arrays.items()})
    assert "no float32 value was rounded: all of them are bfloat16 numbers" in report.notes


def test_float32_that_never_was_bfloat16(tmp_path):
    arrays = sample(tmp_path / "model", "genai_llama")
    message = refused(tmp_path / "model", UnsupportedError, 5, dtype="bfloat16", exact=True)
    rounded = sum(int(numpy.count_nonzero(a & 0xFFFF)) for a in arrays.values())
    assert message.startswith(f"MODEL: {rounded:,} values are not exact in the new dtype, in decoder.")
    report = convert(tmp_path / "model", tmp_path / "out", to="hf", dtype="bfloat16")
    assert f"{rounded:,} float32 values were rounded to bfloat16" in report.notes
    with pytest.raises(UsageError, match="exact cannot be checked for .*: float32 to float16"):
        convert(tmp_path / "model", tmp_path / "half", to="hf", dtype="float16", exact=True)


# --- nemoconv's own graphs -------------------------------------------------------------------------

SIZES = {
    "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 67, "max_position_embeddings": 128, "rope_theta": 50000.0,
    "torch_dtype": "bfloat16",
}  # fmt: skip
MORE = {
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 20},
    "gemma3_text": {"head_dim": 16, "sliding_window": 20, "sliding_window_pattern": 2},
    "nemotron": {"head_dim": 16},
    "starcoder2": {"sliding_window": 20},
}


@pytest.mark.parametrize("flavor", ["std", "genai"])
@pytest.mark.parametrize("architecture", sorted(DECODERS))
def test_the_places_agree_with_the_names_we_write(tmp_path, architecture, flavor):
    """Writer and reader were written apart: without the mark, places alone give back every name."""
    table = load_table(architecture)
    config = {
        "model_type": architecture,
        "architectures": [table.hf_class],
        **SIZES,
        **MORE.get(architecture, {}),
    }
    samples.build(tmp_path / "hf", config)
    convert(tmp_path / "hf", tmp_path / "onnx", to="onnx", flavor=flavor, pack=True)
    message = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False)
    del message.metadata_props[:]
    renamed = {entry.name: f"w{n}" for n, entry in enumerate(message.graph.initializer)}
    for entry in message.graph.initializer:
        entry.name = renamed[entry.name]
    for node in message.graph.node:
        node.input[:] = [renamed.get(value, value) for value in node.input]
    (tmp_path / "onnx" / "model.onnx").write_bytes(message.SerializeToString())
    convert(tmp_path / "onnx", tmp_path / "out", to="hf")
    assert_equal(tmp_path / "out", tiny.load(tmp_path / "hf"))


KEPT = {
    "gpt2": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "vocab_size": 67,
        "torch_dtype": "bfloat16",
    },
    "phi3": {**SIZES, "pad_token_id": 0},
    "mixtral": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        **SIZES,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "head_dim": 8,
    },
}


@pytest.mark.parametrize("architecture", KEPT)
def test_names_that_were_kept(tmp_path, architecture):
    """Of other architectures, a file is read that has every name, below the name of a wrapper or not."""
    config = {
        "model_type": architecture,
        "architectures": [load_table(architecture).hf_class],
        **KEPT[architecture],
    }
    samples.build(tmp_path / "hf", config)
    convert(tmp_path / "hf", tmp_path / "onnx", to="onnx", pack=True)
    plain = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False)
    del plain.metadata_props[:]

    def save(rename):
        message = onnx.ModelProto.FromString(plain.SerializeToString())
        for entry in message.graph.initializer:
            entry.name = rename(entry.name)
        for node in message.graph.node:
            node.input[:] = [rename(v) if v in held else v for v in node.input]
        (tmp_path / "onnx" / "model.onnx").write_bytes(message.SerializeToString())

    held = {entry.name for entry in plain.graph.initializer}
    save(lambda name: "module." + name)
    report = convert(tmp_path / "onnx", tmp_path / "out", to="hf")
    assert "tensor names found by their own names" in report.notes
    assert_equal(tmp_path / "out", tiny.load(tmp_path / "hf"))
    shutil.rmtree(tmp_path / "out")
    lost = sorted(name for name in held if not name.startswith("/") and "norm" not in name)[-1]
    save(lambda name: "val_1" if name == lost else name)
    assert f"are not there under their names: {lost}" in refused(tmp_path / "onnx", MappingError, 5)


def test_kept_names_of_transposed_weights(tmp_path):
    """A square matrix stored the other way round has the right name and the right shape."""
    config = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], **KEPT["phi3"]}
    samples.build(tmp_path / "hf", config)
    convert(tmp_path / "hf", tmp_path / "onnx", to="onnx", pack=True)
    message = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False)
    del message.metadata_props[:]
    name = "model.layers.1.self_attn.o_proj.weight"
    (tmp_path / "onnx" / "model.onnx").write_bytes(message.SerializeToString())
    convert(tmp_path / "onnx", tmp_path / "out", to="hf")
    for node in message.graph.node:
        if any(name in value for value in node.input) and node.op_type == "Gemm":
            next(a for a in node.attribute if a.name == "transB").i = 0
    (tmp_path / "onnx" / "model.onnx").write_bytes(message.SerializeToString())
    shutil.rmtree(tmp_path / "out")
    assert f"{name!r} is stored transposed or quantized" in refused(tmp_path / "onnx", UnsupportedError, 5)


@pytest.mark.parametrize("pack", [False, True])
def test_our_own_files(tmp_path, pack):
    arrays = tiny.write(tmp_path / "hf", shards=2)
    convert(tmp_path / "hf", tmp_path / "onnx", to="onnx", pack=pack)
    report = convert(tmp_path / "onnx" / "model.onnx", tmp_path / "out", to="hf", verify=True)
    assert_equal(tmp_path / "out", arrays)
    assert "tensor names found by names that nemoconv wrote" in report.notes


# --- what is only an approximation -----------------------------------------------------------------


def test_norms_with_one_added(tmp_path):
    """The builder stores 1 + w in float32; w itself is gone, to half a unit of the last place of 1."""
    arrays = sample(tmp_path / "model", "genai_gemma")
    message = refused(tmp_path / "model", UnsupportedError, 5)
    assert "layernorm.weight' holds a norm's weight plus 1, rounded: the weight itself is lost" in message
    report = convert(tmp_path / "model", tmp_path / "out", to="hf", dequantize=True)
    assert any(note.startswith("LOSSY: 1 is taken off 5 norms") for note in report.notes)
    found = tiny.load(tmp_path / "out")
    for name, array in arrays.items():
        if "norm" in name:
            difference = found[name].view(numpy.float32) - array.view(numpy.float32)
            assert 0 < numpy.abs(difference).max() <= 1.2e-7, name
        else:
            assert numpy.array_equal(found[name], array), name


@pytest.mark.parametrize("zeros", [False, True])
def test_four_bits(tmp_path, zeros):
    """What ONNX Runtime computes with, neither more nor less, with zero points and without."""
    runtime = pytest.importorskip("onnxruntime")
    arrays = sample(tmp_path / "model", "genai-int4_llama")

    def edit(graph):
        points = numpy.random.default_rng(0).integers(0, 256, 32).astype(numpy.uint8)
        graph.initializer.append(onnx.numpy_helper.from_array(points, "points"))
        for node in graph.node:
            if "down_proj" in node.name:
                node.input.append("points")

    if zeros:
        edited(tmp_path / "model", edit)
    message = refused(tmp_path / "model", UnsupportedError, 5)
    assert "is quantized (MatMulNBits of UINT8)" in message
    report = convert(tmp_path / "model", tmp_path / "out", to="hf", dequantize=True)
    assert any(note.startswith("LOSSY: ") and "quantized weights" in note for note in report.notes)
    found = tiny.load(tmp_path / "out")
    assert found.keys() == arrays.keys()
    message = onnx.load(tmp_path / "model" / "model.onnx")
    checked = 0
    for node in message.graph.node:
        if node.op_type != "MatMulNBits" or "down_proj" not in node.name:
            continue
        columns = next(a.i for a in node.attribute if a.name == "K")
        rows = next(a.i for a in node.attribute if a.name == "N")
        info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
        held = [t for t in message.graph.initializer if t.name in node.input]
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("MatMulNBits", ["x", *node.input[1:]], ["y"], domain="com.microsoft", **{
                a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.name != "accuracy_level"})],
            "g", [info("x", kind, [columns, columns])], [info("y", kind, [columns, rows])], held,
        )  # fmt: skip
        opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
        one = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
        session = runtime.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"])
        (product,) = session.run(None, {"x": numpy.eye(columns, dtype=numpy.float32)})
        layer = node.name.split("layers.")[1][0]
        weight = found[f"model.layers.{layer}.mlp.down_proj.weight"].view(numpy.float32)
        assert numpy.allclose(product.T, weight, rtol=1e-6, atol=1e-9)
        checked += 1
    assert checked == 2
    assert numpy.array_equal(found["model.norm.weight"], arrays["model.norm.weight"])


def test_a_table_of_four_bits(tmp_path):
    """An embedding that a tied head shares, as ONNX Runtime looks it up."""
    runtime = pytest.importorskip("onnxruntime")
    arrays = sample(tmp_path / "model", "genai-int4_llama3_tied")
    convert(tmp_path / "model", tmp_path / "out", to="hf", dequantize=True)
    found = tiny.load(tmp_path / "out")
    assert found.keys() == arrays.keys()
    message = onnx.load(tmp_path / "model" / "model.onnx")
    del message.graph.output[:]
    lookup = next(n for n in message.graph.node if n.op_type == "GatherBlockQuantized")
    kind = onnx.TensorProto.FLOAT
    message.graph.output.append(onnx.helper.make_tensor_value_info(lookup.output[0], kind, [1, 64, 32]))
    last = list(message.graph.node).index(lookup)
    del message.graph.node[last + 1 :]
    session = runtime.InferenceSession(message.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {
        entry.name: numpy.ones((1, 64), numpy.int64)
        for entry in session.get_inputs()
        if "past" not in entry.name
    }
    given |= {
        e.name: numpy.zeros((1, 2, 0, 8), numpy.float32) for e in session.get_inputs() if "past" in e.name
    }
    given["input_ids"] = numpy.arange(64)[None]
    (rows,) = session.run(None, given)
    assert numpy.array_equal(rows[0], found["model.embed_tokens.weight"].view(numpy.float32))


@pytest.mark.parametrize("kind", ["INT8", "UINT8", "INT4", "UINT4"])
@pytest.mark.parametrize("axis", ["one", 0, 1, "blocks of rows", "blocks of columns"])
def test_quantized_and_dequantized(tmp_path, kind, axis):
    """A DequantizeLinear before each use of a weight [in, out]: the onnx reference says what it stands for."""
    arrays = sample(tmp_path / "model", "optimum_llama")
    graph = onnx.load(tmp_path / "model" / "model.onnx").graph
    node = [n for n in graph.node if n.op_type == "MatMul" and n.name.endswith("down_proj/MatMul")][1]
    random = numpy.random.default_rng(0)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, kind))
    low, high = (
        (0, 1 << int(kind[-1])) if kind[0] == "U" else (-(1 << int(kind[-1]) - 1), 1 << int(kind[-1]) - 1)
    )
    codes = random.integers(low, high, (48, 32)).astype(dtype)
    shape = {"one": (), 0: (48,), 1: (32,), "blocks of rows": (3, 32), "blocks of columns": (48, 2)}[axis]
    number = {"one": 1, 0: 0, 1: 1, "blocks of rows": 0, "blocks of columns": -1}[axis]
    block = {"block_size": 16} if len(shape) == 2 else {}
    scales = random.normal(size=shape).astype(numpy.float32)
    zeros = numpy.asarray(random.integers(low, high, shape)).astype(dtype)
    attributes = {"axis": number, **block}
    held = [
        onnx.numpy_helper.from_array(a, n)
        for a, n in ((codes, "codes"), (scales, "scales"), (zeros, "zeros"))
    ]
    decode = onnx.helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["plain"], **attributes)

    def edit(graph):
        graph.initializer.extend(held)
        graph.node.insert(0, decode)
        for n in graph.node:
            if n.name == node.name:
                n.input[1] = "plain"

    edited(tmp_path / "model", edit)
    assert f"'codes' is quantized (DequantizeLinear of {kind})" in refused(
        tmp_path / "model", UnsupportedError, 5
    )
    report = convert(tmp_path / "model", tmp_path / "out", to="hf", dequantize=True)
    assert "LOSSY: 1 quantized weights are only approximations: codes" in report.notes
    name = "model.layers.1.mlp.down_proj.weight"
    value = onnx.helper.make_tensor_value_info("plain", onnx.TensorProto.FLOAT, [48, 32])
    alone = onnx.helper.make_graph([decode], "g", [], [value], held)
    one = onnx.helper.make_model(alone, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    from onnx.reference import ReferenceEvaluator

    (plain,) = ReferenceEvaluator(one).run(None, {})
    assert_equal(tmp_path / "out", {**arrays, name: plain.T.view(numpy.uint32)})


def test_other_quantizations(tmp_path):
    sample(tmp_path / "model", "optimum_llama")
    node = onnx.helper.make_node("MatMulInteger", ["logits", "logits"], ["z"], name="integers")
    edited(tmp_path / "model", lambda graph: graph.node.append(node))
    message = refused(tmp_path / "model", UnsupportedError, 5, dequantize=True)
    assert "MatMulInteger 'integers' computes with quantized weights" in message


def test_dequantize_without_anything_quantized(tmp_path):
    tiny.write(tmp_path / "hf")
    assert "has nothing to dequantize" in refused(tmp_path / "hf", UsageError, 2, dequantize=True)


# --- weights must be where they belong -------------------------------------------------------------


def test_exchanged_names_are_noticed(tmp_path):
    """Query and key of the same shape, under each other's names: the graph says otherwise."""
    sample(tmp_path / "model", "dynamo-plain_llama_square")
    names = {
        f"model.model.layers.1.self_attn.{a}_proj.weight": f"model.model.layers.1.self_attn.{b}_proj.weight"
        for a, b in ("qk", "kq")
    }

    def edit(graph):
        for entry in graph.initializer:
            entry.name = names.get(entry.name, entry.name)
        for node in graph.node:
            node.input[:] = [names.get(value, value) for value in node.input]

    edited(tmp_path / "model", edit)
    assert refused(tmp_path / "model", MappingError, 5) == (
        "MODEL/model.onnx: 'model.model.layers.1.self_attn.k_proj.weight' has the name of another weight: in the "
        "graph it is the query weight of layer 1, model.layers.1.self_attn.q_proj.weight"
    )


def test_exchanged_uses_are_followed(tmp_path):
    """Without names only the use counts: the weight that multiplies the queries is q_proj."""
    arrays = sample(tmp_path / "model", "dynamo-plain_llama_square")
    names = {f"model.model.layers.0.self_attn.{a}_proj.weight": f"w{a}" for a in "qk"}

    def edit(graph):
        for entry in graph.initializer:
            entry.name = names.get(entry.name, entry.name)
        swapped = {"model.model.layers.0.self_attn.q_proj.weight": "wk",
                   "model.model.layers.0.self_attn.k_proj.weight": "wq"}  # fmt: skip
        for node in graph.node:
            node.input[:] = [swapped.get(value, value) for value in node.input]

    edited(tmp_path / "model", edit)
    convert(tmp_path / "model", tmp_path / "out", to="hf")
    q, k = (f"model.layers.0.self_attn.{a}_proj.weight" for a in "qk")
    assert_equal(tmp_path / "out", {**arrays, q: arrays[k], k: arrays[q]})


def test_order_in_the_file_means_nothing(tmp_path):
    arrays = sample(tmp_path / "model", "optimum_llama")

    def edit(graph):
        held = list(graph.initializer)[::-1]
        del graph.initializer[:]
        graph.initializer.extend(held)

    edited(tmp_path / "model", edit)
    convert(tmp_path / "model", tmp_path / "out", to="hf")
    assert_equal(tmp_path / "out", arrays)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"intermediate_size": 40}, "model.layers.0.mlp.gate_proj.weight, but has shape [48, 32], and the config asks for [40, 32]"),
        ({"vocab_size": 63}, "is the embedding weight, model.embed_tokens.weight, but has shape [64, 32]"),
        ({"num_key_value_heads": 4}, "has shape [16, 32], and the config asks for [32, 32]"),
    ],
)  # fmt: skip
def test_a_config_of_other_shapes(tmp_path, changes, words):
    sample(tmp_path / "model", "optimum_llama", **changes)
    assert words in refused(tmp_path / "model", MappingError, 5)


def test_a_config_of_other_parts(tmp_path):
    sample(tmp_path / "layers", "optimum_llama", num_hidden_layers=3)
    message = refused(tmp_path / "layers", MappingError, 5)
    assert "tensors that 'llama' needs are missing: model.layers.2." in message
    sample(tmp_path / "biases", "optimum_llama", attention_bias=True)
    assert "needs are missing: model.layers.0.self_attn.q_proj.bias" in refused(
        tmp_path / "biases", MappingError, 5
    )
    sample(tmp_path / "fewer", "dynamo_qwen3", num_hidden_layers=1)
    assert "tensors have no rule in the 'qwen3' table" in refused(tmp_path / "fewer", MappingError, 5)


def test_a_packed_projection_of_other_heads(tmp_path):
    sample(tmp_path / "model", "genai_llama", num_key_value_heads=1)
    message = refused(tmp_path / "model", MappingError, 5)
    assert "is the query, key and value weight of layer 0 with 64 rows, and the config asks for 48" in message


def test_a_tied_model_whose_copies_differ(tmp_path):
    sample(tmp_path / "model", "optimum_llama", tie_word_embeddings=True)
    message = refused(tmp_path / "model", MappingError, 5)
    assert message.startswith("MODEL: the config ties lm_head.weight to model.embed_tokens.weight, but at ")


def test_an_extra_weight(tmp_path):
    sample(tmp_path / "model", "optimum_llama")

    def edit(graph):
        extra = onnx.numpy_helper.from_array(numpy.ones((64, 4), numpy.float32), "extra")
        graph.initializer.append(extra)
        graph.node.append(onnx.helper.make_node("MatMul", ["logits", "extra"], ["more"]))

    edited(tmp_path / "model", edit)
    assert "1 weights have no place in the model: extra" in refused(tmp_path / "model", MappingError, 5)


def test_sub_graphs(tmp_path):
    sample(tmp_path / "model", "optimum_llama")
    body = onnx.helper.make_graph([], "body", [], [])
    node = onnx.helper.make_node("If", ["logits"], ["z"], name="branch", then_branch=body, else_branch=body)
    edited(tmp_path / "model", lambda graph: graph.node.append(node))
    message = refused(tmp_path / "model", UnsupportedError, 5)
    assert "has sub-graphs (If branch, If branch), which are not converted" in message


def test_architectures_without_places(tmp_path):
    """Names are not made up for a model whose parts are unknown; kept names would do."""
    sample(tmp_path / "model", "optimum_llama")
    config = {**source.CONFIGS["llama"], "model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert "weights of a 'phi3' are not there under their names" in refused(
        tmp_path / "model", MappingError, 5
    )


# --- any model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["genai_llama", "optimum_qwen2"])
def test_without_a_config(tmp_path, name):
    """Nothing is guessed; the weights can be had under the graph's names."""
    arrays = sample(tmp_path / "model", name, config=False)
    message = refused(tmp_path / "model", UnsupportedArchitecture, 5)
    assert message == "MODEL: has no config.json, and an ONNX graph does not say what model it is"
    facts = inspect(tmp_path / "model")
    assert facts["problem"].startswith(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(source.CONFIGS[name.partition("_")[2]]))
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
    told = {**source.CONFIGS["llama"], "rope_theta": 5.0}
    onnx.helper.set_model_props(message, {"nemoconv.config": json.dumps(told)})
    (tmp_path / "model" / "model.onnx").write_bytes(message.SerializeToString())
    assert "nemoconv.config differs from config.json beside it" in refused(
        tmp_path / "model", CorruptCheckpoint, 3
    )
    (tmp_path / "config.json").write_text(json.dumps(source.CONFIGS["llama"]))
    convert(tmp_path / "model", tmp_path / "out", to="hf", config=tmp_path / "config.json")
    (tmp_path / "model" / "config.json").unlink()
    with OnnxCheckpoint(tmp_path / "model") as checkpoint:
        assert checkpoint.config["rope_theta"] == 5.0


def test_truncated_external_data(tmp_path):
    sample(tmp_path / "model", "genai_llama")
    data = (tmp_path / "model" / "model.onnx.data").read_bytes()
    (tmp_path / "model" / "model.onnx.data").write_bytes(data[:-1])
    assert "ends at" in refused(tmp_path / "model", CorruptCheckpoint, 3)
