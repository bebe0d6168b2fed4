"""The real NeMo 2.5.3 takes the T5 and mT5 that we write and writes those that we would have written. See
real_nemo/README.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemoconv.converters.run.convert import convert
from nemoconv.mappings import load_table, samples
from nemoconv.testing import data_of

from . import models
from .test_real_nemo import keys_of, nemo
from .test_real_nemo import pytestmark as needs_nemo

pytestmark = needs_nemo

CONFIG = {
    "num_layers": 3,
    "num_decoder_layers": 3,
    "d_model": 64,
    "d_ff": 96,
    "d_kv": 24,
    "num_heads": 4,
    # NeMo's importer pads the tokenizer's size to a multiple of the largest power of two in this one
    "vocab_size": 384,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "is_encoder_decoder": True,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}


@pytest.fixture(scope="module", params=["t5", "mt5"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In float32, which is all that NeMo's importer of T5 makes."""
    folder, kind = tmp_path_factory.mktemp(request.param), load_table(request.param).hf_class
    samples.build(folder / "bfloat16", {**CONFIG, "model_type": request.param, "architectures": [kind]})
    models.save_bpe(folder / "bfloat16")
    settings = folder / "bfloat16/tokenizer_config.json"
    settings.write_text(
        json.dumps({**json.loads(settings.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"})
    )
    (folder / "bfloat16/generation_config.json").write_text('{"bos_token_id": 0, "eos_token_id": 1}')
    convert(folder / "bfloat16", folder / "float32", to="hf", dtype="float32")
    return folder / "float32"


def test_nemo_exports_what_we_wrote(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "nemo", to="nemo2", tensor_parallel_size=2)
    assert nemo("export", tmp_path / "nemo", tmp_path / "exported")["layers"] == 3
    models.assert_same_tensors(source, tmp_path / "exported")


def test_nemo_imports_to_what_we_write(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "ours", to="nemo2")
    nemo("import", source, tmp_path / "theirs", "T5Model", "T5Config220M")
    assert keys_of(tmp_path / "theirs") == keys_of(tmp_path / "ours")
    assert data_of(tmp_path / "theirs") == data_of(tmp_path / "ours")
    convert(tmp_path / "theirs", tmp_path / "back", to="hf")  # without the rows that no token uses
    ours, back = models.tensors(source), models.tensors(tmp_path / "back")
    padded = {"shared.weight", "lm_head.weight"}
    assert {name: back[name] for name in back if name not in padded} == {
        name: ours[name] for name in ours if name not in padded
    }
    assert all(ours[name][2].startswith(back[name][2]) for name in padded)
