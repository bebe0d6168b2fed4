"""DeepSeek V3: the table's own tests, transformers' defaults, what keeps its dtype, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.errors import MappingError, UnsupportedConfig
from nemoconv.formats.text.fiddle import Symbol
from nemoconv.mappings import load_table, samples, table_for_nemo
from nemoconv.mappings.hf.fields import read_config, write_config
from nemoconv.testing import MappingTests, data_of

YARN = {
    "type": "yarn",
    "factor": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}
CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "ep_size": 1,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "vocab_size": 67,
    "max_position_embeddings": 163840,
    "rope_theta": 10000,
    "rope_scaling": YARN,
    "torch_dtype": "bfloat16",
}
TABLE = load_table("deepseek_v3")
MODULE = "nemo.collections.llm.gpt.model.deepseek"
BIAS = "decoder.layers.{}.mlp.router.expert_bias"


class TestDeepseekV3(MappingTests):
    config = CONFIG


class TestDeepseekV3WithoutLowRankQueries(MappingTests):
    config = {**CONFIG, "q_lora_rank": None, "first_k_dense_replace": 0, "rope_scaling": None}


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    ours = read_config(TABLE.fields, {"model_type": "deepseek_v3"})[0]
    theirs = transformers.DeepseekV3Config().to_dict()
    assert read_config(TABLE.fields, theirs)[0] == ours


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quantization_config", {"quant_method": "fp8", "weight_block_size": [128, 128]}),
        ("first_k_dense_replace", 4),
        ("norm_topk_prob", False),
        ("scoring_func", "softmax"),
        ("topk_method", "greedy"),
        ("topk_group", 1),
        ("num_key_value_heads", 2),
        ("rope_interleave", False),
        ("attention_bias", True),
        ("moe_layer_freq", 2),
        ("hidden_act", "gelu"),
    ],
)
def test_what_is_refused_is_named(key: str, value: object) -> None:
    with pytest.raises(UnsupportedConfig, match=key):
        read_config(TABLE.fields, {**CONFIG, key: value})


@pytest.mark.parametrize(
    "changes", [{"mscale": None}, {"truncate": False}, {"original_max_position_embeddings": None}]
)
def test_a_yarn_that_nemo_cannot_say_is_refused(changes: dict[str, object]) -> None:
    config = read_config(TABLE.fields, {**CONFIG, "rope_scaling": {**YARN, **changes}})[0]
    with pytest.raises(UnsupportedConfig, match="rotary scaling"):
        TABLE.nemo.write(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("moe_layer_freq", [1, *[0] * 60]),
        ("moe_layer_freq", 2),
        ("mtp_num_layers", 17),
        ("moe_router_score_function", "softmax"),
        ("num_query_groups", 8),
        ("multi_latent_attention", False),
        ("qk_layernorm", False),
        ("moe_shared_expert_gate", True),
        ("seq_len_interpolation_factor", 2.0),
        ("max_position_embeddings", 163840),
    ],
)
def test_what_config_json_cannot_say_is_refused(field: str, value: object) -> None:
    with pytest.raises(UnsupportedConfig, match=field):
        TABLE.nemo.read(Symbol(MODULE, "DeepSeekV3Config"), {field: value}, "here")


def test_the_defaults_of_nemo() -> None:
    large = Symbol(MODULE, "DeepSeekV3Config")
    config = TABLE.nemo.read(large, {}, "here")
    assert (config["first_k_dense_replace"], config["num_moe_experts"], config["q_lora_rank"]) == (
        3,
        256,
        1536,
    )
    assert config["rope_scaling"]["original_max_position_embeddings"] == 4096
    hf = write_config(TABLE.fields, {**config, "vocab_size": 129280})
    assert (hf["n_group"], hf["topk_group"], hf["n_shared_experts"]) == (8, 4, 1)
    assert table_for_nemo(large, {}, "here") is TABLE
    base = Symbol(MODULE, "DeepSeekConfig")  # what NeMo's importer writes for both generations
    third = {"moe_router_enable_expert_bias": True, "moe_router_score_function": "sigmoid"}
    assert table_for_nemo(base, third, "here") is TABLE
    assert table_for_nemo(base, {}, "here") is load_table("deepseek_v2")


def test_layers_that_differ_are_stored_one_by_one(tmp_path: Path) -> None:
    samples.build(tmp_path / "hf", CONFIG)
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2", expert_parallel_size=2)
    with open_checkpoint(tmp_path / "nemo") as nemo:
        stored = set(nemo._metadata.tensors)  # type: ignore[attr-defined]
    assert "module.decoder.layers.0.mlp.linear_fc1.layer_norm_weight" in stored
    assert "module.decoder.layers.1.pre_mlp_layernorm.weight" in stored
    assert "module.decoder.layers.3.mlp.experts.experts.linear_fc1.weight" in stored
    assert "module.decoder.layers.0.mlp.router.weight" not in stored


def test_a_cast_leaves_the_correction_of_the_router_alone(tmp_path: Path) -> None:
    samples.build(tmp_path / "hf", CONFIG)
    convert(tmp_path / "hf", tmp_path / "fp32", to="nemo2", dtype="float32")
    with open_checkpoint(tmp_path / "fp32") as nemo:
        assert nemo.spec(BIAS.format(1)).dtype.name == "bfloat16"
        assert nemo.spec("decoder.layers.1.mlp.router.weight").dtype.name == "float32"


def test_more_layers_than_the_config_counts_are_named_and_refused(tmp_path: Path) -> None:
    extra = "model.layers.5.eh_proj.weight"  # the config counts one such layer, 4
    samples.build(tmp_path / "hf", CONFIG)
    data = (tmp_path / "hf/model.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    size = len(data) - end
    header[extra] = {"dtype": "BF16", "shape": [1], "data_offsets": [size, size + 2]}
    text = json.dumps(header).encode()
    (tmp_path / "hf/model.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + data[end:] + b"\0\0"
    )
    with pytest.raises(MappingError, match=extra):
        convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")


@pytest.mark.parametrize(("tp", "pp", "ep"), [(4, 2, 1), (2, 1, 4), (1, 4, 8)])
def test_any_layout_comes_back(tmp_path: Path, tp: int, pp: int, ep: int) -> None:
    samples.build(tmp_path / "hf", CONFIG)
    sizes = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp, "expert_parallel_size": ep}
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2", verify=True, **sizes)
    convert(tmp_path / "nemo", tmp_path / "back", to="hf", verify=True)
    assert data_of(tmp_path / "hf") == data_of(tmp_path / "back")


def with_extra_layer(folder: Path) -> None:
    """A layer beyond the last that has not all that such a layer needs."""
    samples.build(folder, {**CONFIG, "num_hidden_layers": 5, "num_nextn_predict_layers": 0})
    data = (folder / "model.safetensors").read_bytes()
    swapped = data.replace(b"model.layers.4.input_layernorm", b"model.layers.4.shared_headnorm")
    (folder / "model.safetensors").write_bytes(swapped)
    (folder / "config.json").write_text(json.dumps(CONFIG))


def test_layers_that_predict_further_tokens_are_left_out_on_demand(tmp_path: Path) -> None:
    with_extra_layer(tmp_path / "hf")
    with pytest.raises(MappingError, match="--allow-ignored num_nextn_predict_layers"):
        convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    ignored = ["num_nextn_predict_layers"]
    report = convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2", allow_ignored=ignored, verify=True)
    assert any("multi-token prediction layers are left out" in note for note in report.notes)
    assert report.ignored_keys == ignored
    convert(tmp_path / "nemo", tmp_path / "back", to="hf")
    left = data_of(tmp_path / "back")
    assert left == {name: raw for name, raw in data_of(tmp_path / "hf").items() if ".layers.4." not in name}


def test_what_is_no_such_layer_is_still_refused(tmp_path: Path) -> None:
    with_extra_layer(tmp_path / "hf")
    data = (tmp_path / "hf/model.safetensors").read_bytes()
    swapped = data.replace(b"model.layers.4.shared_headnorm", b"model.layers.99.shared_headnor")
    (tmp_path / "hf/model.safetensors").write_bytes(swapped)
    with pytest.raises(MappingError, match=r"model\.layers\.99"):
        convert(tmp_path / "hf", tmp_path / "n", to="nemo2", allow_ignored=["num_nextn_predict_layers"])


KIMI = {
    **CONFIG,
    "model_type": "kimi_k2",
    "n_group": 1,
    "topk_group": 1,
    "rope_theta": 50000.0,
    "rope_scaling": {**YARN, "beta_fast": 1.0, "factor": 32.0},
    "auto_map": {
        "AutoConfig": "configuration_deepseek.DeepseekV3Config",
        "AutoModel": "modeling_deepseek.DeepseekV3Model",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM",
    },
}


def test_kimi_k2_is_a_deepseek_v3(tmp_path: Path) -> None:
    samples.build(tmp_path / "hf", KIMI)
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2", verify=True)
    convert(tmp_path / "nemo", tmp_path / "back", to="hf", verify=True)
    assert data_of(tmp_path / "hf") == data_of(tmp_path / "back")
    config = json.loads((tmp_path / "back/config.json").read_text())
    assert (config["model_type"], config["rope_theta"]) == ("deepseek_v3", 50000.0)
    assert "auto_map" not in config
    with pytest.raises(UnsupportedConfig, match="auto_map"):
        read_config(TABLE.fields, {**KIMI, "auto_map": {"AutoModel": "modeling_kimi.Other"}})
    read_config(TABLE.fields, {**KIMI, "auto_map": {"AutoModel": "modeling_kimi.Other"}}, ["auto_map"])
