"""Keys that no code reads pass; those that some code reads do not, unless they say the default."""

from __future__ import annotations

import math

import pytest

from nemoconv.errors import UnsupportedConfig
from nemoconv.formats.text.special_floats import tagged, untagged
from nemoconv.mappings.hf import keys_read, unowned
from nemoconv.mappings.hf.fields import Dtype
from nemoconv.mappings.hf.keys_read import judge

#: (model type, key, value) of published files
HARMLESS = [
    ("bert", "pooler_fc_size", 768),
    ("bert", "pooler_num_attention_heads", 12),
    ("bert", "pooler_num_fc_layers", 3),
    ("bert", "pooler_size_per_head", 128),
    ("bert", "pooler_type", "first_token_transform"),
    ("bert", "directionality", "bidi"),
    ("gpt2", "_num_labels", 1),
    ("gpt2", "output_past", True),
    ("gpt2", "gradient_checkpointing", False),
    ("gpt2", "predict_special_tokens", True),
    ("llama", "max_sequence_length", 2048),
    ("llama", "rope_interleaved", False),
    ("mistral", "full_attn_mod", 1),
    ("mistral", "attention_bias", False),
    ("qwen2", "use_mrope", False),
    ("qwen3_moe", "qkv_bias", False),
    ("qwen3_moe", "shared_expert_intermediate_size", 0),
    ("qwen3_moe", "use_qk_norm", True),
    ("deepseek_v3", "ep_size", 1),
    ("deepseek_v3", "seq_aux", True),
    ("nemotron_h", "mamba_proj_bias", False),
    ("nemotron_h", "time_step_rank", 256),
    ("mamba2", "norm_before_gate", True),
    ("mamba2", "rms_norm", True),
    ("t5", "output_past", True),
    ("starcoder2", "attention_softmax_in_fp32", True),
]
#: those that a model's code, or what all models share, does read
READ = [
    ("bert", "embedding_size", 128),
    ("gpt2", "scale_attn_by_inverse_layer_idx", True),
    ("llama", "per_layer_config", {"0": {"num_attention_heads": 2}}),
    ("llama", "sliding_window", 4096),
    ("llama", "attention_chunk_size", 64),
    ("llama", "is_causal", False),
    ("qwen2", "partial_rotary_factor", 0.5),
    ("gemma2", "use_bidirectional_attention", True),
    ("mixtral", "attention_chunk_size", 64),
    ("mamba2", "time_step_limit", [0.1, 0.2]),
    ("gpt_neox", "rotary_pct", 0.5),
    ("t5", "feed_forward_proj", "relu-gated"),
]


@pytest.mark.parametrize(("kind", "key", "value"), HARMLESS)
def test_a_key_that_no_code_reads_passes(kind: str, key: str, value: object) -> None:
    hf = {"model_type": kind, key: value}
    assert judge(hf, [key], kind).doubtful == []
    assert unowned.carried(hf, [key]) == {key: value}
    assert [note for note in unowned.notes(hf, [key]) if key in note and "carried along" in note]


@pytest.mark.parametrize(("kind", "key", "value"), READ)
def test_a_key_that_some_code_reads_is_in_doubt(kind: str, key: str, value: object) -> None:
    assert judge({"model_type": kind, key: value}, [key], kind).doubtful == [key]
    assert unowned.carried({"model_type": kind, key: value}, [key]) == {}


def test_a_key_at_its_default_passes_and_one_is_not_true() -> None:
    assert judge({"reorder_and_upcast_attn": False}, ["reorder_and_upcast_attn"], "gpt2").default
    assert judge({"reorder_and_upcast_attn": 0}, ["reorder_and_upcast_attn"], "gpt2").doubtful
    assert judge({"attn_pdrop": 0.9}, ["attn_pdrop"], "gpt2").default  # a dropout


@pytest.mark.parametrize("key", ["auto_map", "quantization_config", "custom_generate", "trust_remote_code"])
def test_what_names_code_or_files_is_never_carried(key: str) -> None:
    assert unowned.carried({"model_type": "llama", key: "x"}, [key]) == {}


def test_without_a_list_or_with_code_of_its_own_every_key_is_in_doubt() -> None:
    assert keys_read.keys_read("of_our_own") is None
    assert judge({"x": 1}, ["x"], "of_our_own").doubtful == ["x"]
    assert judge({"x": 1}, ["x"], "llama").unread == ["x"]
    assert judge({"x": 1, "auto_map": {}}, ["x"], "llama").doubtful == ["x"]
    assert judge({"x": 1}, ["x"], None).doubtful == ["x"]
    assert judge({"x": 1}, ["x"], "clip_vision_model", "llava").unread == ["x"]
    assert judge({"x": 1}, ["x"], "clip_vision_model", "of_our_own").doubtful == ["x"]


def test_numbers_that_json_has_not_come_back_as_they_were() -> None:
    value = {"a": [0.0, math.inf, {"b": -math.inf}], "c": "Infinity"}
    assert tagged(value) == {
        "a": [0.0, {"__float__": "Infinity"}, {"b": {"__float__": "-Infinity"}}],
        "c": "Infinity",
    }
    assert untagged(tagged(value)) == value
    assert math.isnan(untagged(tagged(math.nan)))
    assert untagged({"__float__": "1.5"}) == {"__float__": "1.5"}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("bfloat16", "bfloat16"),
        ("torch.float16", "float16"),
        ({"": "bfloat16", "vision_config": "float32"}, "bfloat16"),
        ({"text_config": "float16", "vision_config": "float16"}, "float16"),
        ("auto", None),
        (None, None),
    ],
)
def test_dtypes_in_their_spellings(given: object, meant: str | None) -> None:
    config: dict[str, object] = {}
    Dtype().read({"torch_dtype": given}, config)
    assert config == {"params_dtype": meant}


@pytest.mark.parametrize("given", [{}, {"a": "float16", "b": "float32"}, "float", 16, ["bfloat16"], {"": []}])
def test_other_dtypes_are_refused(given: object) -> None:
    with pytest.raises(UnsupportedConfig, match="dtype"):
        Dtype().read({"torch_dtype": given}, {})
