"""Phi-3: the table's own tests, and transformers' defaults."""

from __future__ import annotations

import pytest

from nemoconv.errors import UnsupportedConfig
from nemoconv.mappings import load_table, samples
from nemoconv.mappings.hf.fields import read_config, write_config
from nemoconv.testing import MappingTests

from . import dense

CONFIG = dense.config("phi3", head_dim=16, sliding_window=20, partial_rotary_factor=0.5)


class TestPhi3(MappingTests):
    config = CONFIG


class TestPhi3Tied(MappingTests):
    config = {**CONFIG, "tie_word_embeddings": True}


class TestPhi3WithOneGroup(MappingTests):
    config = {**CONFIG, "num_key_value_heads": 1}
    tensor_parallel_size = 1


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    dense.assert_defaults_of_transformers("phi3", "Phi3Config")


def test_the_fused_tensors_are_one_each() -> None:
    names = dict(samples.tensors(CONFIG))
    assert names["model.layers.0.self_attn.qkv_proj.weight"] == (4 * 16 + 2 * 2 * 16, 32)
    assert names["model.layers.0.mlp.gate_up_proj.weight"] == (2 * 48, 32)
    assert not any("q_proj" in name or "gate_proj" in name for name in names)


@pytest.mark.parametrize(
    "rope",
    [
        {"partial_rotary_factor": 0.75},
        {"rope_parameters": {"rope_theta": 50000.0, "rope_type": "default", "partial_rotary_factor": 0.75}},
    ],
)
def test_the_part_that_rotates_is_read_in_both_places(rope: dict[str, object]) -> None:
    table = load_table("phi3")
    plain = {key: value for key, value in CONFIG.items() if key != "partial_rotary_factor"}
    config, _ = read_config(table.fields, {**plain, **rope})
    assert config["rotary_percent"] == 0.75
    assert table.nemo.write(config)[1]["rotary_percent"] == 0.75
    written = write_config(table.fields, config)
    assert written["partial_rotary_factor"] == written["rope_parameters"]["partial_rotary_factor"] == 0.75


def test_two_parts_that_rotate_are_refused() -> None:
    rope = {"rope_theta": 50000.0, "rope_type": "default", "partial_rotary_factor": 0.25}
    with pytest.raises(UnsupportedConfig, match="partial_rotary_factor is 0.25 and 0.5"):
        read_config(load_table("phi3").fields, {**CONFIG, "rope_parameters": rope})
