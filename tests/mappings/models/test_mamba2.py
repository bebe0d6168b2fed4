"""Mamba 2: the table's own tests, transformers' defaults, and what is refused."""

from __future__ import annotations

import pytest

from nemoconv.errors import UnsupportedConfig
from nemoconv.formats.text.fiddle import Symbol
from nemoconv.mappings import load_table, table_for_nemo
from nemoconv.mappings.hf.fields import read_config, write_config
from nemoconv.testing import MappingTests

CONFIG = {
    "architectures": ["Mamba2ForCausalLM"],
    "model_type": "mamba2",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_heads": 8,
    "head_dim": 8,
    "state_size": 16,
    "n_groups": 1,
    "expand": 2,
    "tie_word_embeddings": True,
    "vocab_size": 66,
    "torch_dtype": "bfloat16",
}
TABLE = load_table("mamba2")
MODULE = "nemo.collections.llm.gpt.model.ssm"


class TestMamba2(MappingTests):
    config = CONFIG
    tensor_parallel_size = 1


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    ours = read_config(TABLE.fields, {"model_type": "mamba2", "n_groups": 1})[0]
    theirs = transformers.Mamba2Config(n_groups=1).to_dict() | {"time_step_limit": [0.0, "Infinity"]}
    assert read_config(TABLE.fields, theirs)[0] == ours


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_groups", 8),
        ("expand", 4),
        ("use_bias", True),
        ("hidden_act", "gelu"),
        ("layer_norm_epsilon", 1e-6),
    ],
)
def test_what_is_refused_is_named(key: str, value: object) -> None:
    with pytest.raises(UnsupportedConfig, match=key):
        read_config(TABLE.fields, {**CONFIG, key: value})


def test_the_defaults_of_nemo() -> None:
    large = Symbol(MODULE, "BaseMambaConfig2_7B")
    config = TABLE.nemo.read(large, {"vocab_size": 50288}, "here")
    assert (config["num_layers"], config["mamba_num_heads"]) == (64, 80)
    assert write_config(TABLE.fields, config)["expand"] == 2
    assert table_for_nemo(large, {}, "here") is TABLE
    with pytest.raises(UnsupportedConfig, match="mamba_num_groups"):
        write_config(TABLE.fields, {**config, "mamba_num_groups": 8})
