"""GLM-4.7-Flash: DeepSeek V3's layers, transformers' defaults, and what is refused."""

from __future__ import annotations

import pytest

from nemoconv.errors import UnsupportedConfig
from nemoconv.formats.text.fiddle import Symbol
from nemoconv.mappings import load_table, table_for_nemo
from nemoconv.mappings.hf.fields import read_config, write_config
from nemoconv.testing import MappingTests

from .test_deepseek_v3 import CONFIG as DEEPSEEK

CONFIG = {
    **{key: value for key, value in DEEPSEEK.items() if key not in ("ep_size", "rope_scaling")},
    "architectures": ["Glm4MoeLiteForCausalLM"],
    "model_type": "glm4_moe_lite",
    "n_group": 1,
    "topk_group": 1,
    "rope_theta": 1000000,
    "partial_rotary_factor": 1.0,
    "rope_scaling": None,
}
TABLE = load_table("glm4_moe_lite")


class TestGlm4MoeLite(MappingTests):
    config = CONFIG


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    ours = read_config(TABLE.fields, {"model_type": "glm4_moe_lite"})[0]
    theirs = transformers.Glm4MoeLiteConfig().to_dict()
    assert read_config(TABLE.fields, theirs)[0] == ours


def test_the_layers_of_experts_in_both_spellings() -> None:
    kinds = ["dense", "sparse", "sparse", "sparse"]
    del (plain := dict(CONFIG))["first_k_dense_replace"]
    for given in ({"first_k_dense_replace": 1}, {"mlp_layer_types": kinds}, {}):
        config = read_config(TABLE.fields, {**plain, **given})[0]
        assert config["first_k_dense_replace"] == 1
    hf = write_config(TABLE.fields, config)
    assert (hf["mlp_layer_types"], hf["first_k_dense_replace"]) == (kinds, 1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mlp_layer_types", ["sparse", "dense", "sparse", "sparse"]),
        ("mlp_layer_types", ["dense"] * 4),
        ("mlp_layer_types", "sparse"),
        ("first_k_dense_replace", 2),  # which transformers would not follow
        ("partial_rotary_factor", 0.5),
        ("norm_topk_prob", False),
        ("scoring_func", "softmax"),
    ],
)
def test_what_is_refused_is_named(key: str, value: object) -> None:
    with pytest.raises(UnsupportedConfig, match=key):
        read_config(TABLE.fields, {**CONFIG, key: value})


def test_a_class_that_two_share_is_told_apart_by_what_it_was_once() -> None:
    fields = TABLE.nemo.write(read_config(TABLE.fields, CONFIG)[0])[1]
    large = Symbol("nemo.collections.llm.gpt.model.deepseek", "DeepSeekV3Config")
    assert table_for_nemo(large, fields, "here", "glm4_moe_lite") is TABLE
    assert table_for_nemo(large, fields, "here") is load_table("deepseek_v3")
