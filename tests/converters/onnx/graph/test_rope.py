"""Angles against those that transformers computes."""

from __future__ import annotations

from typing import Any

import numpy
import pytest

from nemoconv.converters.onnx.graph.rope import frequencies
from nemoconv.errors import UnsupportedConfig
from nemoconv.mappings import table_for
from nemoconv.mappings.hf.fields import read_config

SHAPE = {
    "hidden_size": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "max_position_embeddings": 8192,
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 3.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 2048},
    "yarn-whole": {
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 24.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.1,
        "truncate": False,
    },
    "yarn-factor": {"factor": 2.0, "original_max_position_embeddings": 4096, "attention_factor": 1.25},
}


def model_config(rope: dict[str, Any], model_type: str = "llama", **changes: Any) -> dict[str, Any]:
    config = {"model_type": model_type, **SHAPE, "rope_parameters": rope, **changes}
    return read_config(table_for(config, "test").fields, config)[0]


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("name", ROPES)
def test_inverse_frequencies_are_those_of_transformers(name: str, theta: float) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {"rope_type": name.split("-")[0], "rope_theta": theta, **ROPES[name]}
    wanted = LlamaRotaryEmbedding(transformers.LlamaConfig(**SHAPE, rope_parameters=dict(rope)))
    found = frequencies(model_config(rope))
    assert found.inverse.dtype == numpy.float32
    assert found.dimensions == 128
    numpy.testing.assert_allclose(found.inverse, wanted.inv_freq.numpy(), rtol=5e-7, atol=0)
    assert found.factor == pytest.approx(wanted.attention_scaling, rel=1e-12)


def test_a_part_of_a_head() -> None:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}
    found = frequencies(model_config(rope, "nemotron"))
    assert found.dimensions == 32
    assert found.inverse[1] == pytest.approx(10_000 ** (-2 / 32))


def test_layers_with_a_window_have_their_own_base() -> None:
    ropes = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0},
    }
    config = model_config(ropes, "gemma3_text", head_dim=4)
    assert frequencies(config, local=True).inverse == pytest.approx([1, 0.1])
    assert frequencies(config).inverse == pytest.approx([0.5, 0.005])


def test_what_depends_on_the_length_is_refused() -> None:
    with pytest.raises(
        UnsupportedConfig, match="'dynamic' has no ONNX graph, only default, linear, llama3, yarn"
    ):
        frequencies(model_config({"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}))
