"""BERT: three classes of one ``model_type``, with the heads that each has."""

from __future__ import annotations

import shutil
import zlib
from math import prod
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.nemo2.context import read_context
from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.errors import MappingError, UnsupportedArchitecture, UnsupportedConfig
from nemoconv.formats.text.fiddle import Symbol
from nemoconv.mappings import load_table, samples, table_for, table_for_nemo
from nemoconv.mappings.hf.fields import read_config, write_config
from nemoconv.stores.files import SourceDir
from nemoconv.testing import MappingTests, data_of

CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "vocab_size": 67,
    "max_position_embeddings": 64,
    "type_vocab_size": 3,
    "torch_dtype": "bfloat16",
}
MASKED = {**CONFIG, "architectures": ["BertForMaskedLM"]}
PRETRAINING = {**CONFIG, "architectures": ["BertForPreTraining"]}


class TestBertModel(MappingTests):
    config = CONFIG


class TestBertForMaskedLM(MappingTests):
    config = MASKED


class TestBertForPreTraining(MappingTests):
    config = PRETRAINING


@pytest.mark.parametrize("given", [CONFIG, MASKED, PRETRAINING])
def test_missing_keys_take_the_defaults_of_transformers(given: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    fields = table_for(given, "test").fields
    theirs = transformers.BertConfig().to_dict()
    assert read_config(fields, theirs)[0] == read_config(fields, {"model_type": "bert"})[0]


def test_other_classes_are_refused() -> None:
    with pytest.raises(UnsupportedArchitecture, match="BertForTokenClassification"):
        table_for({**CONFIG, "architectures": ["BertForTokenClassification"]}, "test")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "relu"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("tie_word_embeddings", False),
        ("rope_theta", 10000.0),
    ],
)
def test_what_is_refused_is_named(key: str, value: object) -> None:
    with pytest.raises(UnsupportedConfig, match=key):
        read_config(load_table("bert").fields, {**CONFIG, key: value})


MODULE = "nemo.collections.llm.bert.model.bert"
SIZES = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_tokentypes": 2}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bert_type", "megatron"),
        ("position_embedding_type", "rope"),
        ("normalization", "RMSNorm"),
        ("qk_layernorm", True),
        ("transformer_layer_spec", Symbol("elsewhere", "spec")),
    ],
)
def test_what_is_refused_of_nemo_is_named(field: str, value: object) -> None:
    symbol, given = Symbol(MODULE, "HuggingFaceBertConfig"), {**SIZES, field: value}
    with pytest.raises(UnsupportedConfig, match=field):
        table_for_nemo(symbol, given, "test").nemo.read(symbol, given, "test")


def test_the_heads_of_a_nemo_config_tell_the_class() -> None:
    symbol = Symbol(MODULE, "HuggingFaceBertBaseConfig")
    for heads, name in (
        ({}, "bert:BertForPreTraining"),
        ({"add_lm_head": False, "bert_binary_head": False}, "bert"),
        ({"add_pooler": False, "bert_binary_head": False}, "bert:BertForMaskedLM"),
    ):
        assert table_for_nemo(symbol, {**SIZES, **heads}, "test").architecture == name
    nobodys = {**SIZES, "add_lm_head": False}
    with pytest.raises(UnsupportedConfig, match="add_lm_head|bert_binary_head"):
        table_for_nemo(symbol, nobodys, "test").nemo.read(symbol, nobodys, "test")


def test_an_untied_nemo_model_is_refused() -> None:
    symbol, given = Symbol(MODULE, "HuggingFaceBertConfig"), {"share_embeddings_and_output_weights": False}
    table = table_for_nemo(symbol, given, "test")
    read = table.nemo.read(symbol, {**SIZES, **given}, "test")
    with pytest.raises(UnsupportedConfig, match="share_embeddings_and_output_weights"):
        write_config(table.fields, read)


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("vocab", [61, 63, 64, 66, 67, 96])
def test_nemo_rounds_the_tokenizer_up_to_the_rows_that_are_written(
    tmp_path: Path, vocab: int, tp: int
) -> None:
    """``get_vocab_size`` in nemo/collections/llm/utils.py: a multiple of the divisor times TP."""
    samples.build(tmp_path / "hf", {**CONFIG, "vocab_size": vocab})
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2", tensor_parallel_size=tp)
    with open_checkpoint(tmp_path / "nemo") as nemo:
        rows = nemo.spec("embedding.word_embeddings.weight").shape[0]
        assert nemo.model().config["vocab_size"] == vocab
    folder = SourceDir(tmp_path / "nemo")
    fields = read_context(folder).fields
    folder.close()
    step = fields["make_vocab_size_divisible_by"] * tp
    assert -(-vocab // step) * step == rows
    assert "vocab_size" not in fields


def test_older_spellings_and_copies_are_read(tmp_path: Path) -> None:
    """Files of the first releases say gamma and beta, and repeat what is tied."""
    samples.build(tmp_path / "hf", MASKED)
    shutil.copytree(tmp_path / "hf", tmp_path / "old")
    pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "hf/model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for name, t in tensors.items()
    }
    old["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    old["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
    save_file(old, tmp_path / "old/model.safetensors")
    convert(tmp_path / "old", tmp_path / "nemo", to="nemo2", verify=True)
    convert(tmp_path / "nemo", tmp_path / "back", to="hf")
    assert data_of(tmp_path / "back") == data_of(tmp_path / "hf")
    old["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"] + 1
    save_file(old, tmp_path / "old/model.safetensors")
    with pytest.raises(MappingError, match="ties cls.predictions.decoder.bias"):
        convert(tmp_path / "old", tmp_path / "no", to="nemo2")


def test_an_output_bias_without_a_head_may_hold_anything(tmp_path: Path) -> None:
    """NeMo's model has it in any case, and its importer leaves in it what lay in memory."""
    samples.build(tmp_path / "hf", CONFIG)
    convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2")
    with open_checkpoint(tmp_path / "nemo") as nemo:
        assert not nemo.read("output_layer.bias").view("u2").any()
        extent = nemo.stored("output_layer.bias").extents[0]
    file = Path(extent.file.path)
    whole = file.read_bytes()
    stored = whole[extent.offset : extent.offset + 2 * prod(extent.shape)]
    other = bytes([stored[0] ^ 1]) + stored[1:]
    was, now = (zlib.crc32(data).to_bytes(4, "little") for data in (stored, other))
    at = extent.offset
    file.write_bytes((whole[:at] + other + whole[at + len(other) :]).replace(was, now))
    (tmp_path / "nemo" / "nemoconv_manifest.json").unlink()  # no manifest is NeMo's importer's
    convert(tmp_path / "nemo", tmp_path / "back", to="hf")
    assert data_of(tmp_path / "back") == data_of(tmp_path / "hf")
