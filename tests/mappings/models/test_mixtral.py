"""Mixtral: the table's own tests, transformers' defaults, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemoconv.converters.run.convert import convert
from nemoconv.errors import LayoutError, UnsupportedConfig
from nemoconv.formats.text.fiddle import Symbol
from nemoconv.mappings import load_table, samples, table_for_nemo
from nemoconv.mappings.hf.fields import read_config
from nemoconv.testing import MappingTests, data_of

CONFIG = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 67,
    "max_position_embeddings": 128,
    "router_aux_loss_coef": 0.02,
    "rope_theta": 1000000.0,
    "torch_dtype": "bfloat16",
}
TABLE = load_table("mixtral")
NEMO = Symbol("nemo.collections.llm.gpt.model.mixtral", "MixtralConfig8x7B")
#: what NeMo's importer sets, in part
GIVEN = {
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "vocab_size": 67,
}


class TestMixtral(MappingTests):
    config = CONFIG


class TestMixtralTied(MappingTests):
    config = {**CONFIG, "tie_word_embeddings": True}


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    ours = read_config(TABLE.fields, {"model_type": "mixtral"})[0]
    theirs = transformers.MixtralConfig().to_dict()
    assert read_config(TABLE.fields, theirs)[0] == ours


@pytest.mark.parametrize(
    ("key", "value"),
    [("sliding_window", 4096), ("hidden_act", "gelu"), ("quantization_config", {})],
)
def test_what_is_refused_is_named(key: str, value: object) -> None:
    with pytest.raises(UnsupportedConfig, match=key):
        read_config(TABLE.fields, {**CONFIG, key: value})


def test_one_expert_a_token_is_refused(tmp_path: Path) -> None:
    samples.build(tmp_path / "hf", {**CONFIG, "num_experts_per_tok": 1})
    with pytest.raises(UnsupportedConfig, match="num_experts_per_tok=1"):
        convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("moe_router_pre_softmax", True),
        ("moe_router_score_function", "sigmoid"),
        ("moe_router_load_balancing_type", "sinkhorn"),
        ("moe_router_topk_scaling_factor", 2.5),
        ("moe_shared_expert_intermediate_size", 64),
        ("moe_layer_freq", 2),
        ("moe_ffn_hidden_size", 64),
        ("moe_expert_capacity_factor", 1.0),
        ("moe_input_jitter_eps", 0.1),
        ("qk_layernorm", True),
        ("add_bias_linear", True),
        ("mtp_num_layers", 1),
        ("an_unknown_field", 1),
    ],
)
def test_what_config_json_cannot_say_is_refused(field: str, value: object) -> None:
    with pytest.raises(UnsupportedConfig, match=field):
        TABLE.nemo.read(NEMO, {**GIVEN, field: value}, "here")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("moe_router_load_balancing_type", "none"),
        ("moe_grouped_gemm", True),
        ("moe_router_dtype", "fp32"),
        ("moe_token_dispatcher_type", "allgather"),
        ("moe_ffn_hidden_size", 48),
    ],
)
def test_what_changes_nothing_is_taken(field: str, value: object) -> None:
    plain = TABLE.nemo.read(NEMO, GIVEN, "here")
    assert TABLE.nemo.read(NEMO, {**GIVEN, field: value}, "here") == plain


def test_the_defaults_of_nemo() -> None:
    config = TABLE.nemo.read(NEMO, GIVEN, "here")
    assert (config["num_moe_experts"], config["moe_router_topk"], config["num_query_groups"]) == (8, 2, 8)
    assert config["rotary_base"] == 1e6
    large = Symbol(NEMO.module, "MixtralConfig8x22B")
    config = TABLE.nemo.read(large, {}, "here")
    assert (config["num_layers"], config["hidden_size"], config["ffn_hidden_size"]) == (56, 6144, 16384)
    assert table_for_nemo(large, {}, "here") is TABLE


@pytest.mark.parametrize(("tp", "pp", "ep"), [(1, 1, 2), (2, 1, 2), (1, 2, 4), (2, 2, 4)])
def test_any_expert_layout_comes_back(tmp_path: Path, tp: int, pp: int, ep: int) -> None:
    samples.build(tmp_path / "hf", CONFIG)
    convert(
        tmp_path / "hf",
        tmp_path / "nemo",
        to="nemo2",
        tensor_parallel_size=tp,
        pipeline_parallel_size=pp,
        expert_parallel_size=ep,
        verify=True,
    )
    assert len(list((tmp_path / "nemo/weights").glob("*.distcp"))) == tp * pp * ep
    convert(tmp_path / "nemo", tmp_path / "back", to="hf", verify=True)
    assert data_of(tmp_path / "hf") == data_of(tmp_path / "back")


def test_impossible_expert_layouts_are_refused(tmp_path: Path) -> None:
    samples.build(tmp_path / "hf", CONFIG)
    with pytest.raises(LayoutError, match=r"expert_parallel_size=3; use one of: 1, 2, 4"):
        convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2", expert_parallel_size=3)
