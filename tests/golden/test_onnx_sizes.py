"""A graph that is written is a graph that onnxruntime loads and runs, whatever the sizes of the model."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest

from nemoconv.converters.run.convert import convert
from nemoconv.errors import NemoconvError

from . import builder, configs

onnxruntime = pytest.importorskip("onnxruntime")

ROUNDS = 6
#: sizes of the inputs' axes in the one step that is tried
STEP = {"batch_size": 1, "sequence_length": 3, "total_sequence_length": 3, "past_sequence_length": 0}
KINDS = {"tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(float)": "float32"}
#: sizes that models have, and those next to them
SIZES: Mapping[str, tuple[Any, ...]] = {
    "intermediate_size": (10, 24),
    "kv_lora_rank": (4, 6, 10),
    "partial_rotary_factor": (0.25, 0.5, 1.0),
    "qk_nope_head_dim": (4, 6, 8),
    "qk_rope_head_dim": (2, 4, 8),
    "rotary_pct": (0.25, 0.5, 1.0),
    "v_head_dim": (4, 6, 8, 16, 32),
}


def varied(config: Mapping[str, Any], chosen: random.Random) -> dict[str, Any]:
    """The same model with heads of another number and size."""
    heads, width = chosen.choice([2, 4, 6]), chosen.choice([2, 4, 6, 8, 10, 12, 16, 20, 24, 40])
    found = {**config, "torch_dtype": "float32"}
    if "num_nextn_predict_layers" in found:  # such layers have no graph
        found["num_nextn_predict_layers"] = 0
    if "n_embd" in found:
        return {**found, "n_head": heads, "n_embd": heads * width}
    groups = chosen.choice([count for count in (1, 2, heads) if heads % count == 0])
    found["num_attention_heads"] = heads
    if "num_key_value_heads" in found:
        found["num_key_value_heads"] = heads if "kv_lora_rank" in found else groups
    if "head_dim" in found:
        found |= {"head_dim": width, "hidden_size": chosen.choice([16, 24, 32])}
    else:
        found["hidden_size"] = heads * width
    return found | {key: chosen.choice(sizes) for key, sizes in SIZES.items() if key in found}


def run(folder: Path) -> None:
    """Load the graph and let it see three tokens."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    feed = {}
    for value in session.get_inputs():
        kind = KINDS[value.type]
        shape = [STEP.get(axis, axis) for axis in value.shape]
        places = value.name == "position_ids"
        feed[value.name] = numpy.arange(3, dtype=kind)[None] if places else numpy.ones(shape, kind)
    session.run(None, feed)


def attempt(config: Mapping[str, Any], folder: Path, flavor: str) -> bool:
    """Whether a model of this config is written as a graph; what is, runs."""
    try:
        builder.build(folder / "source", config)
        convert(folder / "source", folder / "out", to="onnx", flavor=flavor)
    except NemoconvError as error:
        assert error.exit_code in (2, 5), error
        assert not (folder / "out").exists()
        return False
    run(folder / "out")
    return True


@pytest.mark.parametrize("name", sorted(configs.MODELS))
def test_what_is_written_runs(name: str, tmp_path: Path) -> None:
    for number in range(ROUNDS):
        chosen = random.Random(f"{name} {number}")
        config, flavor = varied(configs.config(name), chosen), chosen.choice(["std", "genai"])
        try:
            attempt(config, tmp_path / str(number), flavor)
        except Exception as error:
            raise AssertionError(f"{flavor}, {config}: {error}") from error


@pytest.mark.parametrize(("width", "written"), [(8, True), (12, False), (16, True), (20, False), (24, True)])
def test_heads_of_the_runtimes_own_attention(width: int, written: bool, tmp_path: Path) -> None:
    config = {**configs.config("qwen3"), "head_dim": width, "torch_dtype": "float32"}
    assert attempt(config, tmp_path / "genai", "genai") is written
    assert attempt(config, tmp_path / "std", "std")


@pytest.mark.parametrize(("width", "written"), [(4, True), (16, True), (20, False)])
def test_values_of_latent_attention(width: int, written: bool, tmp_path: Path) -> None:
    sizes = {"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": width, "torch_dtype": "float32"}
    config = {**configs.config("deepseek_v3, no mtp"), **sizes}
    assert attempt(config, tmp_path, "std") is written
