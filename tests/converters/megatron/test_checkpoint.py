"""Megatron-LM's rank directories: read with a config.json, cut anew, and what is refused."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import tiny

from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.reshard import reshard
from nemoconv.errors import (
    CorruptCheckpoint,
    LayoutError,
    UnsafeCheckpoint,
    UnsupportedConfig,
    UnsupportedError,
    UnsupportedFormat,
)
from nemoconv.tensors.layout import Layout

torch = pytest.importorskip("torch")


@pytest.fixture
def model(tmp_path):
    """(folder of one rank as Megatron-LM saves it, config.json's folder, bits by Hugging Face's names)."""
    bits = tiny.write(tmp_path / "hf", num_hidden_layers=4)
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    state = {}
    with open_checkpoint(tmp_path / "nemo") as opened:
        for name in opened.keys():  # noqa: SIM118
            state[name] = torch.from_numpy(opened.read(name).view("i2").copy()).view(torch.bfloat16)
    state["decoder.layers.0.mlp.linear_fc1._extra_state"] = None
    save(tmp_path / "lm" / "mp_rank_00", {"model": state})
    return tmp_path / "lm", tmp_path / "hf", bits


def save(folder: Path, content: dict) -> None:
    args = argparse.Namespace(tensor_model_parallel_size=1, make_vocab_size_divisible_by=4)
    folder.mkdir(parents=True)
    torch.save({"args": args, "checkpoint_version": 3.0, **content}, folder / "model_optim_rng.pt")


def test_there_and_back(model, tmp_path):
    folder, hf, bits = model
    sizes = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "virtual_pipeline_parallel_size": 2}
    reshard(folder, tmp_path / "a", config=hf, verify=True, **sizes)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "mp_rank_00_000",
        "mp_rank_00_001",
        "mp_rank_01_000",
        "mp_rank_01_001",
        "nemoconv_manifest.json",
    ]
    held = torch.load(tmp_path / "a/mp_rank_01_001/model_optim_rng.pt", weights_only=False)
    assert held["args"].tensor_model_parallel_size == 2
    assert held["args"].make_vocab_size_divisible_by == 4
    assert {key.split(".")[2] for key in held["model1"] if "layers" in key} == {"0"}
    assert "output_layer.weight" in held["model1"]
    with open_checkpoint(tmp_path / "a", config=hf) as opened:
        assert opened.layout == Layout(2, 2, virtual_pipeline_parallel_size=2)
    convert(tmp_path / "a", tmp_path / "back", to="hf", config=hf)
    assert {name: array.tobytes() for name, array in tiny.load(tmp_path / "back").items()} == {
        name: array.tobytes() for name, array in bits.items()
    }


def test_the_vocabulary_is_padded_as_megatron_pads_it(model, tmp_path):
    """To a multiple of 4 (args) times the ranks. Rows of padding that are there already stay as they are."""
    folder, _, _ = model
    tiny.write(tmp_path / "odd", num_hidden_layers=4, vocab_size=37)
    state = torch.load(folder / "mp_rank_00/model_optim_rng.pt", weights_only=False)["model"]
    whole = state["output_layer.weight"].view(torch.int16)
    save(tmp_path / "odd_lm" / "mp_rank_00", {"model": state})
    report = reshard(tmp_path / "odd_lm", tmp_path / "a", tensor_parallel_size=2, config=tmp_path / "odd")
    assert report.notes == []  # 40 rows before and after
    held = torch.load(tmp_path / "a/mp_rank_01/model_optim_rng.pt", weights_only=False)["model"]
    assert held["output_layer.weight"].view(torch.int16).equal(whole[20:])
    wide = {"make_vocab_size_divisible_by": 24, "config": tmp_path / "odd"}
    report = reshard(tmp_path / "a", tmp_path / "wide", **wide)
    assert report.notes == ["vocabulary padded from 40 to 48 rows with zeros"]
    held = torch.load(tmp_path / "wide/mp_rank_01/model_optim_rng.pt", weights_only=False)["model"]
    assert held["output_layer.weight"].view(torch.int16)[:16].equal(whole[24:])
    assert not held["output_layer.weight"].view(torch.int16)[16:].any()


def test_a_config_is_needed(model, tmp_path):
    folder, _, _ = model
    with pytest.raises(UnsupportedConfig, match="pass --config"):
        reshard(folder, tmp_path / "a", tensor_parallel_size=2)


def test_optimizer_state_is_refused_or_left_out(model, tmp_path):
    folder, hf, _ = model
    content = torch.load(folder / "mp_rank_00/model_optim_rng.pt", weights_only=False)
    content = {"model": content["model"], "optimizer": {"state": {0: torch.ones(3)}}, "rng_state": [1]}
    save(tmp_path / "full" / "mp_rank_00", content)
    with pytest.raises(UnsupportedError, match="cut for its own layout: optimizer; pass --drop-optimizer"):
        reshard(tmp_path / "full", tmp_path / "a", tensor_parallel_size=2, config=hf)
    report = reshard(
        tmp_path / "full", tmp_path / "a", tensor_parallel_size=2, config=hf, drop_optimizer=True
    )
    assert report.notes == [
        "optimizer state left out, as --drop-optimizer asks: optimizer",
        "state of single ranks fits no other layout: rng_state left out",
    ]


def test_state_of_fp8_becomes_none_with_a_note(model, tmp_path):
    folder, hf, _ = model
    state = torch.load(folder / "mp_rank_00/model_optim_rng.pt", weights_only=False)["model"]
    state["decoder.layers.0.mlp.linear_fc1._extra_state"] = torch.zeros(5, dtype=torch.uint8)
    save(tmp_path / "fp8" / "mp_rank_00", {"model": state})
    report = reshard(tmp_path / "fp8", tmp_path / "a", tensor_parallel_size=2, config=hf)
    assert report.notes == ["1 kinds of _extra_state objects become None"]


def test_what_is_not_there_or_not_read(model, tmp_path):
    folder, hf, _ = model
    save(tmp_path / "gap" / "mp_rank_00_000", {"model": {"a": torch.ones(1)}})
    save(tmp_path / "gap" / "mp_rank_01_001", {"model": {"a": torch.ones(1)}})
    with pytest.raises(CorruptCheckpoint, match=r"ranks \(0, 1\), \(1, 0\) are missing"):
        reshard(tmp_path / "gap", tmp_path / "a", config=hf)
    save(tmp_path / "experts" / "mp_rank_00_000_001", {"model": {"a": torch.ones(1)}})
    with pytest.raises(UnsupportedFormat, match="mp_rank_00_000_001 is a rank of experts"):
        reshard(tmp_path / "experts", tmp_path / "a", config=hf)
    (tmp_path / "run" / "iter_0000100").mkdir(parents=True)
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("100")
    with pytest.raises(UnsupportedFormat, match="several iterations; give one of: iter_0000100"):
        reshard(tmp_path / "run", tmp_path / "a", config=hf)
    with pytest.raises(LayoutError):
        reshard(folder, tmp_path / "a", config=hf, expert_parallel_size=2)
    save(tmp_path / "empty" / "mp_rank_00", {})
    with pytest.raises(CorruptCheckpoint, match="holds no model"):
        reshard(tmp_path / "empty", tmp_path / "a", config=hf)


def test_a_pickle_that_calls_is_refused(model, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    _, hf, _ = model
    save(tmp_path / "evil" / "mp_rank_00", {"model": {"a": torch.ones(1)}, "iteration": Evil()})
    with pytest.raises(UnsafeCheckpoint, match="system"):
        reshard(tmp_path / "evil", tmp_path / "a", config=hf)
    assert not (tmp_path / "ran").exists()
