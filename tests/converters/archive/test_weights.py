"""Weights of any ``.nemo`` in several files: ranks and distributed checkpoints come out as they lie there."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import load_file

from nemoconv.converters.look.inspect import inspect
from nemoconv.converters.look.verify import verify
from nemoconv.converters.run.convert import convert
from nemoconv.errors import CorruptCheckpoint, UnsupportedArchitecture, UnsupportedFormat
from nemoconv.testing import data_of

SAMPLES = Path(__file__).parents[3] / "fixtures" / "legacy"
RANKS, DIST = SAMPLES / "llama_legacy_tp2_pp2.nemo", SAMPLES / "llama_mcore_torch_dist.nemo"
GPT = b"nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel"
FOLDERS = [f"tp_rank_0{tensor}_pp_rank_00{stage}" for tensor in (0, 1) for stage in (0, 1)]
UNKNOWN = b"multimodal.models.multimodal_llm.neva.neva_model.MegatronNevaModel"


def of_unknown_class(source: Path, path: Path, without: str = "\0") -> Path:
    """The archive of a class that nothing here knows."""
    with tarfile.open(source) as old, tarfile.open(path, "w") as new:
        for member in old.getmembers():
            if without in member.name:
                continue
            data = old.extractfile(member).read() if member.isfile() else b""
            if member.name.endswith("model_config.yaml"):
                assert GPT in data
                data = data.replace(GPT, UNKNOWN)
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(params=["gpt", "unknown"])
def ranks(request, tmp_path):
    return RANKS if request.param == "gpt" else of_unknown_class(RANKS, tmp_path / "x.nemo")


def test_ranks_keep_their_tensors_apart(ranks, tmp_path):
    torch = pytest.importorskip("torch")
    convert(ranks, tmp_path / "out", to="safetensors", verify=True)
    held = load_file(tmp_path / "out" / "model.safetensors")
    expected = {}
    with tarfile.open(RANKS) as archive:
        for member in archive.getmembers():
            if member.name.endswith("model_weights.ckpt"):
                state = torch.load(archive.extractfile(member), weights_only=False)
                rank = member.name.removeprefix("./").removesuffix("model_weights.ckpt")
                expected |= {rank + key: value for key, value in state.items() if torch.is_tensor(value)}
    assert held.keys() == expected.keys()
    assert {name.partition("/")[0] for name in held} == set(FOLDERS)
    for name, value in expected.items():
        assert held[name].tobytes() == value.numpy().tobytes()
    assert b"megatron_amp_O2" in (tmp_path / "out" / "artifacts" / "model_config.yaml").read_bytes()
    assert verify(tmp_path / "out", ranks).equal
    assert verify(tmp_path / "out").equal


def test_a_distributed_checkpoint_of_an_unknown_class(tmp_path):
    source = of_unknown_class(DIST, tmp_path / "x.nemo")
    report = convert(source, tmp_path / "out", to="safetensors", verify=True)
    assert report.tensors_out == 9  # of all layers each
    assert data_of(tmp_path / "out") == data_of(source)
    held = load_file(tmp_path / "out" / "model.safetensors")
    original = load_file(SAMPLES / "hf_llama_gqa" / "model.safetensors")
    down = [original[f"model.layers.{i}.mlp.down_proj.weight"] for i in range(4)]
    assert numpy.array_equal(held["model.decoder.layers.mlp.linear_fc2.weight"], numpy.stack(down))
    assert UNKNOWN in (tmp_path / "out" / "artifacts" / "model_config.yaml").read_bytes()
    assert inspect(source)["other contents"] == {"_extra_state objects": 16}
    assert report.notes[1:] == ["16 _extra_state objects not converted"]


@pytest.mark.parametrize("sample", [RANKS, DIST])
def test_what_nothing_can_join_becomes_no_archive(sample, tmp_path):
    source = of_unknown_class(sample, tmp_path / "x.nemo")
    with pytest.raises(
        UnsupportedFormat, match="files, which nothing here knows how to join; convert --to saf"
    ):
        convert(source, tmp_path / "again.nemo", to="nemo")
    convert(source, tmp_path / "out", to="safetensors")
    with pytest.raises(UnsupportedArchitecture, match="holds tensors only"):
        convert(tmp_path / "out", tmp_path / "again.nemo", to="nemo")
    assert not (tmp_path / "again.nemo").exists()


def test_a_missing_rank_is_an_error(tmp_path):
    source = of_unknown_class(RANKS, tmp_path / "x.nemo", without="tp_rank_01_pp_rank_000")
    with pytest.raises(CorruptCheckpoint, match="of 2 x 2 model-parallel ranks 1 are missing"):
        convert(source, tmp_path / "out", to="safetensors")
    assert not (tmp_path / "out").exists()
