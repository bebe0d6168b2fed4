"""GPT-2, StarCoder, GPT-NeoX, GLM, ChatGLM and Baichuan: the tables' own tests, transformers' defaults, and what
is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.run.convert import convert
from nemoconv.errors import UnsupportedConfig
from nemoconv.formats.text.fiddle import Symbol
from nemoconv.mappings import load_table, samples, table_for_nemo
from nemoconv.mappings.hf.fields import read_config, write_config
from nemoconv.testing import MappingTests, data_of

GPT = {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 67, "n_positions": 64}
PLAIN = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "vocab_size": 67,
    "max_position_embeddings": 64,
}
CHATGLM = {
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "kv_channels": 16,
    "padded_vocab_size": 67,
    "add_qkv_bias": True,
    "rope_ratio": 500,
}
#: model_type -> a tiny config.json
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neox": {**PLAIN, "use_parallel_residual": False, "rotary_pct": 0.5},
    "glm": {**PLAIN, "head_dim": 16, "num_key_value_heads": 2},
    "chatglm": CHATGLM,
    "baichuan": PLAIN,
}


def config(architecture: str, **changes: Any) -> dict[str, Any]:
    given = CONFIGS[architecture]
    hf_class = load_table(architecture).hf_class
    return {"model_type": architecture, "architectures": [hf_class], "dtype": "bfloat16", **given, **changes}


class TestGPT2(MappingTests):
    config = config("gpt2")


class TestGPT2Untied(MappingTests):
    config = config("gpt2", tie_word_embeddings=False, n_inner=40)


class TestStarCoder(MappingTests):
    config = config("gpt_bigcode")


class TestSantaCoderOfManyHeads(MappingTests):
    config = config("gpt_bigcode", multi_query=False)


class TestGPTNeoX(MappingTests):
    config = config("gpt_neox")


class TestGLM(MappingTests):
    config = config("glm")


class TestChatGLM(MappingTests):
    config = config("chatglm")


class TestChatGLMWithoutBias(MappingTests):
    config = config("chatglm", add_qkv_bias=False, multi_query_attention=False)


class TestBaichuan(MappingTests):
    config = config("baichuan")


@pytest.mark.parametrize(
    ("architecture", "config_class", "changes"),
    [
        ("gpt2", "GPT2Config", {}),
        ("gpt_bigcode", "GPTBigCodeConfig", {}),
        ("gpt_neox", "GPTNeoXConfig", {"use_parallel_residual": False}),
        ("glm", "GlmConfig", {}),
    ],
)
def test_missing_keys_take_the_defaults_of_transformers(
    architecture: str, config_class: str, changes: dict[str, Any]
) -> None:
    transformers = pytest.importorskip("transformers")
    fields = load_table(architecture).fields
    theirs = getattr(transformers, config_class)(**changes).to_dict()
    ours = read_config(fields, {"model_type": architecture, **changes})[0]
    assert read_config(fields, theirs)[0] == ours


REFUSED = [
    ("gpt2", "activation_function", "relu"),
    ("gpt2", "scale_attn_weights", False),
    ("gpt2", "scale_attn_by_inverse_layer_idx", True),
    ("gpt2", "add_cross_attention", True),
    ("gpt2", "n_head", 3),
    ("gpt2", "n_inner", "many"),
    ("gpt2", "rope_theta", 10000.0),
    ("gpt_bigcode", "num_key_value_heads", 2),
    ("gpt_bigcode", "multi_query", 3),
    ("gpt_neox", "use_parallel_residual", True),
    ("gpt_neox", "hidden_act", "relu"),
    ("gpt_neox", "attention_bias", False),
    ("gpt_neox", "partial_rotary_factor", 0.25),
    ("gpt_neox", "rope_scaling", {"rope_type": "yarn", "factor": 2.0}),
    ("glm", "hidden_act", "gelu"),
    ("glm", "rope_scaling", {"rope_type": "dynamic", "factor": 2.0}),
    ("chatglm", "add_bias_linear", True),
    ("chatglm", "apply_residual_connection_post_layernorm", True),
    ("chatglm", "post_layer_norm", False),
    ("chatglm", "pre_seq_len", 128),
    ("chatglm", "quantization_bit", 4),
    ("chatglm", "rmsnorm", False),
    ("chatglm", "rope_ratio", 0),
    ("chatglm", "auto_map", {"AutoModelForCausalLM": "modeling_other.Other"}),
    ("baichuan", "auto_map", {"AutoConfig": "elsewhere.BaichuanConfig"}),
    ("baichuan", "max_position_embeddings", None),
    ("baichuan", "num_hidden_layers", 40),
    ("baichuan", "vocab_size", 125696),
    ("baichuan", "hidden_act", "gelu"),
]


@pytest.mark.parametrize(("architecture", "key", "value"), REFUSED)
def test_what_is_refused_is_named(architecture: str, key: str, value: object) -> None:
    table = load_table(architecture)
    with pytest.raises(UnsupportedConfig, match=f"{key}|rotary scaling of type|4 heads|3 heads|13B"):
        table.nemo.write(read_config(table.fields, config(architecture, **{key: value}))[0])


def test_a_missing_use_parallel_residual_means_parallel_as_in_transformers() -> None:
    given = config("gpt_neox")
    del given["use_parallel_residual"]
    with pytest.raises(UnsupportedConfig, match="side by side"):
        read_config(load_table("gpt_neox").fields, given)


NEMO_REFUSED = [
    ("gpt2", "activation_func", Symbol("torch.nn.functional", "silu")),
    ("gpt2", "normalization", "RMSNorm"),
    ("gpt2", "gated_linear_unit", True),
    ("gpt2", "add_bias_linear", False),
    ("gpt2", "layernorm_zero_centered_gamma", True),
    ("gpt2", "use_transformer_engine_full_layer_spec", True),
    ("gpt2", "qk_layernorm", True),
    ("gpt_bigcode", "position_embedding_type", "rope"),
    ("gpt_neox", "normalization", "RMSNorm"),
    ("gpt_neox", "rotary_interleaved", True),
    ("chatglm", "rotary_interleaved", False),
    ("chatglm", "add_bias_linear", True),
    ("baichuan", "position_embedding_type", "alibi"),
    ("baichuan", "add_qkv_bias", True),
]


def nemo_config(architecture: str, **fields: Any) -> dict[str, Any]:
    """Fields of NeMo's config class as we write them, some of them changed."""
    table = load_table(architecture)
    name, written = table.nemo.write(read_config(table.fields, config(architecture))[0])
    symbol, given = Symbol(table.nemo.module, name), {**written, **fields}
    assert table_for_nemo(symbol, given, "test", architecture) is table
    return table.nemo.read(symbol, given, "test")


@pytest.mark.parametrize(("architecture", "field", "value"), NEMO_REFUSED)
def test_what_is_refused_of_nemo_is_named(architecture: str, field: str, value: object) -> None:
    with pytest.raises(UnsupportedConfig, match=field):
        nemo_config(architecture, **{field: value})


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "baichuan"])
@pytest.mark.parametrize(("field", "value"), [("num_query_groups", 2), ("kv_channels", 16)])
def test_what_config_json_cannot_say_is_refused(architecture: str, field: str, value: int) -> None:
    read = nemo_config(architecture, **{field: value})
    with pytest.raises(UnsupportedConfig, match=field):
        write_config(load_table(architecture).fields, read)


def test_chatglm_cannot_say_another_rotary_share_but_glm_can() -> None:
    read = nemo_config("glm", rotary_percent=0.25)
    assert write_config(load_table("glm").fields, read)["partial_rotary_factor"] == 0.25
    with pytest.raises(UnsupportedConfig, match="rotary_percent"):
        write_config(load_table("chatglm").fields, read)


def test_a_chatglm_in_nemo_is_a_chatglm_unless_it_was_a_glm(tmp_path: Path) -> None:
    """NeMo has one class for both: the manifest knows, and without one it is what NeMo exports."""
    samples.build(tmp_path / "hf", config("glm"))
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    convert(tmp_path / "nemo", tmp_path / "glm", to="hf")
    assert data_of(tmp_path / "glm") == data_of(tmp_path / "hf")
    (tmp_path / "nemo/nemoconv_manifest.json").unlink()
    convert(tmp_path / "nemo", tmp_path / "chatglm", to="hf")
    assert '"model_type": "chatglm"' in (tmp_path / "chatglm/config.json").read_text()
    convert(tmp_path / "chatglm", tmp_path / "again", to="nemo2")
    assert data_of(tmp_path / "again") == data_of(tmp_path / "nemo")


def test_transformers_5_writes_down_how_many_key_heads_it_worked_out() -> None:
    fields = load_table("gpt_bigcode").fields
    for one in (True, False):
        given = config("gpt_bigcode", multi_query=one)
        same = {**given, "num_key_value_heads": 1 if one else 4}
        assert read_config(fields, given) == read_config(fields, same)


@pytest.mark.parametrize(
    "auto_map",
    [
        {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"},
        {"AutoModelForCausalLM": "baichuan-inc/some--modeling_baichuan.BaiChuanForCausalLM"},
        {"AutoModelForSequenceClassification": "any.Thing"},
    ],
)
def test_the_released_code_is_recognized_and_not_run(tmp_path: Path, auto_map: dict[str, str]) -> None:
    samples.build(tmp_path / "hf", config("baichuan", auto_map=auto_map))
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2", verify=True)


def test_code_of_an_architecture_that_transformers_has_is_refused(tmp_path: Path) -> None:
    samples.build(tmp_path / "hf", config("gpt2"))
    given = config("gpt2", auto_map={"AutoModelForCausalLM": "a.B"})
    (tmp_path / "hf/config.json").write_text(json.dumps(given))
    with pytest.raises(UnsupportedConfig, match="auto_map"):
        convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
