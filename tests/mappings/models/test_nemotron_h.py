"""Nemotron-H: the table's own tests, the parts of a mixer, transformers' defaults, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.errors import LayoutError, UnsupportedConfig
from nemoconv.formats.text.fiddle import Symbol
from nemoconv.mappings import load_table, samples, table_for_nemo
from nemoconv.mappings.hf.fields import read_config
from nemoconv.testing import MappingTests

CONFIG = {
    "architectures": ["NemotronHForCausalLM"],
    "model_type": "nemotron_h",
    "hybrid_override_pattern": "M-*M-",
    "num_hidden_layers": 5,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_head_dim": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 6,
    "n_groups": 4,
    "ssm_state_size": 10,
    "vocab_size": 66,
    "torch_dtype": "bfloat16",
}
TABLE = load_table("nemotron_h")
MODULE = "nemo.collections.llm.gpt.model.ssm"
MIXER = "decoder.layers.0.mixer."
INNER, STATES, HEADS = 8 * 6, 4 * 10, 8


class TestNemotronH(MappingTests):
    config = CONFIG


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    words = ["linear_attention", "mlp", "full_attention"]
    ours = read_config(TABLE.fields, {"model_type": "nemotron_h", "layers_block_type": words})[0]
    theirs = transformers.NemotronHConfig(layers_block_type=words).to_dict()
    theirs["time_step_limit"] = [0.0, "Infinity"]  # JSON has no word for it
    assert read_config(TABLE.fields, theirs)[0] == ours


def test_the_parts_of_a_mixer_lie_apart_and_are_cut_apart(tmp_path: Path) -> None:
    """What one rank holds of each is what megatron-core gives it: its heads, its groups."""
    samples.build(tmp_path / "hf", CONFIG)
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2", tensor_parallel_size=2)
    with open_checkpoint(tmp_path / "hf") as hf, open_checkpoint(tmp_path / "nemo") as nemo:
        whole = hf.read("backbone.layers.0.mixer.in_proj.weight").view(numpy.uint16)
        ends = numpy.cumsum([INNER, INNER, STATES, STATES, HEADS])
        for part, rows in zip(("z", "x", "B", "C", "dt"), numpy.split(whole, ends[:-1]), strict=True):
            name = f"{MIXER}in_proj.weight.{part}"
            assert numpy.array_equal(nemo.read(name).view(numpy.uint16), rows)
            chunks = nemo._metadata.tensors[f"module.{name}"].chunks  # type: ignore[attr-defined]
            assert {chunk.shape for chunk in chunks} == {(len(rows) // 2, 32)}
        conv = hf.read("backbone.layers.0.mixer.conv1d.weight").view(numpy.uint16)
        ends = numpy.cumsum([INNER, STATES, STATES])
        for part, rows in zip(("x", "B", "C"), numpy.split(conv, ends[:-1]), strict=True):
            assert numpy.array_equal(nemo.read(f"{MIXER}conv1d.weight.{part}").view(numpy.uint16), rows)


def test_a_cast_leaves_decays_alone(tmp_path: Path) -> None:
    samples.build(tmp_path / "hf", CONFIG)
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2", dtype="float32")
    with open_checkpoint(tmp_path / "nemo") as nemo:
        assert {nemo.spec(MIXER + name).dtype.name for name in ("A_log", "D", "dt_bias")} == {"bfloat16"}
        assert nemo.spec(MIXER + "norm.weight").dtype.name == "float32"


def test_groups_that_cannot_be_cut_are_named(tmp_path: Path) -> None:
    samples.build(tmp_path / "hf", {**CONFIG, "n_groups": 2})
    with pytest.raises(LayoutError, match="mamba_num_groups=2"):
        convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2", tensor_parallel_size=4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hybrid_override_pattern", "MEM*-"),
        ("hybrid_override_pattern", "M?"),
        ("num_hidden_layers", 4),
        ("layers_block_type", ["linear_attention"] * 5),
        ("time_step_limit", [0.0, 0.1]),
        ("time_step_min", 0.01),
        ("layer_norm_epsilon", 1e-6),
        ("conv_kernel", 3),
        ("mlp_hidden_act", "silu"),
        ("mlp_bias", True),
        ("use_conv_bias", False),
        ("auto_map", {"AutoModelForCausalLM": "other.Model"}),
    ],
)
def test_what_is_refused_is_named(key: str, value: object) -> None:
    with pytest.raises(UnsupportedConfig, match=f"{key}|layers|kinds"):
        read_config(TABLE.fields, {**CONFIG, key: value})


def test_the_defaults_of_nemo() -> None:
    nano = Symbol(MODULE, "NemotronNano9Bv2")
    config = TABLE.nemo.read(nano, {}, "here")
    assert (config["num_layers"], config["mamba_num_heads"], config["mamba_head_dim"]) == (56, 128, 80)
    assert TABLE.nemo.read(Symbol(MODULE, "NemotronHConfig8B"), {}, "here")["mamba_num_heads"] == 128
    assert table_for_nemo(nano, {}, "here") is TABLE
    with pytest.raises(UnsupportedConfig, match="hybrid_override_pattern"):
        TABLE.nemo.read(nano, {"num_layers": 55}, "here")
    with pytest.raises(UnsupportedConfig, match="activation_func"):
        TABLE.nemo.read(nano, {"activation_func": Symbol("torch.nn.functional", "silu")}, "here")
