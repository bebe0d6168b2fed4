"""Without a rule that joins them, what ranks hold is handed out as pieces and never as a whole tensor."""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import subprocess
import sys
import tarfile
import weakref

import legacy_nemo as legacy
import numpy
import pytest
import tiny
import yaml
from safetensors.numpy import load_file

import nemoconv
from nemoconv.converters.bind import Bound
from nemoconv.converters.look.inspect import inspect, tensor_rows
from nemoconv.converters.look.verify import verify
from nemoconv.converters.nemo1.checkpoint import NeMo1Checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.errors import (
    CorruptCheckpoint,
    MappingError,
    UnsupportedArchitecture,
    UnsupportedConfig,
    UnsupportedFormat,
)
from nemoconv.mappings.table import Table
from nemoconv.tensors.read import read_box

torch = pytest.importorskip("torch")

FC2 = "decoder.layers.0.mlp.linear_fc2.weight"
NORM = "decoder.final_layernorm.weight"
#: what no table takes, with the error that says so
REFUSED = {
    "normalization": ({"normalization": "batchnorm"}, UnsupportedConfig),
    "architecture": ({"name": "megatron_falcon_gpt"}, UnsupportedArchitecture),
    "key": ({"invented_key": 1}, UnsupportedConfig),
    "layers": ({"num_layers": "four"}, CorruptCheckpoint),
    "too many layers": ({"num_layers": 10**9}, CorruptCheckpoint),
    "too many experts": ({"num_moe_experts": 10**9, "moe_router_topk": 2}, CorruptCheckpoint),
    "rotary base": ({"rotary_base": "fast"}, UnsupportedArchitecture),
    "vocabulary": ({"override_vocab_size": "all"}, CorruptCheckpoint),
    "no vocabulary": ({"override_vocab_size": -1}, CorruptCheckpoint),
}


def archive(path, changes, **how):
    """(archive, state dict of each rank) of a model whose config has these changes."""
    states = legacy.states(tiny.tensors(legacy.CONFIG), legacy.CONFIG, **how)
    files = legacy.members(states, legacy.yaml_of(legacy.CONFIG, **changes))
    return legacy.pack(path, files), states


def megatron(folder, **how):
    """(folder of Megatron-LM ranks, state dict of each rank, their folders)."""
    states = legacy.states(tiny.tensors(legacy.CONFIG), legacy.CONFIG, **how)
    stages = max(stage for _, stage in states) + 1
    args = argparse.Namespace(make_vocab_size_divisible_by=4)
    for (rank, stage), state in states.items():
        at = folder / (f"mp_rank_{rank:02d}_{stage:03d}" if stages > 1 else f"mp_rank_{rank:02d}")
        at.mkdir(parents=True)
        model = {key.removeprefix("model."): value for key, value in state.items()}
        torch.save({"args": args, "model": model}, at / "model_optim_rng.pt")
    return folder, states


def bits(array):
    return numpy.ascontiguousarray(array).tobytes()


def data(tensor):
    return tensor.contiguous().view(torch.int16).numpy().tobytes()


def refused_reads(checkpoint, error, name, *words):
    for ask in (checkpoint.spec, checkpoint.stored, checkpoint.read):
        with pytest.raises(error) as caught:
            ask(name)
        said = str(caught.value)
        assert type(caught.value) is error
        assert "\n" not in said
        assert all(word in said for word in (name, "cannot be joined without its rule", *words)), said


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("sizes", [{"tp": 2}, {"tp": 2, "pp": 2}, {"tp": 4}, {"tp": 2, "mcore": False}])
def test_a_config_that_no_table_takes(tmp_path, case, sizes):
    changes, error = REFUSED[case]
    source, states = archive(tmp_path / "x.nemo", {"mcore_gpt": sizes.get("mcore", True), **changes}, **sizes)
    with nemoconv.open(source) as opened:
        assert len(opened.keys()) == 27
        for name in (FC2, NORM, "embedding.word_embeddings.weight"):
            refused_reads(opened, error, name, str(source), "; ")
        with pytest.raises(KeyError):
            opened.spec("decoder.layers.9.mlp.linear_fc2.weight")
        key = next(
            key for key in states[0, 0] if key.endswith(("layers.0.mlp.linear_fc2.weight", "4h_to_h.weight"))
        )
        found = opened.pieces(FC2)
        assert [piece.rank for piece in found] == list(range(sizes["tp"]))
        for piece in found:
            held = read_box(piece.stored, (0, 0), piece.stored.shape)
            assert bits(held) == data(states[piece.rank, 0][key])
        assert [piece.rank for piece in opened.pieces(NORM)] == [
            (sizes.get("pp", 1) - 1) * sizes["tp"] + rank for rank in range(sizes["tp"])
        ]


@pytest.mark.parametrize("case", ["normalization", "architecture", "layers"])
def test_inspect_counts_pieces_and_no_parameters(tmp_path, case):
    source, states = archive(tmp_path / "x.nemo", REFUSED[case][0], tp=2, pp=2)
    if case == "layers":
        with pytest.raises(CorruptCheckpoint, match="num_layers"):
            inspect(source)
        return
    facts = inspect(source)
    tensors = [value for state in states.values() for value in state.values() if value is not None]
    assert facts["parameters"] is None
    assert (facts["tensors"], facts["pieces"]) == (27, len(tensors))
    assert facts["bytes"] == 2 * sum(value.numel() for value in tensors)
    assert facts["dtypes"] == {"bfloat16": {"pieces": 54, "elements": facts["bytes"] // 2}}
    assert "no rule says" in facts["not joined"]
    assert "problem" in facts
    with nemoconv.open(source) as opened:
        rows = tensor_rows(opened, "final_layernorm|layers.0.mlp.linear_fc2")
    assert [(row["name"], row["rank"], row["shape"]) for row in rows] == [
        (FC2, 0, [16, 12]),
        (FC2, 1, [16, 12]),
        (NORM, 2, [16]),
        (NORM, 3, [16]),
    ]


def test_with_its_rule_the_whole_is_there(tmp_path):
    arrays = tiny.tensors(legacy.CONFIG)
    source, _ = archive(tmp_path / "x.nemo", {}, tp=2, pp=2)
    with nemoconv.open(source) as opened:
        assert all(map(opened.joins, opened.keys()))
        assert bits(opened.read(FC2)) == bits(arrays["model.layers.0.mlp.down_proj.weight"])
        assert len(opened.pieces(FC2)) == 2
    facts = inspect(source)
    assert facts["parameters"] == sum(array.size for array in arrays.values())
    assert not {"pieces", "not joined"} & facts.keys()
    with nemoconv.open(source) as opened:
        assert all("rank" not in row for row in tensor_rows(opened))


@pytest.mark.parametrize("sizes", [{}, {"pp": 2}, {"pp": 2, "virtual": 2}])
def test_one_tensor_parallel_rank_holds_whole_tensors(tmp_path, sizes):
    arrays = tiny.tensors(legacy.CONFIG)
    source, _ = archive(tmp_path / "x.nemo", REFUSED["normalization"][0], **sizes)
    folder, _ = megatron(tmp_path / "lm", **{key: value for key, value in sizes.items() if key == "pp"})
    for place in (source, folder):
        with nemoconv.open(place) as opened:
            assert opened.spec(FC2).shape == (16, 24)
            assert bits(opened.read(FC2)) == bits(arrays["model.layers.0.mlp.down_proj.weight"])
            last = "decoder.layers.3.mlp.linear_fc2.weight"
            assert bits(opened.read(last)) == bits(arrays["model.layers.3.mlp.down_proj.weight"])
        facts = inspect(place)
        assert facts["parameters"] == sum(array.size for array in arrays.values())
        assert "problem" in facts


@pytest.mark.parametrize("sizes", [{"tp": 2}, {"tp": 2, "pp": 2}])
def test_megatron_ranks_without_a_config(tmp_path, sizes):
    folder, states = megatron(tmp_path / "lm", **sizes)
    config = tmp_path / "hf"
    arrays = tiny.write(config, **legacy.CONFIG)
    with nemoconv.open(folder) as opened:
        refused_reads(
            opened, UnsupportedConfig, FC2, str(folder), "pass --config with the model's config.json"
        )
        assert [piece.stored.shape for piece in opened.pieces(FC2)] == [(16, 12), (16, 12)]
    assert inspect(folder)["parameters"] is None
    assert inspect(folder, config=config)["parameters"] == sum(array.size for array in arrays.values())
    with pytest.raises(UnsupportedConfig, match="pass --config"):
        verify(folder)
    convert(folder, tmp_path / "plain", to="safetensors", verify=True)
    held = load_file(tmp_path / "plain" / "model.safetensors")
    expected = {}
    for (rank, stage), state in states.items():
        at = f"mp_rank_{rank:02d}_{stage:03d}/" if "pp" in sizes else f"mp_rank_{rank:02d}/"
        expected |= {at + key: data(value) for key, value in state.items() if value is not None}
    assert {name: bits(array) for name, array in held.items()} == expected
    assert verify(tmp_path / "plain", folder).equal
    convert(folder, tmp_path / "whole", to="safetensors", config=config)
    with nemoconv.open(tmp_path / "whole") as opened:
        assert bits(opened.read(FC2)) == bits(arrays["model.layers.0.mlp.down_proj.weight"])


def test_a_tensor_beside_the_model_has_no_whole(tmp_path):
    """The model is known, but of one tensor in its ranks nothing says what it is."""
    states = legacy.states(tiny.tensors(legacy.CONFIG), legacy.CONFIG, tp=2)
    for rank in (0, 1):
        states[rank, 0]["model.decoder.layers.0.odd"] = torch.full((3,), float(rank)).bfloat16()
    source = legacy.pack(tmp_path / "x.nemo", legacy.members(states, legacy.yaml_of(legacy.CONFIG)))
    odd = "decoder.layers.0.odd"
    with nemoconv.open(source) as opened:
        refused_reads(opened, MappingError, odd, "no rule of the model", "--to safetensors")
        assert [read_box(p.stored, (0,), (3,)).tolist() for p in opened.pieces(odd)] == [[0.0] * 3, [1.0] * 3]
        assert opened.read(FC2).shape == (16, 24)
    assert (inspect(source)["parameters"], inspect(source)["pieces"]) == (None, 2)
    with pytest.raises(MappingError, match="1 tensors have no rule"):
        verify(source)


def test_a_tensor_on_some_ranks_only_is_shown_as_it_is(tmp_path):
    states = legacy.states(tiny.tensors(legacy.CONFIG), legacy.CONFIG, tp=2)
    del states[0, 0]["model." + FC2]
    for number, changes in enumerate(({"normalization": "batchnorm"}, {})):
        files = legacy.members(states, legacy.yaml_of(legacy.CONFIG, **changes))
        with nemoconv.open(legacy.pack(tmp_path / f"{number}.nemo", files)) as opened:
            assert [piece.rank for piece in opened.pieces(FC2)] == [1]
            with pytest.raises(UnsupportedConfig if changes else CorruptCheckpoint):
                opened.read(FC2)


@pytest.mark.parametrize("tp", [1, 2])
def test_the_second_half_of_a_tensor_is_not_the_tensor(tmp_path, tp):
    states = legacy.states(tiny.tensors(legacy.CONFIG), legacy.CONFIG, tp=tp, mcore=False, fused=False)
    for state in states.values():
        del state["model.language_model.encoder.layers.0.mlp.dense_h_to_4h.weight"]
    settings = legacy.yaml_of(legacy.CONFIG, mcore_gpt=False, activation="mish")
    source = legacy.pack(tmp_path / "x.nemo", legacy.members(states, settings))
    with nemoconv.open(source) as opened, pytest.raises(CorruptCheckpoint, match="its second half only"):
        opened.read("decoder.layers.0.mlp.linear_fc1.weight")


def test_experts_of_one_expert_parallel_rank_are_not_all_experts(tmp_path):
    """Their numbers count from 0 on every rank, so that without the model nothing says which they are."""
    states = legacy.states(tiny.tensors(legacy.CONFIG), legacy.CONFIG)
    expert = "decoder.layers.0.mlp.experts.local_experts.0.linear_fc2.weight"
    states[0, 0]["model." + expert] = torch.ones(2, 2).bfloat16()
    settings = legacy.yaml_of(legacy.CONFIG, normalization="batchnorm", expert_model_parallel_size=2)
    source = legacy.pack(tmp_path / "x.nemo", legacy.members(states, settings))
    with nemoconv.open(source) as opened:
        refused_reads(opened, UnsupportedConfig, expert, "batchnorm")
        assert opened.read(FC2).shape == (16, 24)
    assert inspect(source)["pieces"] == 1


def test_any_other_archive_in_rank_folders(tmp_path):
    """A class that nothing here knows: its tensors' names say whose they are, and they are not parameters."""
    states = legacy.states(tiny.tensors(legacy.CONFIG), legacy.CONFIG, tp=2)
    target = "nemo.collections.multimodal.models.multimodal_llm.neva.neva_model.MegatronNevaModel"
    source = legacy.pack(
        tmp_path / "x.nemo", legacy.members(states, legacy.yaml_of(legacy.CONFIG, target=target))
    )
    facts = inspect(source)
    assert facts["parameters"] is None
    assert facts["pieces"] == facts["tensors"] == 54
    name = f"mp_rank_01/model.{FC2}"
    with nemoconv.open(source) as opened:
        assert [(row["rank"], row["shape"]) for row in tensor_rows(opened, f"^{name}$")] == [(1, [16, 12])]
        assert bits(opened.read(name)) == data(states[1, 0]["model." + FC2])
        assert [piece.rank for piece in opened.pieces(name)] == [1]
    with pytest.raises(UnsupportedFormat, match="in 2 files, which nothing here knows how to join"):
        verify(source)


def test_a_speech_archive_in_rank_folders(tmp_path):
    with tarfile.open(legacy.SAMPLES.parent / "speech" / "ctc.nemo") as archive:
        files = {m.name.removeprefix("./"): archive.extractfile(m).read() for m in archive if m.isfile()}
    weights = files.pop("model_weights.ckpt")
    whole = len(torch.load(io.BytesIO(weights), weights_only=True))
    both = {**files, "mp_rank_00/model_weights.ckpt": weights, "mp_rank_01/model_weights.ckpt": weights}
    source = legacy.pack(tmp_path / "x.nemo", both)
    facts = inspect(source)
    assert facts["parameters"] is None
    assert facts["pieces"] == 2 * whole
    assert "which nothing here knows how to join" in facts["problem"]
    with pytest.raises(UnsupportedFormat, match="in 2 files, which nothing here knows how to join"):
        convert(source, tmp_path / "hf", to="hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("sample", ["llama_mcore_torch_dist.nemo", "llama_mcore_zarr_bf16.nemo"])
def test_a_distributed_checkpoint_is_whole_without_a_rule(sample, tmp_path):
    with nemoconv.open(legacy.SAMPLES / sample) as opened:
        expected = {name: opened.read(name).tobytes() for name in opened.keys()}  # noqa: SIM118
    with tarfile.open(legacy.SAMPLES / sample) as archive:
        files = {m.name.removeprefix("./"): archive.extractfile(m).read() for m in archive if m.isfile()}
    settings = {**yaml.safe_load(files["model_config.yaml"]), "normalization": "batchnorm"}
    files["model_config.yaml"] = yaml.safe_dump({**settings, "tensor_model_parallel_size": 2}).encode()
    with nemoconv.open(legacy.pack(tmp_path / "x.nemo", files)) as opened:
        assert {name: opened.read(name).tobytes() for name in opened.keys()} == expected  # noqa: SIM118
        assert [piece.rank for piece in opened.pieces(FC2)] == [None]


def run(*arguments):
    command = [sys.executable, "-m", "nemoconv", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ))


def test_the_command_line_says_whose_pieces_they_are(tmp_path):
    source, _ = archive(tmp_path / "x.nemo", REFUSED["normalization"][0], tp=2)
    shown = run("inspect", source, "--grep", "layers.0.mlp.linear_fc2")
    assert shown.returncode == 0, shown.stderr
    assert "parameters: -\n" in shown.stdout
    assert "pieces: 54\n" in shown.stdout
    assert "not joined: 54 pieces of ranks" in shown.stdout
    assert "problem: model_config.yaml: normalization='batchnorm' has no counterpart" in shown.stdout
    assert f"[16, 12]                 {FC2} (rank 0)\n" in shown.stdout
    assert f"[16, 12]                 {FC2} (rank 1)\n" in shown.stdout
    facts = json.loads(run("inspect", source, "--json", "--grep", "layers.0.mlp.linear_fc2").stdout)
    assert facts["parameters"] is None
    assert [row["rank"] for row in facts["tensor_list"]] == [0, 1]
    checked = run("verify", source)
    assert (checked.returncode, checked.stdout) == (5, "")
    assert checked.stderr.count("\n") == 1
    assert "batchnorm" in checked.stderr


def test_verify_of_an_unknown_architecture_says_that_nothing_was_joined(tmp_path):
    source, _ = archive(tmp_path / "x.nemo", REFUSED["architecture"][0], tp=2)
    assert (
        verify(source).model
        == "architecture unknown: names not checked, 27 tensors in pieces that no rule joins"
    )
    checked = run("verify", source, "--json", "--no-progress")
    assert checked.returncode == 0, checked.stderr
    assert "27 tensors in pieces that no rule joins" in json.loads(checked.stdout)["model"]
    whole, _ = archive(tmp_path / "y.nemo", REFUSED["architecture"][0])
    assert verify(whole).model == "architecture unknown: names not checked"


def counted(monkeypatch):
    """How often a model is understood and a table expanded, from now on."""
    counts = {"models": 0, "expansions": 0}
    understand, expand = NeMo1Checkpoint._understand, Table.instances

    def model(self, allow_ignored):
        counts["models"] += 1
        return understand(self, allow_ignored)

    def instances(self, config, sizes):
        counts["expansions"] += 1
        return expand(self, config, sizes)

    monkeypatch.setattr(NeMo1Checkpoint, "_understand", model)
    monkeypatch.setattr(Table, "instances", instances)
    return counts


def test_a_conversion_expands_the_table_once(tmp_path, monkeypatch):
    """The reader hands out pieces; only the binder, which joins them, needs the rules."""
    source, _ = archive(tmp_path / "x.nemo", {}, tp=2, pp=2)
    counts = counted(monkeypatch)
    convert(source, tmp_path / "hf", to="hf")
    assert counts == {"models": 1, "expansions": 1}
    counts |= {"models": 0, "expansions": 0}
    with nemoconv.open(source) as opened:
        for name in opened.keys():  # noqa: SIM118
            opened.read(name)
    assert counts == {"models": 1, "expansions": 1}
    refused, _ = archive(tmp_path / "y.nemo", REFUSED["normalization"][0], tp=2)
    counts |= {"models": 0, "expansions": 0}
    with nemoconv.open(refused) as opened:
        assert not any(map(opened.joins, opened.keys()))
    assert counts == {"models": 1, "expansions": 0}


def test_pieces_come_before_any_model(tmp_path, monkeypatch):
    source, _ = archive(tmp_path / "x.nemo", {}, tp=2)
    counts = counted(monkeypatch)
    with nemoconv.open(source) as opened:
        assert sum(len(opened.pieces(name)) for name in opened.keys()) == 54  # noqa: SIM118
        assert {opened.dtype(name).name for name in opened.keys()} == {"bfloat16"}  # noqa: SIM118
        assert opened.rows("embedding.word_embeddings.weight") == 40
    assert counts == {"models": 0, "expansions": 0}


def test_an_embedding_without_axes_is_an_error_of_the_checkpoint(tmp_path):
    states = legacy.states(tiny.tensors(legacy.CONFIG), legacy.CONFIG, tp=2)
    for state in states.values():
        state["model.embedding.word_embeddings.weight"] = torch.tensor(1.0).bfloat16()
    files = legacy.members(states, legacy.yaml_of(legacy.CONFIG))
    with pytest.raises(CorruptCheckpoint, match="has 0 rows"):
        convert(legacy.pack(tmp_path / "x.nemo", files), tmp_path / "hf", to="hf")


@pytest.mark.parametrize("kind", ["ranks", "megatron"])
def test_what_is_no_longer_needed_is_gone_at_once(tmp_path, kind):
    """Plans and headers of large models are millions of objects; one circle among them keeps them all."""
    if kind == "ranks":
        source, config = archive(tmp_path / "x.nemo", {}, tp=2)[0], None
    else:
        tiny.write(tmp_path / "hf", **legacy.CONFIG)
        source, config = megatron(tmp_path / "lm", tp=2)[0], tmp_path / "hf"
    gc.collect()
    gc.disable()
    try:
        opened = nemoconv.open(source, config=config)
        opened.read(FC2)
        bound = Bound(opened, opened.model())
        bound.stored(FC2)
        watched = [weakref.ref(thing) for thing in (bound, opened)]
        opened.close()
        del bound, opened
        assert [ref() for ref in watched] == [None, None]
    finally:
        gc.enable()
