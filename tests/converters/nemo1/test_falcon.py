"""Falcon in NeMo 1's archives, the only place that NeMo has for it."""

from __future__ import annotations

import json

import legacy_nemo as legacy
import numpy
import pytest
import tiny

from nemoconv.converters.look.inspect import inspect
from nemoconv.converters.look.verify import verify
from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.errors import UnsupportedArchitecture, UnsupportedFormat
from nemoconv.mappings import samples

torch = pytest.importorskip("torch")

CONFIG = {
    "model_type": "falcon", "architectures": ["FalconForCausalLM"], "num_hidden_layers": 4, "hidden_size": 32,
    "num_attention_heads": 4, "vocab_size": 40, "max_position_embeddings": 64, "torch_dtype": "bfloat16",
}  # fmt: skip
NEW = {"new_decoder_architecture": True, "num_kv_heads": 2}
KINDS = {
    "7B": {},
    "40B": NEW,
    "11B": {**NEW, "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False},
    "all heads": {"multi_query": False, "ffn_hidden_size": 96},
    "one after the other": {"multi_query": False, "parallel_attn": False, "bias": True},
}


@pytest.mark.parametrize("rank_files", [False, True], ids=["torch_dist", "rank files"])
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(tmp_path, kind, rank_files):
    samples.build(tmp_path / "hf", {**CONFIG, **KINDS[kind]})
    tp = 1 if kind == "7B" else 2
    options = {"tensor_parallel_size": tp, "pipeline_parallel_size": 2, "rank_files": rank_files}
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", verify=True, **options)
    convert(tmp_path / "x.nemo", tmp_path / "back", to="hf", verify=True)
    legacy.assert_holds(tmp_path / "back", tiny.load(tmp_path / "hf"))
    assert verify(tmp_path / "back", tmp_path / "hf").equal
    assert inspect(tmp_path / "x.nemo")["architecture"] == "falcon"


def script(arrays, *, two):
    """The state dict that NVIDIA's script makes: other names and nothing else, the output layer untied."""
    pairs = [("transformer.h.", "decoder.layers."), ("transformer.ln_f", "decoder.final_layernorm")]
    pairs += [("transformer.word_embeddings", "embedding.word_embeddings"), ("lm_head", "output_layer")]
    pairs += [("self_attention.dense", "self_attention.linear_proj")]
    pairs += [("self_attention.query_key_value", "self_attention.linear_qkv")]
    pairs += [("dense_h_to_4h", "linear_fc1"), ("dense_4h_to_h", "linear_fc2")]
    pairs += [("ln_attn", "input_layernorm"), ("ln_mlp", "pre_mlp_layernorm")] if two else []
    state = {}
    for name, array in arrays.items():
        for theirs, ours in pairs:
            name = name.replace(theirs, ours)
        state["model." + name] = legacy.tensor(array)
    return state


def settings(**changes):
    return {
        "mcore_gpt": True, "name": "megatron_falcon_gpt", "encoder_seq_length": 64, "num_layers": 4,
        "hidden_size": 32, "ffn_hidden_size": 128, "num_attention_heads": 4, "num_query_groups": 2,
        "normalization": "layernorm", "bias": False, "activation": "gelu", "bias_activation_fusion": False,
        "bias_dropout_add_fusion": False, "position_embedding_type": "rope", "rotary_percentage": 1.0,
        "share_embeddings_and_output_weights": False, "apply_query_key_layer_scaling": False,
        "hidden_dropout": 0.0, "attention_dropout": 0.0, "make_vocab_size_divisible_by": 4,
        "mcore_customization_config": {"new_decoder_architecture": True, "parallel_attention": True},
        "tokenizer": {"library": "huggingface", "type": "tiiuae/falcon-40b", "use_fast": True},
        "target": legacy.TARGET, "nemo_version": "1.21.0rc0", **changes,
    }  # fmt: skip


@pytest.mark.parametrize("two", [True, False])
def test_what_nvidias_script_writes(tmp_path, two):
    norms = {} if two else {"num_ln_in_parallel_attn": 1}
    samples.build(tmp_path / "hf", {**CONFIG, **NEW, **norms, "tie_word_embeddings": False})
    arrays = tiny.load(tmp_path / "hf")
    custom = {"new_decoder_architecture": two, "parallel_attention": True}
    yaml = settings(mcore_customization_config=custom)
    files = legacy.members({(0, 0): script(arrays, two=two)}, yaml)
    source = legacy.pack(tmp_path / "x.nemo", files)
    convert(source, tmp_path / "back", to="hf", verify=True)
    legacy.assert_holds(tmp_path / "back", arrays)
    written = json.loads((tmp_path / "back/config.json").read_text())
    assert written["num_ln_in_parallel_attn"] == (2 if two else 1)
    assert (written["new_decoder_architecture"], written["num_kv_heads"]) == (True, 2)
    assert verify(source, tmp_path / "hf").equal


def test_what_is_written_is_what_the_script_writes(tmp_path):
    samples.build(tmp_path / "hf", {**CONFIG, **NEW, "tie_word_embeddings": False})
    convert(tmp_path / "hf", tmp_path / "x.nemo", to="nemo", rank_files=True)
    with open_checkpoint(tmp_path / "x.nemo") as checkpoint:
        yaml = checkpoint.yaml
    said = settings()
    ours = {name: yaml.get(name) for name in said}
    elsewhere = ("tokenizer", "nemo_version", "make_vocab_size_divisible_by", "bias_dropout_add_fusion")
    differing = {name for name in said if ours[name] != said[name]} - set(elsewhere)
    assert not differing
    convert(tmp_path / "x.nemo", tmp_path / "plain", to="safetensors")
    held, expected = tiny.load(tmp_path / "plain"), script(tiny.load(tmp_path / "hf"), two=True)
    assert held.keys() == expected.keys()
    for name, tensor in expected.items():
        assert numpy.array_equal(held[name], tensor.view(torch.int16).numpy().view("u2")), name


def test_nemo_2_has_no_class_for_it(tmp_path):
    samples.build(tmp_path / "hf", CONFIG)
    with pytest.raises(UnsupportedFormat, match="falcon") as caught:
        convert(tmp_path / "hf", tmp_path / "x", to="nemo2")
    assert "hf2nemo" in str(caught.value)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"position_embedding_type": "alibi"}, "alibi"),
        ({"normalization": "rmsnorm"}, "RMSNorm"),
        ({"bias": True}, "side by side"),
        ({"name": ""}, "new_decoder_architecture"),
    ],
)
def test_what_is_no_falcon(tmp_path, changes, says):
    samples.build(tmp_path / "hf", {**CONFIG, **NEW, "tie_word_embeddings": False})
    files = legacy.members({(0, 0): script(tiny.load(tmp_path / "hf"), two=True)}, settings(**changes))
    with pytest.raises(UnsupportedArchitecture, match=says):
        convert(legacy.pack(tmp_path / "x.nemo", files), tmp_path / "back", to="hf")
