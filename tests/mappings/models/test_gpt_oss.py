"""gpt-oss: the table's own tests, transformers' defaults, MXFP4, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.errors import LayoutError, UnsupportedConfig
from nemoconv.formats.text.fiddle import Symbol
from nemoconv.mappings import load_table, samples, table_for_nemo
from nemoconv.mappings.hf.fields import read_config, write_config
from nemoconv.tensors.layout import Layout
from nemoconv.testing import MappingTests

YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
CONFIG = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "experts_per_token": 2,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "attention_bias": True,
    "initial_context_length": 4096,
    "swiglu_limit": 7.0,
    "vocab_size": 67,
    "max_position_embeddings": 131072,
    "rope_theta": 150000,
    "rope_scaling": YARN,
    "torch_dtype": "bfloat16",
}
TABLE = load_table("gpt_oss")
MODULE = "nemo.collections.llm.gpt.model.gpt_oss"


class TestGptOss(MappingTests):
    config = CONFIG


class TestGptOssUnscaled(MappingTests):
    config = {**CONFIG, "rope_scaling": None, "rope_parameters": {"rope_type": "default"}}

    def test_config_survives_both_ways(self) -> None:
        """Both places of the rope must agree: here one says nothing, which is not yarn by default."""
        plain = {key: value for key, value in self.config.items() if key != "rope_scaling"}
        config, _ = read_config(TABLE.fields, plain)
        assert config["rope_scaling"] is None
        assert read_config(TABLE.fields, write_config(TABLE.fields, config))[0] == config


def test_missing_keys_take_the_defaults_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    ours = read_config(TABLE.fields, {"model_type": "gpt_oss"})[0]
    theirs = transformers.GptOssConfig().to_dict()
    assert read_config(TABLE.fields, theirs)[0] == ours
    assert ours["rope_scaling"] == YARN


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("swiglu_alpha", 1.5),
        ("attention_bias", False),
        ("hidden_act", "gelu"),
        ("layer_types", ["full_attention", "full_attention"]),
        ("sliding_window", None),
        ("experts_per_token", 3),
        ("rope_scaling", {**YARN, "attention_factor": 1.2}),
        ("rope_scaling", {**YARN, "rope_type": "linear"}),
        ("rope_scaling", {**YARN, "original_max_position_embeddings": None}),
        ("swiglu_limit", None),
    ],
)
def test_what_is_refused_is_named(key: str, value: object) -> None:
    with pytest.raises(UnsupportedConfig, match="rotary scaling|rope_scaling" if "rope" in key else key):
        read_config(TABLE.fields, {**CONFIG, key: value})


def test_what_nemo_2_takes_by_itself_is_written_out() -> None:
    """NeMo's class has a window of 129 tokens, no clamp before 2.7, and no stretching of attention."""
    _, fields = TABLE.nemo.write(read_config(TABLE.fields, CONFIG)[0])
    assert fields["window_size"] == [7, 0]
    assert fields["activation_func_clamp_value"] == 7.0
    assert (fields["yarn_mscale"], fields["yarn_mscale_all_dim"]) == (None, None)
    assert fields["yarn_original_max_position_embeddings"] == 4096


def test_the_defaults_of_nemo_mean_what_nemo_computes() -> None:
    config = TABLE.nemo.read(Symbol(MODULE, "GPTOSSConfig20B"), {}, "here")
    assert (config["num_layers"], config["num_moe_experts"], config["sliding_window"]) == (24, 32, 129)
    assert config["rope_scaling"] == {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}
    assert table_for_nemo(Symbol(MODULE, "GPTOSSConfig120B"), {}, "here") is TABLE


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("window_attn_skip_freq", 3),
        ("window_size", None),
        ("activation_func", Symbol("torch.nn.functional", "silu")),
        ("glu_linear_offset", 0.0),
        ("softmax_type", "vanilla"),
        ("moe_router_pre_softmax", True),
        ("moe_ffn_hidden_size", 2816),
        ("yarn_mscale", 0.7),
        ("position_embedding_type", "learned_absolute"),
    ],
)
def test_what_config_json_cannot_say_is_refused(field: str, value: object) -> None:
    given = {field: value} | ({"yarn_mscale_all_dim": 0.0} if field == "yarn_mscale" else {})
    with pytest.raises(UnsupportedConfig, match=field):
        TABLE.nemo.read(Symbol(MODULE, "GPTOSSConfig20B"), given, "here")


def test_older_nemo_had_the_activation_elsewhere() -> None:
    given = {"activation_func": Symbol("megatron.core.fusions.fused_bias_geglu", "quick_gelu")}
    TABLE.nemo.read(Symbol(MODULE, "GPTOSSConfig20B"), given, "here")


def test_experts_with_biases_stay_whole(tmp_path: Path) -> None:
    samples.build(tmp_path / "hf", CONFIG)
    report = convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2", tensor_parallel_size=2)
    assert any("expert_tensor_parallel_size=1" in note for note in report.notes)
    with open_checkpoint(tmp_path / "nemo") as nemo:
        assert nemo.layout == Layout(tensor_parallel_size=2, expert_tensor_parallel_size=1)
        chunks = nemo._metadata.tensors[  # type: ignore[attr-defined]
            "module.decoder.layers.mlp.experts.experts.linear_fc2.weight"
        ].chunks
    assert {chunk.shape for chunk in chunks} == {(1, 1, 32, 48)}


def test_experts_with_biases_are_not_cut_on_demand(tmp_path: Path) -> None:
    from nemoconv.converters.registry import find_format
    from nemoconv.converters.run.plan import Wish, prepare
    from nemoconv.stores.output import OutputDirectory

    samples.build(tmp_path / "hf", CONFIG)
    layout = Layout(tensor_parallel_size=4, expert_tensor_parallel_size=2)
    with (
        open_checkpoint(tmp_path / "hf") as source,
        pytest.raises(LayoutError, match="biases"),
    ):
        prepare(source, OutputDirectory(tmp_path / "n"), find_format("nemo2"), Wish(layout))
