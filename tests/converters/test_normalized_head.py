"""Baichuan 2, whose output layer is normalised when it runs: on request only, and no way back but the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy
import pytest
from safetensors.numpy import load_file, save_file

from nemoconv.converters.run.convert import convert
from nemoconv.errors import CorruptCheckpoint, UnsupportedConfig, UsageError
from nemoconv.mappings import samples
from nemoconv.mappings.models.baichuan import BAICHUAN2_VOCABULARY
from nemoconv.testing import data_of

CONFIG: dict[str, Any] = {
    "model_type": "baichuan",
    "architectures": ["BaichuanForCausalLM"],
    "num_hidden_layers": 1,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "vocab_size": BAICHUAN2_VOCABULARY,
    "max_position_embeddings": 64,
    "dtype": "bfloat16",
}
HEAD = "lm_head.weight"


@pytest.fixture(scope="module")
def baichuan2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baichuan2")
    numbers = numpy.random.default_rng(0)
    tensors = {
        name: numbers.normal(size=shape).astype(ml_dtypes.bfloat16) for name, shape in samples.tensors(CONFIG)
    }
    tensors[HEAD][5] = 0
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="module")
def nemo(baichuan2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nemo") / "2"
    report = convert(baichuan2, folder, to="nemo2", tensor_parallel_size=2, normalize_rows=True, verify=True)
    assert any(note.startswith("LOSSY: each of 125,696 rows of lm_head.weight") for note in report.notes)
    return folder


def unit(rows: Any) -> Any:
    """Divided by their lengths, in float32, rounded once."""
    wide = rows.astype(numpy.float32)
    lengths = numpy.sqrt((wide.astype(numpy.float64) ** 2).sum(1))
    return (wide / numpy.maximum(lengths, 1e-12).astype(numpy.float32)[:, None]).astype(ml_dtypes.bfloat16)


def test_without_being_asked_nothing_is_normalised_and_nothing_is_written(
    baichuan2: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedConfig, match="NormHead.*--normalize-rows"):
        convert(baichuan2, tmp_path / "nemo", to="nemo2")
    assert not (tmp_path / "nemo").exists()


def test_the_way_back_gives_unit_rows_and_everything_else_bit_for_bit(
    baichuan2: Path, nemo: Path, tmp_path: Path
) -> None:
    convert(nemo, tmp_path / "hf", to="hf", verify=True)
    before, after = (load_file(folder / "model.safetensors") for folder in (baichuan2, tmp_path / "hf"))
    head = before.pop(HEAD)
    assert after.pop(HEAD).tobytes() == unit(head).tobytes() != head.tobytes()
    assert {name: tensor.tobytes() for name, tensor in after.items()} == {
        name: tensor.tobytes() for name, tensor in before.items()
    }
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert {key: config[key] for key in CONFIG if key != "dtype"} == {
        key: value for key, value in CONFIG.items() if key != "dtype"
    }
    convert(tmp_path / "hf", tmp_path / "again", to="nemo2", verify=True)  # its manifest says that it is done
    assert data_of(tmp_path / "again") == data_of(nemo)


def without_manifest(folder: Path) -> None:
    (folder / "nemoconv_manifest.json").unlink()


def trained(folder: Path) -> None:
    """Weights that are not those of the manifest, which lies beside them still."""
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    tensors[HEAD][100_000] *= ml_dtypes.bfloat16(1.5)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (without_manifest, UnsupportedConfig, "NormHead"),
        (trained, CorruptCheckpoint, r"row 100,000 of lm_head.weight has not the length 1"),
    ],
)
def test_rows_that_nobody_normalised_are_not_taken_for_such(
    nemo: Path, tmp_path: Path, change: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    convert(nemo, tmp_path / "hf", to="hf")
    change(tmp_path / "hf")
    with pytest.raises(error, match=message):
        convert(tmp_path / "hf", tmp_path / "again", to="nemo2")


def test_a_nemo_model_that_nobody_normalised_is_no_baichuan_2(nemo: Path, tmp_path: Path) -> None:
    shutil.copytree(nemo, tmp_path / "nemo")
    without_manifest(tmp_path / "nemo")
    with pytest.raises(UnsupportedConfig, match="NormHead"):
        convert(tmp_path / "nemo", tmp_path / "hf", to="hf")


@pytest.mark.parametrize("config", [{**CONFIG, "vocab_size": 67}, samples.LLAMA])
def test_other_models_have_no_rows_to_normalise(tmp_path: Path, config: dict[str, Any]) -> None:
    samples.build(tmp_path / "hf", config)
    with pytest.raises(UsageError, match="no model whose own code normalises"):
        convert(tmp_path / "hf", tmp_path / "nemo", to="nemo2", normalize_rows=True)
    assert not (tmp_path / "nemo").exists()


def test_a_nemo_directory_cannot_be_asked_for_it(nemo: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="normalize_rows means nothing for nemo2 -> hf; it is"):
        convert(nemo, tmp_path / "hf", to="hf", normalize_rows=True)
