"""Quantized Hugging Face directories: what is understood, what is refused, and what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy
import pytest

from nemoconv.converters.look.inspect import inspect
from nemoconv.converters.look.verify import verify
from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.errors import CorruptCheckpoint, UnsupportedConfig
from nemoconv.formats.safetensors import read_header
from nemoconv.mappings import samples
from nemoconv.stores.files import SourceFile
from nemoconv.tensors.dtypes import BY_SAFETENSORS
from nemoconv.testing import data_of

LLAMA = {**samples.LLAMA, "num_hidden_layers": 2}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
CHANNELS = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
            "input_activations": {"num_bits": 8, "dynamic": True},
        }
    },
}
KINDS: dict[str, dict[str, Any]] = {
    "blocks": FP8,
    "one scale": {**FP8, "weight_block_size": None},
    "rows": CHANNELS,
    "fbgemm": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
}
Named = dict[str, tuple[str, tuple[int, ...], bytes]]


def read(folder: Path) -> Named:
    """Type, shape and bytes of every tensor."""
    file = SourceFile(folder / "model.safetensors")
    return {
        name: (tensor.dtype.safetensors, tensor.shape, file.pread(tensor.nbytes, tensor.extents[0].offset))
        for name, tensor in read_header(file)[0].items()
    }


def write(folder: Path, tensors: Named, shards: int = 1) -> None:
    """Write them into one file, or dealt to several with an index, so that scales lie elsewhere."""
    where = {name: f"model-{number % shards}.safetensors" for number, name in enumerate(sorted(tensors))}
    if shards == 1:
        where = dict.fromkeys(tensors, "model.safetensors")
    for file in set(where.values()):
        header, data = {}, b""
        for name, (dtype, shape, raw) in tensors.items():
            if where[name] == file:
                offsets = [len(data), len(data) + len(raw)]
                header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
                data += raw
        text = json.dumps(header).encode()
        (folder / file).write_bytes(len(text).to_bytes(8, "little") + text + data)
    if shards > 1:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def quantize(folder: Path, kind: str, shards: int = 1) -> dict[str, bytes]:
    """Replace the layers' projections by random codes and scales; the bfloat16 bytes they stand for."""
    said, rng = KINDS[kind], numpy.random.default_rng(5)
    expected, tensors = {}, read(folder)
    for name, (_, shape, raw) in list(tensors.items()):
        expected[name] = raw
        if "_proj.weight" not in name:
            continue
        rows, columns = shape
        block = {"blocks": (16, 16), "one scale": shape}.get(kind, (1, columns))
        grid = -(-rows // block[0]), -(-columns // block[1])
        codes = rng.integers(0, 0x7F, shape, numpy.uint8)
        scales = (rng.random(grid, numpy.float32) + numpy.float32(0.01)) / 100
        wide = scales.repeat(block[0], 0)[:rows].repeat(block[1], 1)[:, :columns]
        values = codes.view(ml_dtypes.float8_e4m3fn).astype(numpy.float32) * wide
        expected[name] = values.astype(ml_dtypes.bfloat16).tobytes()
        tensors[name] = "F8_E4M3", shape, codes.tobytes()
        suffix = "_scale_inv" if said["quant_method"] == "fp8" else "_scale"
        stored = () if kind == "one scale" else grid
        tensors[name + suffix] = "F32", stored, scales.tobytes()
        if kind == "fbgemm":
            tensors[name.removesuffix("weight") + "input_scale_ub"] = "F32", (1,), b"\0\0\x96\x44"
    write(folder, tensors, shards)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    return expected


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_decoded_on_the_way(tmp_path: Path, kind: str, shards: int) -> None:
    source, nemo, back = (tmp_path / name for name in ("source", "nemo", "back"))
    samples.build(source, LLAMA)
    expected = quantize(source, kind, shards)
    report = convert(source, nemo, to="nemo2", tensor_parallel_size=2, verify=True)
    assert any("are decoded to bfloat16" in note for note in report.notes)
    assert any("scales of activations" in note for note in report.notes) == (kind == "fbgemm")
    convert(nemo, back, to="hf", verify=True)
    found = read(back)
    assert {name: raw for name, (_, _, raw) in found.items()} == expected
    assert {dtype for dtype, _, _ in found.values()} == {"BF16"}
    assert "quantization_config" not in json.loads((back / "config.json").read_text())
    assert verify(source, nemo).equal
    assert verify(source).equal
    manifest = json.loads((nemo / "nemoconv_manifest.json").read_text())
    assert "are decoded to bfloat16" in manifest["source_notes"][0]
    assert "decoded" in inspect(source)["quantization"]


def test_other_types_are_reached_from_float32(tmp_path: Path) -> None:
    source = tmp_path / "source"
    samples.build(source, LLAMA)
    quantize(source, "blocks")
    name = "model.layers.0.self_attn.q_proj.weight"
    convert(source, tmp_path / "whole", to="hf", dtype="float32")
    convert(source, tmp_path / "half", to="hf", dtype="float16")
    convert(source, tmp_path / "brain", to="hf", dtype="bfloat16")
    convert(source, tmp_path / "default", to="hf")
    whole = numpy.frombuffer(read(tmp_path / "whole")[name][2], numpy.float32)
    assert whole.astype(numpy.float16).tobytes() == read(tmp_path / "half")[name][2]
    assert whole.astype(ml_dtypes.bfloat16).tobytes() == read(tmp_path / "brain")[name][2]
    assert (whole != whole.astype(ml_dtypes.bfloat16).astype(numpy.float32)).any()
    assert data_of(tmp_path / "brain") == data_of(tmp_path / "default")


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"quant_method": "gptq", "bits": 4}, "'gptq'"),
        ({"quant_method": "awq"}, "'awq'"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "'bitsandbytes'"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "'modelopt'"),
        ({}, "None"),
        ([], "None"),
        ({**FP8, "fmt": "int8"}, "int8"),
        ({**FP8, "weight_block_size": [128]}, "block size"),
        ({**FP8, "weight_block_size": [128, -1]}, "block size"),
        ({**CHANNELS, "format": "pack-quantized"}, "pack-quantized"),
        ({**CHANNELS, "kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ({**CHANNELS, "config_groups": {"g": {"weights": {"num_bits": 4, "type": "int"}}}}, "num_bits"),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path: Path, said: Any, named: str) -> None:
    samples.build(tmp_path / "hf", LLAMA)
    config = json.loads((tmp_path / "hf/config.json").read_text())
    (tmp_path / "hf/config.json").write_text(json.dumps({**config, "quantization_config": said}))
    with pytest.raises(UnsupportedConfig, match=named):
        convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    assert named in inspect(tmp_path / "hf")["problem"]
    assert not (tmp_path / "nemo").exists()


def test_codes_without_scales_are_named(tmp_path: Path) -> None:
    samples.build(tmp_path / "hf", LLAMA)
    quantize(tmp_path / "hf", "blocks")
    tensors = read(tmp_path / "hf")
    del tensors["model.layers.1.mlp.up_proj.weight_scale_inv"]
    write(tmp_path / "hf", tensors)
    with pytest.raises(CorruptCheckpoint, match=r"no model\.layers\.1\.mlp\.up_proj\.weight_scale_inv"):
        open_checkpoint(tmp_path / "hf")


@pytest.mark.parametrize(("dtype", "shape"), [("I32", (2, 2)), ("F32", (3, 2)), ("F32", ())])
def test_scales_of_another_type_or_shape_are_named(
    tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    samples.build(tmp_path / "hf", LLAMA)
    quantize(tmp_path / "hf", "blocks")
    tensors = read(tmp_path / "hf")
    count = int(numpy.prod(shape, dtype=int)) * BY_SAFETENSORS[dtype].itemsize
    tensors["model.layers.1.mlp.up_proj.weight_scale_inv"] = dtype, shape, b"\0" * count
    write(tmp_path / "hf", tensors)
    with pytest.raises(CorruptCheckpoint, match="up_proj"):
        open_checkpoint(tmp_path / "hf")


def test_a_scale_nobody_asks_for_is_an_error(tmp_path: Path) -> None:
    from nemoconv.errors import MappingError

    samples.build(tmp_path / "hf", LLAMA)
    quantize(tmp_path / "hf", "blocks")
    tensors = read(tmp_path / "hf")
    tensors["model.norm.weight_scale_inv"] = "F32", (1,), b"\0" * 4
    write(tmp_path / "hf", tensors)
    with pytest.raises(MappingError, match=r"model\.norm\.weight_scale_inv"):
        convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
