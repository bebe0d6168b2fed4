"""Gemma and Gemma 2 in NeMo 1's archives: embeddings that it is told to scale, norms with the 1 or without."""

from __future__ import annotations

import json
import tarfile

import legacy_nemo as legacy
import numpy
import pytest
import tiny
import yaml

from nemoconv.converters.look.inspect import inspect
from nemoconv.converters.look.verify import verify
from nemoconv.converters.registry import find_format, open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.plan import Wish, prepare
from nemoconv.converters.run.reshard import reshard
from nemoconv.errors import UnsupportedArchitecture
from nemoconv.formats.tar_output import OutputArchive
from nemoconv.mappings import samples
from nemoconv.tensors.layout import Layout
from nemoconv.tensors.read import read_box

torch = pytest.importorskip("torch")

CONFIG = {
    **legacy.CONFIG, "model_type": "gemma", "architectures": ["GemmaForCausalLM"], "tie_word_embeddings": True,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh",
}  # fmt: skip
#: what NVIDIA's script for Gemma writes, of what says something of the model
SAID = {
    "activation": "geglu", "openai_gelu": True, "apply_embedding_scaling": True, "normalization": "rmsnorm",
    "bias_activation_fusion": False, "share_embeddings_and_output_weights": True,
}  # fmt: skip


def is_norm(name):
    return "norm" in name


def plus_one(state):
    """The state dict with 1 added to its norms, in float32 and rounded once, as NVIDIA's script does it."""
    return {
        name: (value.float() + 1).to(value.dtype)
        if value is not None and ("layer_norm_weight" in name or "layernorm.weight" in name)
        else value
        for name, value in state.items()
    }


def finite(arrays):
    """The tensors with norms of ordinary numbers, beside the awkward ones."""
    random = numpy.random.default_rng(0)
    for name, array in arrays.items():
        if is_norm(name):
            values = torch.from_numpy(random.normal(size=array.shape)).bfloat16()
            array[3:] = values.view(torch.int16).numpy().view("u2")[3:]
    return arrays


@pytest.mark.parametrize("tp", [1, 2])
def test_norms_that_hold_the_one(tmp_path, tp):
    arrays = finite(tiny.tensors(CONFIG))
    ranks = {rank: plus_one(state) for rank, state in legacy.states(arrays, CONFIG, tp=tp).items()}
    files = legacy.members(ranks, legacy.yaml_of(CONFIG, **SAID))
    source = legacy.pack(tmp_path / "x.nemo", files)
    report = convert(source, tmp_path / "hf", to="hf", verify=True)
    assert inspect(source)["architecture"] == "gemma"
    assert any("9 norms" in note and "taken off" in note for note in report.notes)
    held = tiny.load(tmp_path / "hf")
    assert held.keys() == arrays.keys()
    for name, array in arrays.items():
        if not is_norm(name):
            assert numpy.array_equal(held[name], array), name
            continue
        given = torch.from_numpy(array.view("i2")).view(torch.bfloat16)
        found = torch.from_numpy(held[name].view("i2")).view(torch.bfloat16)
        expected = ((given.float() + 1).bfloat16().float() - 1).bfloat16()
        assert torch.equal(found.view(torch.int16)[3:], expected.view(torch.int16)[3:]), name
        assert (found[3:].float() - given[3:].float()).abs().max() < 2**-6
        assert torch.equal(found[:3].isnan(), given[:3].isnan())
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert {key: config.get(key) for key in CONFIG} == CONFIG


def test_another_layout_leaves_the_one_where_it_is(tmp_path):
    ranks = {rank: plus_one(s) for rank, s in legacy.states(tiny.tensors(CONFIG), CONFIG, tp=2).items()}
    files = legacy.members(ranks, legacy.yaml_of(CONFIG, **SAID))
    reshard(legacy.pack(tmp_path / "x.nemo", files), tmp_path / "y.nemo", tensor_parallel_size=1)
    convert(tmp_path / "y.nemo", tmp_path / "plain", to="safetensors")
    name = "model.decoder.final_layernorm.weight"
    assert numpy.array_equal(
        tiny.load(tmp_path / "plain")[name], ranks[0, 0][name].view(torch.int16).numpy().view("u2")
    )


@pytest.mark.parametrize("kind", ["ranks of 1", "ranks of 2", "torch_dist"])
def test_another_layout_changes_no_norm_and_not_the_source(tmp_path, kind):
    """Norms that hold the one go along as they are, and both archives are read as the same model."""
    norm = "decoder.final_layernorm.weight"
    if kind == "torch_dist":
        files = unpacked(as_torch_dist(tmp_path))
        settings = yaml.safe_load(files["model_config.yaml"])
        assert settings.pop("layernorm_zero_centered_gamma") is True
        files["model_config.yaml"] = yaml.safe_dump(settings).encode()
    else:
        states = legacy.states(finite(tiny.tensors(CONFIG)), CONFIG, tp=int(kind[-1]))
        states = {rank: plus_one(state) for rank, state in states.items()}
        files = legacy.members(states, legacy.yaml_of(CONFIG, **SAID))
    source = legacy.pack(tmp_path / "x.nemo", files)
    with open_checkpoint(source) as opened:
        before = opened.read(norm).tobytes()
        held = opened.pieces(norm)[0].stored
        assert read_box(held, (0,), held.shape).tobytes() != before
        with OutputArchive(tmp_path / "planned.nemo") as output:
            prepare(opened, output, find_format("nemo"), Wish(Layout(4), rewrite=True))
        assert opened.read(norm).tobytes() == before
    report = reshard(source, tmp_path / "y.nemo", tensor_parallel_size=4, verify=True)
    assert not any("taken off" in note for note in report.notes)
    with open_checkpoint(tmp_path / "y.nemo") as opened:
        assert opened.read(norm).tobytes() == before
    compared = verify(source, tmp_path / "y.nemo")
    assert compared.equal
    assert sum("9 norms" in note for note in compared.notes) == 2


def as_torch_dist(folder):
    samples.build(folder / "hf", CONFIG)
    convert(folder / "hf", folder / "dist.nemo", to="nemo")
    return folder / "dist.nemo"


def unpacked(path):
    with tarfile.open(path) as archive:
        return {m.name.removeprefix("./"): archive.extractfile(m).read() for m in archive if m.isfile()}


@pytest.mark.parametrize("rank_files", [False, True], ids=["torch_dist", "rank files"])
@pytest.mark.parametrize("kind", ["gemma", "gemma2"])
def test_what_is_written_holds_the_same_bits(tmp_path, kind, rank_files):
    """Norms without the 1, and layers told to add it (``layernorm_zero_centered_gamma``)."""
    config = {**CONFIG, "model_type": kind}
    if kind == "gemma2":
        more = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 24}
        config |= {"architectures": ["Gemma2ForCausalLM"], **more, "sliding_window": 9}
        del config["hidden_act"]
    samples.build(tmp_path / "hf", config)
    options = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "rank_files": rank_files}
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", verify=True, **options)
    with open_checkpoint(tmp_path / "x.nemo") as checkpoint:
        yaml = checkpoint.yaml
    assert yaml["apply_embedding_scaling"] is True
    assert yaml["layernorm_zero_centered_gamma"] is True
    assert (yaml["activation"], yaml["openai_gelu"]) == ("fast-geglu", True)
    if kind == "gemma2":
        assert yaml["name"] == "megatron_gemma2"
        assert yaml["mcore_customization_config"] == more
        assert yaml["window_size"] == [8, 0]
    convert(tmp_path / "x.nemo", tmp_path / "back", to="hf", verify=True)
    legacy.assert_holds(tmp_path / "back", tiny.load(tmp_path / "hf"))
    assert verify(tmp_path / "back", tmp_path / "hf").equal


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"apply_embedding_scaling": False}, "apply_embedding_scaling=False"),
        ({"name": "megatron_gemma2"}, "query_pre_attn_scalar|layernorm_zero_centered_gamma"),
        ({"openai_gelu": False}, "activation_func"),
    ],
)
def test_what_is_no_gemma(tmp_path, changes, says):
    ranks = legacy.states(tiny.tensors(CONFIG), CONFIG)
    files = legacy.members(ranks, legacy.yaml_of(CONFIG, **{**SAID, **changes}))
    with pytest.raises(UnsupportedArchitecture, match=says):
        convert(legacy.pack(tmp_path / "x.nemo", files), tmp_path / "hf", to="hf")
