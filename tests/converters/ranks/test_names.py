"""Keys of NeMo 1's state dicts in the tables' names."""

from __future__ import annotations

import pytest

from nemoconv.converters.ranks.weights import Name, parse
from nemoconv.mappings.nemo1.dialects import BERT, GPT


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model.embedding.word_embeddings.weight", Name("embedding.word_embeddings.weight", None)),
        ("model.module.decoder.layers.3.mlp.linear_fc1.weight", Name("mlp.linear_fc1.weight", 3)),
        ("decoder.layers.3.mlp.linear_fc1.weight", Name("mlp.linear_fc1.weight", 3)),
        ("model1.decoder.layers.0.mlp.linear_fc2.bias", Name("mlp.linear_fc2.bias", 0, chunk=1)),
        ("model.language_model.embedding.position_embeddings.weight", Name("embedding.position_embeddings.weight", None)),
        ("model.language_model.output_layer.weight", Name("output_layer.weight", None)),
        ("model.word_embeddings.weight", Name("output_layer.weight", None)),
        ("model.language_model.rotary_pos_emb.inv_freq", Name("rotary_pos_emb.inv_freq", None)),
        ("model.language_model.encoder.final_layernorm.bias", Name("decoder.final_layernorm.bias", None)),
        (
            "model._orig_mod.language_model.encoder.layers.12.self_attention.query_key_value.bias",
            Name("self_attention.linear_qkv.bias", 12),
        ),
        (
            "model.language_model.transformer.layers.0.attention.dense.weight",
            Name("self_attention.linear_proj.weight", 0),
        ),
        (
            "model.language_model.encoder.layers.0.post_attention_layernorm.weight",
            Name("pre_mlp_layernorm.weight", 0),
        ),
        ("model.language_model.encoder.layers.0.mlp.dense_h_to_4h_2.weight", Name("mlp.linear_fc1.weight", 0, half=1)),
        (
            "model.decoder.layers.0.mlp.experts.linear_fc1.weight7",
            Name("mlp.experts.local_experts.7.linear_fc1.weight", 0),
        ),
        ("model.decoder.layers.0.mlp.shared_expert.linear_fc1.weight", Name("mlp.shared_experts.linear_fc1.weight", 0)),
    ],
)  # fmt: skip
def test_keys(key, name):
    assert parse(key) == name


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model.language_model.encoder.initial_layernorm.bias", "encoder.initial_layernorm.bias"),
        ("model.language_model.embedding.tokentype_embeddings.weight", "embedding.tokentype_embeddings.weight"),
        ("model.language_model.encoder.layers.3.input_layernorm.weight", "encoder.layers.3.post_att_layernorm.weight"),
        (
            "model.language_model.encoder.layers.3.post_attention_layernorm.bias",
            "encoder.layers.3.post_mlp_layernorm.bias",
        ),
        (
            "model.language_model.encoder.layers.0.self_attention.query_key_value.weight",
            "encoder.layers.0.self_attention.linear_qkv.weight",
        ),
        ("model.language_model.pooler.dense.weight", "pooler.dense.weight"),
        ("model.lm_head.layernorm.weight", "lm_head.layer_norm.weight"),
        ("model.lm_head.bias", "output_layer.bias"),
        ("model.word_embeddings.weight", "output_layer.weight"),
    ],
)  # fmt: skip
def test_the_dialect_of_bert_has_two_directions(key, name):
    parsed = parse(key, BERT)
    assert parsed.at(parsed.layer) == name
    assert "model." + BERT.write(name) == key
    mcore = parse("model." + name, BERT)
    assert mcore.at(mcore.layer) == name


@pytest.mark.parametrize(
    "key",
    [
        "embedding.word_embeddings.weight",
        "decoder.layers.2.self_attention.linear_proj.bias",
        "decoder.layers.2.pre_mlp_layernorm.weight",
        "decoder.final_layernorm.weight",
    ],
)
def test_the_dialect_of_gpt_has_two_directions(key):
    assert GPT.read(GPT.write(key)) == key


def test_whole_names():
    assert (
        parse("model.decoder.layers.1.mlp.linear_fc1.weight").at(5)
        == "decoder.layers.5.mlp.linear_fc1.weight"
    )
    assert parse("model.output_layer.weight").at(None) == "output_layer.weight"
