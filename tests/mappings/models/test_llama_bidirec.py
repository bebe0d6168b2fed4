"""Llama embedding models and rerankers: two classes of one ``model_type``, with a table each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.run.convert import convert
from nemoconv.errors import LayoutError, UnsupportedArchitecture, UnsupportedConfig
from nemoconv.formats.text.fiddle import Symbol
from nemoconv.mappings import load_table, samples, table_for, table_for_nemo
from nemoconv.mappings.hf.fields import read_config, write_config
from nemoconv.testing import MappingTests

RERANKER = "LlamaBidirectionalForSequenceClassification"
CONFIG: dict[str, Any] = {
    "model_type": "llama_bidirec",
    "architectures": ["LlamaBidirectionalModel"],
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 67,
    "tie_word_embeddings": True,
    "pooling": "avg",
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "torch_dtype": "bfloat16",
}


class TestEmbedding(MappingTests):
    config = CONFIG


class TestReranker(MappingTests):
    config = {**CONFIG, "architectures": [RERANKER], "pooling": "last", "temperature": 0.5}
    tensor_parallel_size = 1


def test_each_class_has_its_table_and_both_the_model_type() -> None:
    embedding, reranker = table_for(CONFIG, "a"), table_for(TestReranker.config, "b")
    assert embedding is load_table("llama_bidirec")
    assert reranker is load_table(f"llama_bidirec:{RERANKER}")
    assert embedding.model_type == reranker.model_type == "llama_bidirec"
    with pytest.raises(UnsupportedArchitecture, match="only LlamaBidirectionalModel"):
        table_for({**CONFIG, "architectures": ["LlamaBidirectionalForTokens"]}, "c")


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        ("LlamaBidirectionalModel", "pooling", "cls"),
        ("LlamaBidirectionalModel", "tie_word_embeddings", False),
        ("LlamaBidirectionalModel", "rope_scaling", None),
        (RERANKER, "tie_word_embeddings", False),
        (RERANKER, "attention_bias", True),
        (RERANKER, "rope_scaling", {"rope_type": "linear", "factor": 2.0}),
    ],
)
def test_what_is_refused_is_named(architecture: str, key: str, value: object) -> None:
    given = {**CONFIG, "architectures": [architecture], key: value}
    table = table_for(given, "test")
    with pytest.raises(UnsupportedConfig, match=f"{key}|rotary scaling of type"):
        table.nemo.write(read_config(table.fields, given)[0])


def test_a_score_cannot_be_cut(tmp_path: Path) -> None:
    samples.build(tmp_path / "hf", TestReranker.config)
    with pytest.raises(LayoutError, match=r"score\.weight"):
        convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2", tensor_parallel_size=2)


def test_a_nemo_model_with_an_output_layer_is_refused() -> None:
    symbol = Symbol("nemo.collections.llm.gpt.model.llama_embedding", "Llama32EmbeddingConfig1B")
    table = table_for_nemo(symbol, {}, "test")
    read = table.nemo.read(symbol, {"share_embeddings_and_output_weights": False}, "test")
    with pytest.raises(UnsupportedConfig, match="share_embeddings_and_output_weights"):
        write_config(table.fields, read)


def test_how_nemo_trains_does_not_matter() -> None:
    symbol = Symbol("nemo.collections.llm.gpt.model.reranker", "Llama32Reranker500MConfig")
    table = table_for_nemo(symbol, {}, "test")
    assert table.architecture == f"llama_bidirec:{RERANKER}"
    read = table.nemo.read(symbol, {"num_hard_negatives": 7, "pool_type": "cls"}, "test")
    # NeMo 2.5.3 builds 16 layers: the class is no dataclass itself, so that its ``num_layers = 8`` is not heeded
    assert (read["num_layers"], read["pool_type"]) == (16, "cls")
