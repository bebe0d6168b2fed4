"""Lists of tokens and keys of config.json beside speech graphs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nemoconv.converters.archive.speech_tokenizer import is_token_list
from nemoconv.converters.base import Model
from nemoconv.converters.onnx.graph.architectures import find
from nemoconv.converters.onnx.writer import token_lists, token_texts
from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.onnx_in_place import add_graph
from nemoconv.errors import UnsupportedConfig
from nemoconv.mappings import load_table

onnx = pytest.importorskip("onnx")

SAMPLES = Path(__file__).parents[3] / "fixtures" / "speech"
GRAPHS = ("encoder-model.onnx", "decoder_joint-model.onnx", "decoder.onnx", "joiner.onnx")


def tokenizer(texts: list[str], added: dict[int, str]) -> bytes:
    tokens = [{"id": number, "content": text} for number, text in added.items()]
    return json.dumps(
        {"model": {"vocab": {text: i for i, text in enumerate(texts)}}, "added_tokens": tokens}
    ).encode()


def model(name: str, size: int, texts: list[str], added: dict[int, str] | None = None) -> Model:
    files = {"tokenizer.json": tokenizer(texts, added or {})}
    return Model(load_table(name), {"vocab_size": size}, files=files)


def test_the_blank_is_the_last_line() -> None:
    speech = find("parakeet_ctc")
    texts = token_texts(speech, model("parakeet_ctc", 4, ["<unk>", "▁a"], {2: "b", 3: "<pad>"}))
    assert texts == ["<unk>", "▁a", "b"]
    lists = token_lists(speech, texts)
    assert lists.keys() == {"vocab.txt", "tokens.txt"}
    assert set(lists.values()) == {"<unk> 0\n▁a 1\nb 2\n<blk> 3\n".encode()}
    assert all(map(is_token_list, lists.values()))
    assert not is_token_list(b"a\n##b\nc 2\n")
    assert not is_token_list(b"")


def test_a_padded_vocabulary_without_a_blank() -> None:
    speech = find("canary")
    texts = token_texts(speech, model("canary", 8, ["<unk>", "<|en|>", "▁"]))
    assert token_lists(speech, texts)["tokens.txt"] == "<unk> 0\n<|en|> 1\n▁ 2\n".encode()


@pytest.mark.parametrize(
    ("texts", "size", "error"),
    [
        (["<unk>", "a b"], 3, r"token 1 is 'a b': lists .* no white space"),
        (["<unk>", "a\n"], 3, "token 1 is"),
        (["<unk>", ""], 3, "token 1 is ''"),
        (["<unk>", "a"], 9, "tokenizer has 2 tokens, and the model 8"),
    ],
)
def test_tokens_that_cannot_be_listed(texts: list[str], size: int, error: str) -> None:
    with pytest.raises(UnsupportedConfig, match=error):
        token_texts(find("parakeet_tdt"), model("parakeet_tdt", size, texts))


def test_a_model_without_a_tokenizer_is_written_with_a_note(tmp_path: Path) -> None:
    report = convert(SAMPLES / "hf_ctc", tmp_path / "out", to="onnx")
    assert any("no tokenizer: vocab.txt and tokens.txt" in note for note in report.notes)
    assert not (tmp_path / "out" / "vocab.txt").exists()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    encoder = config["encoder_config"]
    assert config["features_size"] == encoder["num_mel_bins"]
    assert config["subsampling_factor"] == encoder["subsampling_factor"]
    shutil.copytree(SAMPLES / "hf_tdt", tmp_path / "place")
    said = add_graph(tmp_path / "place").notes
    assert any("does not say features_size=128, which onnx-asr needs" in note for note in said)
    for key in ("features_size", "subsampling_factor"):
        other = tmp_path / key
        shutil.copytree(tmp_path / "out", other)
        (other / "config.json").write_text(json.dumps({**config, key: 5}))
        with pytest.raises(UnsupportedConfig, match=f"{key}=5"), open_checkpoint(other) as opened:
            opened.model()


def test_what_sherpa_onnx_reads(folder: Path) -> None:
    loaded = onnx.load(str(folder / "encoder-model.onnx"), load_external_data=False)
    said = {entry.key: entry.value for entry in loaded.metadata_props}
    assert {key: value for key, value in said.items() if not key.startswith("nemoconv.")} == {
        "model_type": "EncDecRNNTBPEModel",
        "vocab_size": "61",
        "normalize_type": "per_feature",
        "subsampling_factor": "8",
        "feat_dim": "128",
        "pred_rnn_layers": "2",
        "pred_hidden": "24",
        "url": "parakeet_tdt",
    }
    assert (loaded.ir_version, loaded.opset_import[0].version) == (9, 20)
