"""Llama-Nemotron Super and Ultra: layers of different sizes, and layers that lack a part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.errors import LayoutError, UnsupportedConfig
from nemoconv.formats.text.fiddle import Symbol
from nemoconv.mappings import load_table, samples, table_for_nemo
from nemoconv.mappings.hf.fields import read_config
from nemoconv.testing import MappingTests

TABLE = load_table("nemotron-nas")
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def block(heads: int | str | None = 2, factor: float | str | None = 2.0) -> dict[str, Any]:
    """``heads`` in a group and ``factor`` of the MLP; None: not there, "linear": a linear layer instead."""
    return {
        "attention": {
            "n_heads_in_group": heads if isinstance(heads, int) else None,
            "no_op": heads is None,
            "replace_with_linear": heads == "linear",
            "num_sink_tokens": None,
            "sparsify": None,
            "unshifted_sink": False,
            "use_prefill_window_in_sink_attention": False,
            "window_length": None,
        },
        "ffn": {
            "ffn_mult": factor if isinstance(factor, float) else None,
            "no_op": factor is None,
            "replace_with_linear": factor == "linear",
            "sparsify": None,
        },
    }


BLOCKS = [block(), block(None, 16.0), block(1, None), block("linear", 2.0), block(2, "linear")]
CONFIG: dict[str, Any] = {
    "model_type": "nemotron-nas",
    "architectures": ["DeciLMForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "nvidia/some--modeling_decilm.DeciLMForCausalLM"},
    "num_hidden_layers": len(BLOCKS),
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": None,
    "intermediate_size": None,
    "vocab_size": 67,
    "rope_theta": 500000.0,
    "rope_scaling": LLAMA3,
    "block_configs": BLOCKS,
    "torch_dtype": "bfloat16",
}


class TestNemotronNAS(MappingTests):
    config = CONFIG


class TestNemotronNASTied(MappingTests):
    config = {**CONFIG, "tie_word_embeddings": True}


def test_each_layer_is_stored_for_itself_with_sizes_of_its_own(tmp_path: Path) -> None:
    samples.build(tmp_path / "hf", CONFIG)
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    with open_checkpoint(tmp_path / "nemo") as nemo:
        shapes = {name: nemo.spec(name).shape for name in nemo.keys()}  # noqa: SIM118
    layer = {i: {n.split(f"layers.{i}.")[1] for n in shapes if f"layers.{i}." in n} for i in range(5)}
    attention = {"self_attention.linear_qkv.layer_norm_weight", "self_attention.linear_qkv.weight"}
    attention |= {"self_attention.linear_proj.weight"}
    mlp = {"mlp.linear_fc1.layer_norm_weight", "mlp.linear_fc1.weight", "mlp.linear_fc2.weight"}
    assert layer[0] == attention | mlp
    assert layer[1] == mlp
    assert layer[2] == attention
    assert layer[3] == {"self_attention.layer_norm_weight", "self_attention.weight"} | mlp
    assert layer[4] == attention | {"mlp.layer_norm_weight", "mlp.weight"}
    assert shapes["decoder.layers.0.self_attention.linear_qkv.weight"] == ((4 + 2 * 2) * 8, 32)
    assert shapes["decoder.layers.2.self_attention.linear_qkv.weight"] == ((4 + 2 * 4) * 8, 32)
    assert shapes["decoder.layers.0.mlp.linear_fc1.weight"] == (2 * 256, 32)
    assert shapes["decoder.layers.1.mlp.linear_fc1.weight"] == (2 * 512, 32)
    assert shapes["decoder.layers.3.self_attention.weight"] == (32, 32)


def test_every_layer_must_divide(tmp_path: Path) -> None:
    """One layer has a key head only: two ranks share its rows evenly, three cannot."""
    samples.build(tmp_path / "hf", {**CONFIG, "block_configs": [*BLOCKS[:4], block(4, "linear")]})
    with pytest.raises(LayoutError, match="num_query_groups=2") as caught:
        convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2", tensor_parallel_size=3)
    assert "divide it: 1, 2" in str(caught.value.hint)
    for count in ("tensor_parallel_size", "pipeline_parallel_size"):
        size = 2 if count == "tensor_parallel_size" else 5
        convert(tmp_path / "hf", tmp_path / count, to="nemo2", verify=True, **{count: size})


@pytest.mark.parametrize(
    ("factor", "hidden", "size"),
    [
        (2.625, 8192, 14336),
        (5.25, 8192, 28672),
        (0.5, 8192, 2816),
        (1.4625, 16384, 16128),
        (39.0, 16384, 425984),
    ],
)
def test_sizes_of_the_released_models(factor: float, hidden: int, size: int) -> None:
    given = {**CONFIG, "hidden_size": hidden, "num_hidden_layers": 1, "block_configs": [block(2, factor)]}
    sizes = TABLE.sizes(read_config(TABLE.fields, given)[0])
    assert [value for name, value in sizes.items() if name.startswith("ffn.")] == [size]


def test_megatron_reads_the_blocks_alike() -> None:
    heterogeneous = pytest.importorskip("megatron.core.transformer.heterogeneous.heterogeneous_config")
    config = read_config(TABLE.fields, CONFIG)[0]
    _, fields = TABLE.nemo.write(config)
    theirs = heterogeneous.HeterogeneousTransformerConfig(
        num_layers=5,
        hidden_size=32,
        num_attention_heads=4,
        heterogeneous_layers_config_encoded_json=fields["heterogeneous_layers_config_encoded_json"],
    )
    found = [
        (b.attention.num_query_groups or 0, b.mlp.ffn_hidden_size or 0) for b in theirs.per_block_parameters
    ]
    assert TABLE.kinds is not None
    assert TABLE.kinds(config) == [f"{groups}x{ffn}" for groups, ffn in found]


def changed(part: str, key: str, value: object) -> list[dict[str, Any]]:
    last = block()
    return [*BLOCKS[:4], {**last, part: {**last[part], key: value}}]


@pytest.mark.parametrize(
    ("blocks", "named"),
    [
        (changed("attention", "window_length", 128), r"\[4\].attention.window_length=128"),
        (changed("attention", "num_sink_tokens", 4), r"\[4\].attention.num_sink_tokens=4"),
        (changed("attention", "n_heads_in_group", 3), r"\[4\].attention.n_heads_in_group=3"),
        (changed("attention", "n_heads_in_group", None), r"\[4\].attention.n_heads_in_group=None"),
        (changed("ffn", "sparsify", {}), r"\[4\].ffn.sparsify"),
        (changed("ffn", "ffn_mult", None), r"\[4\].ffn.ffn_mult=None"),
        (changed("ffn", "ffn_mult", float("nan")), r"\[4\].ffn.ffn_mult=nan"),
        (changed("ffn", "moe", {}), r"\[4\].ffn.moe"),
        (BLOCKS[:4], "no block for each of 5 layers"),
        ([*BLOCKS[:4], {"ffn": {}}], r"\[4\] is not a table of 'attention' and 'ffn'"),
        (None, "no block for each"),
    ],
)
def test_a_block_that_is_not_understood_is_named(blocks: object, named: str) -> None:
    with pytest.raises(UnsupportedConfig, match=named):
        read_config(TABLE.fields, {**CONFIG, "block_configs": blocks})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_key_value_heads", 2),
        ("intermediate_size", 64),
        ("attention_bias", True),
        ("hidden_act", "gelu"),
        ("rope_scaling", None),
    ],
)
def test_what_is_refused_is_named(key: str, value: object) -> None:
    with pytest.raises(UnsupportedConfig, match=f"{key}|rotary scaling of type"):
        TABLE.nemo.write(read_config(TABLE.fields, {**CONFIG, key: value})[0])


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"block_configs": []}', "[" * 100_000])
def test_a_nemo_config_without_readable_blocks_is_refused(text: object) -> None:
    name, fields = TABLE.nemo.write(read_config(TABLE.fields, CONFIG)[0])
    fields["heterogeneous_layers_config_encoded_json"] = text
    with pytest.raises(UnsupportedConfig, match="heterogeneous_layers_config_encoded_json"):
        TABLE.nemo.read(Symbol(TABLE.nemo.module, name), fields, "test")


def test_nemo_stores_the_whole_config_json_in_the_field() -> None:
    """NeMo's importer puts all of config.json there; the other keys are read from their own fields."""
    config = read_config(TABLE.fields, CONFIG)[0]
    name, fields = TABLE.nemo.write(config)
    fields["heterogeneous_layers_config_encoded_json"] = json.dumps(CONFIG)
    assert TABLE.nemo.read(Symbol(TABLE.nemo.module, name), fields, "test")["block_configs"] == BLOCKS


def test_nano_is_a_plain_llama() -> None:
    symbol = Symbol("nemo.collections.llm.gpt.model.llama_nemotron", "Llama31NemotronNano8BConfig")
    table = table_for_nemo(symbol, {}, "test")
    assert table.architecture == "llama"
    read = table.nemo.read(symbol, {"vocab_size": 128256}, "test")
    assert read["kv_channels"] == 128
    assert read["rope_scaling"]["factor"] == 8.0
