"""NeMo 1 archives with a distributed checkpoint in zarr."""

from __future__ import annotations

import json

import legacy_nemo as legacy
import numpy
import pytest
import tiny
import yaml

from nemoconv.converters.look.verify import verify
from nemoconv.converters.run.convert import convert
from nemoconv.errors import CorruptCheckpoint, UnsafeCheckpoint, UnsupportedFormat

pytest.importorskip("torch")


def test_zarr_that_nemo_wrote(tmp_path):
    """NeMo 2.4.1 restored an archive of ours, cast it to bfloat16 and saved it with dist_ckpt_format=zarr."""
    convert(legacy.SAMPLES / "hf_llama_gqa", tmp_path / "bf16", to="hf", dtype="bfloat16")
    convert(legacy.SAMPLES / "llama_mcore_zarr_bf16.nemo", tmp_path / "hf", to="hf", verify=True)
    legacy.assert_holds(tmp_path / "hf", tiny.load(tmp_path / "bf16"))
    assert verify(legacy.SAMPLES / "llama_mcore_zarr_bf16.nemo", tmp_path / "bf16").equal


def zarr_files(arrays, config, *, chunk=None, dtype="bfloat16", **changes):
    """A megatron-core checkpoint in zarr, layers stacked, as NeMo 1.21 to 2.0 wrote it."""
    whole = legacy.megatron(arrays, config)
    layers = config["num_hidden_layers"]
    stacked = {
        "embedding.word_embeddings.weight": whole["embed"],
        "decoder.final_layernorm.weight": whole["norm"],
        "output_layer.weight": whole["out"],
    }
    for part in ("qkv", "proj", "fc2", "norm1", "norm2"):
        suffix = {"norm1": "layer_norm_weight", "norm2": "layer_norm_weight"}.get(part, "weight")
        module = legacy._MCORE[part].removesuffix(".layer_norm_{}")
        stacked[f"decoder.layers.{module}.{suffix}"] = numpy.stack(
            [whole[f"{i}.{part}"] for i in range(layers)]
        )
    stacked["decoder.layers.mlp.linear_fc1.weight"] = numpy.stack(
        [numpy.concatenate([whole[f"{i}.gate"], whole[f"{i}.up"]]) for i in range(layers)]
    )
    files = {
        "model_config.yaml": yaml.safe_dump(legacy.yaml_of(config)).encode(),
        "model_weights/metadata.json": json.dumps(
            {"sharded_backend": "zarr", "sharded_backend_version": 1}
        ).encode(),
        "model_weights/common.pt": b"",
    }
    for name, array in stacked.items():
        steps = [1, *array.shape[1:]] if ".layers." in name else list(array.shape)
        if chunk and array.ndim > 1:
            steps[-2] = chunk
        facts = {
            "zarr_format": 2, "shape": list(array.shape), "chunks": steps, "dtype": dtype, "compressor": None,
            "order": "C", "fill_value": None, "filters": None, **changes,
        }  # fmt: skip
        at = f"model_weights/model.{name}/"
        files[at + ".zarray"] = json.dumps(facts).encode()
        counts = [-(-n // s) for n, s in zip(array.shape, steps, strict=True)]
        for index in numpy.ndindex(*counts):
            block = numpy.zeros(steps, array.dtype)  # edge chunks are stored whole
            part = array[tuple(slice(i * s, (i + 1) * s) for i, s in zip(index, steps, strict=True))]
            block[tuple(slice(0, n) for n in part.shape)] = part
            files[at + ".".join(map(str, index))] = block.tobytes()
    return files


@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("where", ["archive", "folder"])
def test_zarr(tmp_path, chunk, where):
    arrays = tiny.tensors(legacy.CONFIG)
    files = zarr_files(arrays, legacy.CONFIG, chunk=chunk)
    source = (
        legacy.pack(tmp_path / "x.nemo", files)
        if where == "archive"
        else legacy.unpack(tmp_path / "x", files)
    )
    convert(source, tmp_path / "hf", to="hf", verify=True)
    legacy.assert_holds(tmp_path / "hf", arrays)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"compressor": {"id": "blosc"}}, UnsupportedFormat, "compressed"),
        ({"zarr_format": 3}, UnsupportedFormat, "version 2"),
        ({"order": "F"}, UnsupportedFormat, "C order"),
        ({"dtype": "|O"}, UnsupportedFormat, "type"),
        ({"shape": [1 << 40, 1 << 40], "chunks": [1, 1]}, UnsafeCheckpoint, "chunks of shape"),
        ({"shape": [-1, 2]}, CorruptCheckpoint, "no shape"),
        ({"chunks": [0, 1]}, CorruptCheckpoint, "chunks"),
        ({"shape": "wide"}, CorruptCheckpoint, "no shape"),
    ],
)
def test_zarr_that_is_refused(tmp_path, changes, error, says):
    files = zarr_files(tiny.tensors(legacy.CONFIG), legacy.CONFIG, **changes)
    with pytest.raises(error) as caught:
        convert(legacy.pack(tmp_path / "x.nemo", files), tmp_path / "hf", to="hf")
    assert says in str(caught.value)


@pytest.mark.parametrize("change", ["missing", "short"])
def test_zarr_chunks_that_are_not_there(tmp_path, change):
    files = zarr_files(tiny.tensors(legacy.CONFIG), legacy.CONFIG)
    name = "model_weights/model.decoder.layers.mlp.linear_fc2.weight/2.0.0"
    if change == "missing":
        del files[name]
    else:
        files[name] = files[name][:-2]
    with pytest.raises(CorruptCheckpoint, match=r"linear_fc2\.weight/2\.0\.0"):
        convert(legacy.pack(tmp_path / "x.nemo", files), tmp_path / "hf", to="hf")
