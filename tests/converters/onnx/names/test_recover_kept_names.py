"""A graph of an architecture whose parts are not told apart is read if it has kept all names."""

from __future__ import annotations

import shutil

import pytest
import tiny

from nemoconv.converters.run.convert import convert
from nemoconv.errors import (
    MappingError,
    UnsupportedError,
)
from nemoconv.mappings import load_table, samples

from ..onnx_samples import assert_equal, refused

onnx = pytest.importorskip("onnx")


SIZES = {
    "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 67, "max_position_embeddings": 128, "rope_theta": 50000.0,
    "torch_dtype": "bfloat16",
}  # fmt: skip


EXPERTS = {**SIZES, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
KEPT = {
    "deepseek_v3": {
        **EXPERTS,
        "num_key_value_heads": 4,
        "kv_lora_rank": 20,
        "q_lora_rank": 12,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_nextn_predict_layers": 0,
    },
    "llama4_text": {
        **SIZES,
        "head_dim": 8,
        "intermediate_size_mlp": 40,
        "num_local_experts": 4,
        "interleave_moe_layer_step": 2,
        "attn_temperature_tuning": False,
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
    (tmp_path / "onnx" / "nemoconv_manifest.json").unlink()  # the graph is changed on purpose
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
    config = {
        "model_type": "llama4_text",
        "architectures": ["Llama4ForCausalLM"],
        **KEPT["llama4_text"],
        "num_key_value_heads": 4,
    }
    samples.build(tmp_path / "hf", config)
    convert(tmp_path / "hf", tmp_path / "onnx", to="onnx", pack=True)
    (tmp_path / "onnx" / "nemoconv_manifest.json").unlink()  # the graph is changed on purpose
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
