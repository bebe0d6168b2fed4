"""A speech model of several ONNX graphs: read as one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from nemoconv.converters.registry import open_checkpoint
from nemoconv.errors import CorruptCheckpoint, UnsafeCheckpoint, UnsupportedFormat

onnx = pytest.importorskip("onnx")

SAMPLES = Path(__file__).parents[3] / "fixtures" / "speech"
GRAPHS = ("encoder-model.onnx", "decoder_joint-model.onnx", "decoder.onnx", "joiner.onnx")


def change(path: Path, **properties: str) -> Any:
    loaded = onnx.load(str(path), load_external_data=False)
    held = {entry.key: entry.value for entry in loaded.metadata_props}
    onnx.helper.set_model_props(loaded, {**held, **{k.replace("_", "."): v for k, v in properties.items()}})
    path.write_bytes(loaded.SerializeToString())


def test_each_graph_leads_to_all_of_them(folder: Path) -> None:
    with open_checkpoint(folder) as whole:
        names = set(whole.keys())
    assert len(names) == 85
    assert {path.name for path in folder.glob("*.onnx")} == {*GRAPHS}
    for name in GRAPHS:
        with open_checkpoint(folder / name) as opened:
            assert set(opened.keys()) == names


def test_graphs_of_two_models_are_refused(folder: Path) -> None:
    change(folder / "joiner.onnx", vocab_size="7")
    change(folder / "joiner.onnx", nemoconv_config="{}")
    with pytest.raises(
        CorruptCheckpoint, match=r"joiner\.onnx: says of itself what encoder-model\.onnx does not"
    ):
        open_checkpoint(folder)


def test_a_graph_that_is_missing(folder: Path) -> None:
    (folder / "joiner.onnx").unlink()
    with pytest.raises(CorruptCheckpoint, match=r"joiner\.onnx"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["../other.onnx", "/etc/passwd", "sub/../../other.onnx"])
def test_names_that_lead_elsewhere(folder: Path, name: str) -> None:
    shutil.copy(folder / "joiner.onnx", folder.parent / "other.onnx")
    change(folder / "encoder-model.onnx", nemoconv_files=f"encoder-model.onnx {name}")
    with pytest.raises((UnsafeCheckpoint, CorruptCheckpoint)):
        open_checkpoint(folder)


def test_a_list_without_the_graph_itself(folder: Path) -> None:
    change(folder / "encoder-model.onnx", nemoconv_files="decoder.onnx joiner.onnx")
    with pytest.raises(CorruptCheckpoint, match="does not name this file"):
        open_checkpoint(folder)


def test_graphs_of_others_must_be_named_one_by_one(folder: Path) -> None:
    for path in folder.glob("*.onnx"):
        loaded = onnx.load(str(path), load_external_data=False)
        del loaded.metadata_props[:]
        path.write_bytes(loaded.SerializeToString())
    with pytest.raises(UnsupportedFormat, match="has 4 ONNX models"):
        open_checkpoint(folder)


def test_a_weight_in_two_places(folder: Path) -> None:
    path = folder / "joiner.onnx"
    loaded = onnx.load(str(path), load_external_data=False)
    held = next(t for t in loaded.graph.initializer if t.name == "joint.head.bias")
    for entry in held.external_data:
        if entry.key == "offset":
            entry.value = "0"
    path.write_bytes(loaded.SerializeToString())
    with pytest.raises(CorruptCheckpoint, match=r"'joint.head.bias' lies elsewhere"):
        open_checkpoint(folder)
