"""A speech model as several ONNX graphs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nemoconv.converters.run.convert import convert

SPEECH = Path(__file__).parents[3] / "fixtures" / "speech"


@pytest.fixture(scope="session")
def speech_graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "packed"
    convert(SPEECH / "tdt.nemo", out, to="onnx", pack=True, verify=True)
    return out


@pytest.fixture
def folder(speech_graphs: Path, tmp_path: Path) -> Path:
    return shutil.copytree(speech_graphs, tmp_path / "model")
