"""model_config.yaml <-> GPTConfig: NeMo 1's defaults, no key that is dropped unread, and back."""

from __future__ import annotations

import pytest

from nemoconv.errors import CorruptCheckpoint, UnsupportedConfig
from nemoconv.mappings.nemo1 import fields as nemo1_fields
from nemoconv.mappings.nemo1.fields import RULES, read_fields, write_yaml
from nemoconv.mappings.nemo2.symbols import GELU, SILU, SQUARED_RELU, TANH_GELU

LEAST = {"num_layers": 2, "hidden_size": 8, "num_attention_heads": 2}


def test_what_an_absent_key_means():
    """NeMo 1's defaults are not NeMo 2's: biases, tied embeddings, learned positions, exact GELU."""
    fields = read_fields(LEAST, "here")
    assert fields["add_bias_linear"] is True
    assert fields["add_qkv_bias"] is False
    assert fields["share_embeddings_and_output_weights"] is True
    assert fields["position_embedding_type"] == "learned_absolute"
    assert (fields["activation_func"], fields["gated_linear_unit"]) == (GELU, False)
    assert (fields["normalization"], fields["layernorm_zero_centered_gamma"]) == ("LayerNorm", False)
    assert fields["seq_length"] == 512
    assert fields["moe_router_topk"] == 2
    assert fields["bias_activation_fusion"] is True


@pytest.mark.parametrize(
    ("yaml", "fields"),
    [
        ({"activation": "fast-swiglu"}, {"activation_func": SILU, "gated_linear_unit": True}),
        ({"activation": "swiglu"}, {"activation_func": SILU, "gated_linear_unit": True}),
        ({"activation": "fast-geglu", "openai_gelu": True}, {"activation_func": TANH_GELU, "gated_linear_unit": True}),
        ({"activation": "squared-relu"}, {"activation_func": SQUARED_RELU, "gated_linear_unit": False}),
        ({"normalization": "layernorm1p"}, {"normalization": "LayerNorm", "layernorm_zero_centered_gamma": True}),
        ({"normalization": "rmsnorm"}, {"normalization": "RMSNorm", "layernorm_zero_centered_gamma": False}),
        ({"encoder_seq_length": 64, "max_position_embeddings": 32}, {"seq_length": 64}),
        ({"encoder_seq_length": 32, "max_position_embeddings": 64}, {"seq_length": 64}),
        ({"rotary_percentage": 0.5}, {"rotary_percent": 0.5}),
        ({"mcore_customization_config": {"qk_layernorm": True}}, {"qk_layernorm": True}),
        ({"scale_positional_embedding": True, "mcore_gpt": True, "scale_factor": 32}, {"scale_factor": 32}),
        ({"window_size": [4096, 0]}, {"window_size": [4096, 0]}),
    ],
)  # fmt: skip
def test_keys(yaml, fields):
    found = read_fields({**LEAST, **yaml}, "here")
    assert {name: found[name] for name in fields} == fields


def test_a_scaling_without_megatron_core_means_nothing():
    found = read_fields({**LEAST, "scale_positional_embedding": True, "mcore_gpt": False}, "here")
    assert "scale_factor" not in found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "fast-swiglu", "normalization": "rmsnorm", "bias": False},
        {"activation": "squared-relu", "normalization": "layernorm1p", "rotary_percentage": 0.5},
        {"activation": "fast-geglu", "openai_gelu": True, "normalization": "rmsnorm", "layernorm_zero_centered_gamma": True},
        {"num_moe_experts": 8, "moe_router_topk": 4, "moe_router_pre_softmax": True, "moe_layer_freq": [0, 1]},
        {"scale_positional_embedding": True, "mcore_gpt": True},
        {"window_size": [7, 0], "qk_layernorm": True, "qkv_bias": True},
    ],
    ids=str,
)  # fmt: skip
def test_there_and_back(changes):
    fields = read_fields({**LEAST, **changes}, "here")
    again = read_fields({**write_yaml(fields), "mcore_gpt": True}, "here")
    assert again == fields


@pytest.mark.parametrize("name", ["invented", "use_alibi", "num_sliding_layers"])
def test_an_unknown_key_is_refused_unless_accepted(name):
    with pytest.raises(UnsupportedConfig, match=name):
        read_fields({**LEAST, name: 1}, "here")
    assert name not in read_fields({**LEAST, name: 1}, "here", [name])


def test_a_field_that_nemo_1_has_no_word_for():
    with pytest.raises(UnsupportedConfig, match="attn_logit_softcapping"):
        write_yaml({**read_fields(LEAST, "here"), "attn_logit_softcapping": 50.0})


@pytest.mark.parametrize("name", LEAST)
def test_a_config_that_builds_nothing(name):
    with pytest.raises(CorruptCheckpoint, match=name):
        read_fields({key: value for key, value in LEAST.items() if key != name}, "here")


def test_every_key_has_one_owner():
    owned = [name for rule in RULES for name in rule.keys]
    assert len(owned) == len(set(owned))
    assert not set(owned) & nemo1_fields.INERT
