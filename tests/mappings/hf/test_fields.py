"""Config keys: defaults as transformers has them, spellings of two generations, nothing passed over."""

from __future__ import annotations

import json

import pytest

from nemoconv.errors import UnsupportedArchitecture, UnsupportedConfig
from nemoconv.mappings import load_table, table_for
from nemoconv.mappings.hf.fields import Dtype, Field, Fixed, HeadDim, check_kind, read_config, write_config

TABLE = load_table("llama")
BASE = {"model_type": "llama"}


def read(allow_ignored=(), **hf):
    return read_config(TABLE.fields, {**BASE, **hf}, allow_ignored)[0]


def refused(**hf):
    with pytest.raises(UnsupportedConfig) as caught:
        read(**hf)
    assert caught.value.exit_code == 5
    return str(caught.value)


# --- against transformers --------------------------------------------------------------------------


def both(**hf):
    """Our reading and transformers' of the same config.json."""
    transformers = pytest.importorskip("transformers")
    return read(**hf), transformers.LlamaConfig(**hf)


def same_model(ours, theirs):
    assert {
        "num_layers": theirs.num_hidden_layers,
        "hidden_size": theirs.hidden_size,
        "ffn_hidden_size": theirs.intermediate_size,
        "num_attention_heads": theirs.num_attention_heads,
        "num_query_groups": theirs.num_key_value_heads,
        "kv_channels": theirs.head_dim,
        "vocab_size": theirs.vocab_size,
        "seq_length": theirs.max_position_embeddings,
        "layernorm_epsilon": theirs.rms_norm_eps,
        "init_method_std": theirs.initializer_range,
        "attention_dropout": theirs.attention_dropout,
        "share_embeddings_and_output_weights": theirs.tie_word_embeddings,
        "attention_bias": theirs.attention_bias,
        "mlp_bias": theirs.mlp_bias,
        "rotary_base": theirs.rope_parameters["rope_theta"],
    }.items() <= ours.items()


def test_every_default_is_transformers():
    same_model(*both())


@pytest.mark.parametrize(
    "hf",
    [
        {"num_attention_heads": 16, "hidden_size": 1024},
        {"num_attention_heads": 16, "num_key_value_heads": None, "hidden_size": 1024, "head_dim": None},
        {"num_attention_heads": 16, "num_key_value_heads": 4, "hidden_size": 1024},
        {"head_dim": 96},
        {"tie_word_embeddings": True, "rms_norm_eps": 1e-5, "attention_bias": True},
    ],
)
def test_derived_defaults_are_transformers(hf):
    same_model(*both(**hf))


def test_transformers_own_output_is_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(hidden_size=64, num_attention_heads=4, dtype="bfloat16")
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    ours = read_config(TABLE.fields, saved)[0]
    same_model(ours, config)
    assert ours["params_dtype"] == "bfloat16"


def test_what_is_written_says_the_same_to_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    hf = {
        "num_hidden_layers": 3,
        "hidden_size": 96,
        "intermediate_size": 80,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "vocab_size": 77,
        "rms_norm_eps": 1e-5,
        "mlp_bias": True,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "max_position_embeddings": 99,
        "initializer_range": 0.5,
        "attention_dropout": 0.25,
        "dtype": "float16",
    }
    written = write_config(TABLE.fields, read(**hf))
    (tmp_path / "config.json").write_text(json.dumps({**BASE, **written}))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    for key, value in hf.items():
        assert str(getattr(theirs, key)).removeprefix("torch.") == str(value), key
    assert read(**written) == read(**hf)


# --- kinds and ranges ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hf", "message"),
    [
        ({"num_hidden_layers": "2"}, "config.json: num_hidden_layers='2' is not of type int"),
        ({"num_hidden_layers": 2.0}, "config.json: num_hidden_layers=2.0 is not of type int"),
        ({"num_hidden_layers": True}, "config.json: num_hidden_layers=True is not of type int"),
        ({"num_hidden_layers": None}, "config.json: num_hidden_layers=None is not of type int"),
        ({"num_hidden_layers": 0}, "config.json: num_hidden_layers=0 is out of range"),
        ({"vocab_size": -5}, "config.json: vocab_size=-5 is out of range"),
        ({"vocab_size": 1 << 40}, "config.json: vocab_size=1099511627776 is out of range"),
        ({"rms_norm_eps": float("nan")}, "config.json: rms_norm_eps=nan is out of range"),
        ({"rms_norm_eps": float("inf")}, "config.json: rms_norm_eps=inf is out of range"),
        ({"rms_norm_eps": "1e-5"}, "config.json: rms_norm_eps='1e-5' is not of type float"),
        ({"rms_norm_eps": True}, "config.json: rms_norm_eps=True is not of type float"),
        ({"tie_word_embeddings": 1}, "config.json: tie_word_embeddings=1 is not of type bool"),
        ({"tie_word_embeddings": "false"}, "config.json: tie_word_embeddings='false' is not of type bool"),
        ({"attention_bias": []}, "config.json: attention_bias=[] is not of type bool"),
        ({"head_dim": "64"}, "config.json: head_dim='64' is not of type int"),
        (
            {"hidden_size": 100, "num_attention_heads": 3},
            "config.json: hidden_size=100 is not a multiple of 3 heads",
        ),
        (
            {"hidden_act": "gelu"},
            "config.json: hidden_act='gelu' is not supported for this architecture, only 'silu'",
        ),
        ({"dtype": "float99"}, "config.json: unknown dtype 'float99'"),
        ({"dtype": ["bfloat16"]}, "config.json: unknown dtype ['bfloat16']"),
        (
            {"dtype": "bfloat16", "torch_dtype": "float16"},
            "config.json: dtype='bfloat16' and torch_dtype='float16' disagree",
        ),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(hf, message):
    assert refused(**hf) == message


def test_an_integer_is_a_number():
    assert read(rms_norm_eps=1)["layernorm_epsilon"] == 1.0
    assert type(check_kind("x", 1, float)) is float


def test_both_spellings_of_the_dtype():
    assert read(dtype="bfloat16")["params_dtype"] == "bfloat16"
    assert read(torch_dtype="float16")["params_dtype"] == "float16"
    assert read(dtype="bfloat16", torch_dtype="bfloat16")["params_dtype"] == "bfloat16"
    assert read(dtype=None, torch_dtype="float16")["params_dtype"] == "float16"
    assert read()["params_dtype"] is None
    hf = {}
    Dtype().write({"params_dtype": "bfloat16"}, hf)
    assert hf == {"dtype": "bfloat16", "torch_dtype": "bfloat16"}


def test_biases_of_either_kind():
    for attention in (False, True):
        for mlp in (False, True):
            config = read(attention_bias=attention, mlp_bias=mlp)
            assert config["add_bias_linear"] == (attention or mlp)
            written = write_config(TABLE.fields, config)
            assert (written["attention_bias"], written["mlp_bias"]) == (attention, mlp)


# --- unknown keys ----------------------------------------------------------------------------------


def test_an_unknown_key_is_an_error_that_names_the_way_out():
    with pytest.raises(UnsupportedConfig) as caught:
        read(sliding_window=4096, swiglu_limit=2.0, use_cache=True)
    assert caught.value.message == (
        "config.json has 2 key(s) that may change what the model computes: sliding_window, swiglu_limit"
    )
    assert caught.value.hint == (
        "if you know that they do not, pass --allow-ignored sliding_window --allow-ignored swiglu_limit"
    )


def test_many_unknown_keys_are_counted():
    with pytest.raises(UnsupportedConfig) as caught:
        read(model_type="of_our_own", **{f"key{i:02}": 1 for i in range(25)})
    assert caught.value.message.startswith("config.json has 25 key(s)")
    assert caught.value.message.endswith("key09 and 15 more")


def test_an_unknown_key_of_a_type_without_a_list_is_an_error_even_when_it_says_nothing():
    assert "sliding_window" in refused(model_type="of_our_own", sliding_window=None)
    assert "sliding_window" in refused(auto_map={"AutoConfig": "own.py"}, sliding_window=None)


def test_a_key_that_says_the_default_or_that_no_code_reads_passes():
    hf = {
        **BASE,
        "attention_chunk_size": None,
        "pooler_type": "first_token_transform",
        "gradient_checkpointing": True,
    }
    config, passed = read_config(TABLE.fields, hf)
    assert {"attention_chunk_size", "pooler_type", "gradient_checkpointing"} < set(passed)
    assert config == read()


def test_what_a_rule_refuses_comes_before_keys_that_nobody_knows():
    assert "hidden_act" in refused(hidden_act="relu", sliding_window=4096)


def test_allowed_keys_pass_and_are_listed():
    hf = {**BASE, "sliding_window": 4096, "use_cache": True, "_name_or_path": "x"}
    config, passed = read_config(TABLE.fields, hf, ["sliding_window"])
    assert passed == ["_name_or_path", "model_type", "sliding_window", "use_cache"]
    assert "sliding_window" not in config


def test_no_key_is_owned_twice_and_no_field():
    for what in ("hf_keys", "fields"):
        owned = [key for rule in TABLE.fields for key in getattr(rule, what)]
        assert len(owned) == len(set(owned))


# --- single rules ----------------------------------------------------------------------------------


def test_field_takes_the_default_of_another():
    rule = Field("a", "b", default_from="c")
    config = {"c": 7}
    rule.read({}, config)
    assert config["b"] == 7
    rule.read({"a": 3}, config)
    assert config["b"] == 3
    hf = {}
    rule.write(config, hf)
    assert hf == {"a": 3}


def test_fixed_with_a_field_of_megatron():
    rule = Fixed("hidden_act", "silu", "gated_linear_unit", True)
    config, hf = {}, {}
    rule.read({}, config)
    assert config == {"gated_linear_unit": True}
    rule.write(config, hf)
    assert hf == {"hidden_act": "silu"}
    with pytest.raises(UnsupportedConfig) as caught:
        rule.write({"gated_linear_unit": False}, {})
    assert caught.value.message == ("gated_linear_unit=False has no counterpart in config.json, only True")


def test_head_dim_is_always_written():
    hf = {}
    HeadDim().write({"kv_channels": 64}, hf)
    assert hf == {"head_dim": 64}


# --- which table -----------------------------------------------------------------------------------


def test_table_for():
    assert table_for({"model_type": "llama"}, "x") is TABLE
    assert table_for({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "x") is TABLE
    for config, message in (
        ({}, "x: config.json has no model_type"),
        ({"model_type": 5}, "x: config.json has no model_type"),
        ({"model_type": "frob"}, "no mapping table for the architecture 'frob'"),
        (
            {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
            "x: is a ['LlamaForSequenceClassification']; of model_type 'llama' only LlamaForCausalLM is supported",
        ),
    ):
        with pytest.raises(UnsupportedArchitecture) as caught:
            table_for(config, "x")
        assert caught.value.message == message
        assert caught.value.exit_code == 5


@pytest.mark.parametrize("classes", [5, {"a": 1}, "LlamaForCausalLM2", [5]])
def test_architectures_of_another_kind_are_refused(classes):
    with pytest.raises(UnsupportedArchitecture):
        table_for({"model_type": "llama", "architectures": classes}, "x")
