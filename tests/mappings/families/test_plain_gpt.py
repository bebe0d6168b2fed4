"""SmolLM3, StableLM, Seed-OSS, Ernie 4.5 and GLM-4-0414: the tables' own tests, transformers' defaults, and what is
refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.run.convert import convert
from nemoconv.errors import UnsupportedConfig
from nemoconv.formats.text.fiddle import Symbol
from nemoconv.mappings import load_table, samples, table_for, table_for_nemo
from nemoconv.mappings.hf.fields import read_config, write_config
from nemoconv.testing import MappingTests, data_of

from ..models.dense import assert_defaults_of_transformers, assert_refused, config, read_nemo


class TestSmolLM3(MappingTests):
    config = config("smollm3", num_hidden_layers=4)


class TestStableLM(MappingTests):
    config = config("stablelm", use_qkv_bias=True)


class TestSeedOSS(MappingTests):
    config = config("seed_oss", head_dim=16)


class TestErnie(MappingTests):
    config = config("ernie4_5", head_dim=16, architectures=["Ernie4_5_ForCausalLM"])


class TestGLM4(MappingTests):
    config = config("glm4", head_dim=16, rms_norm_eps=1e-5)


@pytest.mark.parametrize(
    ("architecture", "config_class"),
    [
        ("smollm3", "SmolLM3Config"),
        ("seed_oss", "SeedOssConfig"),
        ("stablelm", "StableLmConfig"),
        ("ernie4_5", "Ernie4_5Config"),
        ("glm4", "Glm4Config"),
    ],
)
def test_missing_keys_take_the_defaults_of_transformers(architecture: str, config_class: str) -> None:
    assert_defaults_of_transformers(architecture, config_class)


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        ("smollm3", "no_rope_layers", [1]),
        ("smollm3", "no_rope_layers", [1, 2]),
        ("smollm3", "no_rope_layers", [True, False]),
        ("smollm3", "no_rope_layer_interval", 0),
        ("smollm3", "use_sliding_window", True),
        ("smollm3", "layer_types", ["sliding_attention", "full_attention"]),
        ("smollm3", "attention_bias", True),
        ("smollm3", "mlp_bias", True),
        ("smollm3", "rope_scaling", {"rope_type": "yarn", "factor": 2.0}),
        ("stablelm", "use_parallel_residual", True),
        ("stablelm", "qk_layernorm", True),
        ("stablelm", "hidden_act", "gelu"),
        ("stablelm", "rms_norm_eps", 1e-5),
        ("seed_oss", "attention_out_bias", True),
        ("seed_oss", "mlp_bias", True),
        ("seed_oss", "hidden_act", "gelu"),
        ("seed_oss", "rope_scaling", {"rope_type": "dynamic", "factor": 2.0}),
        ("ernie4_5", "use_bias", True),
        ("ernie4_5", "hidden_act", "gelu"),
        ("ernie4_5", "auto_map", {"AutoModel": "modeling_other.Other"}),
        ("ernie4_5", "rope_scaling", {"rope_type": "dynamic", "factor": 2.0}),
        ("glm4", "rms_norm_eps", 1.5625e-07),
        ("glm4", "hidden_act", "gelu"),
        ("glm4", "rope_scaling", {"rope_type": "dynamic", "factor": 2.0}),
    ],
)
def test_what_is_refused_is_named(architecture: str, key: str, value: object) -> None:
    assert_refused(architecture, key, value)


PLAIN = {"position_embedding_type": "rope", "normalization": "RMSNorm", "gated_linear_unit": True}
GPT: dict[str, Any] = {**PLAIN, "activation_func": Symbol("torch.nn.functional", "silu")}
GPT["add_bias_linear"] = False
GEMMA: dict[str, Any] = {
    "activation_func": GPT["activation_func"],
    "layernorm_zero_centered_gamma": False,
    "rotary_interleaved": True,
    "layernorm_epsilon": 1e-5,
    "query_pre_attn_scalar": 256,
    "window_size": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
#: fields of a config of each that is understood
NEMO: dict[str, dict[str, Any]] = {
    "smollm3": {**GPT, "no_rope_freq": [0, 1]},
    "stablelm": {**GPT, "normalization": "LayerNorm", "rotary_percent": 0.25},
    "seed_oss": {**GPT, "add_qkv_bias": True},
    "ernie4_5": {**GPT, "rotary_interleaved": True},
    "glm4": GEMMA,
}


@pytest.mark.parametrize(
    ("architecture", "field", "value"),
    [
        ("smollm3", "no_rope_freq", [0, 1, 0]),
        ("smollm3", "no_rope_freq", 3),
        ("smollm3", "window_size", [8, 0]),
        ("smollm3", "activation_func", Symbol("torch._C._nn", "gelu")),
        ("stablelm", "layernorm_zero_centered_gamma", True),
        ("stablelm", "add_bias_linear", True),
        ("seed_oss", "window_size", [8, 0]),
        ("seed_oss", "rotary_percent", 0.5),
        ("seed_oss", "add_bias_linear", True),
        ("ernie4_5", "qk_layernorm", True),
        ("glm4", "query_pre_attn_scalar", 224),
        ("glm4", "layernorm_epsilon", 1e-6),
        ("glm4", "window_size", [4096, 0]),
        ("glm4", "attn_logit_softcapping", 50.0),
        ("glm4", "activation_func", Symbol("nemo.collections.llm.fn.activation", "openai_gelu")),
    ],
)
def test_what_is_refused_of_nemo_is_named(architecture: str, field: str, value: object) -> None:
    read_nemo(architecture, **NEMO[architecture])
    with pytest.raises(UnsupportedConfig, match=field):
        read_nemo(architecture, **{**NEMO[architecture], field: value})


def test_every_nth_layer_without_a_rotary_embedding_is_a_number_in_megatron() -> None:
    assert read_nemo("smollm3", **{**NEMO["smollm3"], "no_rope_freq": 2})["no_rope_freq"] == [0, 1]
    assert read_nemo("smollm3", **{**NEMO["smollm3"], "no_rope_freq": [0, 0]})["no_rope_freq"] is None


def test_a_list_longer_than_the_layers_is_cut_as_transformers_reads_it() -> None:
    given = config("smollm3", no_rope_layers=[1, 0, 0, 1])
    assert read_config(load_table("smollm3").fields, given)[0]["no_rope_freq"] == [0, 1]


def test_the_released_code_of_ernie_is_recognized_and_not_run() -> None:
    released = {"AutoModelForCausalLM": "modeling_ernie4_5.Ernie4_5_ForCausalLM"}
    read_config(load_table("ernie4_5").fields, config("ernie4_5", auto_map=released))


def test_a_gemma_2_stays_one_beside_the_glm_that_has_its_layers() -> None:
    symbol = Symbol("nemo.collections.llm.gpt.model.gemma2", "Gemma2Config2B")
    assert table_for_nemo(symbol, {}, "test").architecture == "gemma2"


def test_heads_of_their_own_size_have_no_word_in_a_stablelm() -> None:
    read = read_nemo("stablelm", **NEMO["stablelm"], kv_channels=16)
    with pytest.raises(UnsupportedConfig, match="kv_channels"):
        write_config(load_table("stablelm").fields, read)


@pytest.mark.parametrize("architecture", ["smollm3", "stablelm", "seed_oss", "ernie4_5", "glm4"])
def test_without_a_manifest_the_architecture_is_found_by_its_fields(
    tmp_path: Path, architecture: str
) -> None:
    own = {} if architecture == "stablelm" else {"head_dim": 16, "rms_norm_eps": 1e-5}
    given = config(architecture, **own)
    samples.build(tmp_path / "hf", given)
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    (tmp_path / "nemo/nemoconv_manifest.json").unlink()
    convert(tmp_path / "nemo", tmp_path / "back", to="hf")
    assert data_of(tmp_path / "back") == data_of(tmp_path / "hf")
    assert table_for(given, "test").hf_class in (tmp_path / "back/config.json").read_text()
