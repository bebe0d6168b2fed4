"""Hub repositories: safetensors where there are some, else the one .nemo archive."""

from __future__ import annotations

import json
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
import tiny
from onnx_source import CONFIGS, arrays

from nemoconv.converters.run.convert import convert
from nemoconv.converters.sources import HubOptions, locate
from nemoconv.errors import CorruptCheckpoint, Unreachable, UnsafeCheckpoint, UnsupportedFormat, UsageError

SAMPLES = Path(__file__).parents[2] / "fixtures" / "speech"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one repository, whose files are given by name; what was asked for is recorded."""
    root = tmp_path / "models--org--name"
    snapshot, blobs = root / "snapshots" / "abc", root / "blobs"
    asked = []

    def repository(*names):
        def download(name, *, allow_patterns, **_):
            snapshot.mkdir(parents=True, exist_ok=True)
            blobs.mkdir(exist_ok=True)
            asked.append(allow_patterns)
            for file in names:
                if any(fnmatch(file, p) for p in allow_patterns) and not (snapshot / file).exists():
                    shutil.copy(SAMPLES / "rnnt.nemo", blobs / file)
                    (snapshot / file).symlink_to(f"../../blobs/{file}")
            return str(snapshot)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return asked

    return repository


def test_an_archive_is_fetched_where_there_are_no_safetensors(hub, tmp_path):
    asked = hub("README.md", "parakeet.nemo", "vocab.txt")
    place = locate("org/name")
    assert place.name == "parakeet.nemo"
    assert len(asked) == 2
    convert(place, tmp_path / "out", to="hf", verify=True)


def test_safetensors_are_preferred_and_the_archive_is_not_fetched(hub):
    asked = hub("model.safetensors", "config.json", "parakeet.nemo")
    place = locate("org/name")
    assert place.is_dir()
    assert not (place / "parakeet.nemo").exists()
    assert len(asked) == 1


def test_several_archives_are_a_question(hub):
    hub("a.nemo", "b.nemo")
    with pytest.raises(UnsupportedFormat, match="2 .nemo archives: a.nemo, b.nemo"):
        locate("org/name")


def test_nothing_of_use_is_said(hub):
    hub("README.md")
    with pytest.raises(CorruptCheckpoint, match="no files that can be converted"):
        locate("org/name")


# --- ONNX models of a repository -------------------------------------------------------------------


@pytest.fixture
def onnx_hub(monkeypatch, tmp_path):
    """A hub with one repository of files with contents; what was fetched is recorded."""
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    fetched = []

    def repository(contents):
        def download(name, *, revision, allow_patterns, **_):
            snapshot.mkdir(parents=True, exist_ok=True)
            for file, data in contents.items():
                if any(fnmatch(file, pattern) for pattern in allow_patterns) and file not in fetched:
                    fetched.append(file)
                    blob = snapshot.parents[1] / "blobs" / str(len(fetched))
                    (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
                    blob.parent.mkdir(exist_ok=True)
                    blob.write_bytes(data)
                    (snapshot / file).symlink_to(os.path.relpath(blob, (snapshot / file).parent))
            return str(snapshot)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return fetched

    return repository


def onnx_files(place, **more):
    """A repository with a builder's Llama at a place, and other variants of it."""
    folder = SAMPLES.parent / "onnx" / "genai_llama"
    at = place.rpartition("/")[0]
    data = f"{at}/model.onnx.data" if at else "model.onnx.data"
    return {
        "config.json": json.dumps(CONFIGS["llama"]).encode(),
        "tokenizer.json": b"{}",
        place: (folder / "model.onnx").read_bytes(),
        data: (folder / "model.onnx.data").read_bytes(),
        "onnx/model_fp16.onnx": b"not asked for",
        "onnx/model_fp16.onnx_data": b"not asked for",
        **more,
    }


@pytest.mark.parametrize("source", ["org/name/onnx/model.onnx", "hf://org/name@main/onnx/model.onnx"])
def test_an_onnx_model_is_fetched_by_its_path(onnx_hub, tmp_path, source):
    files = onnx_files("onnx/model.onnx", **{"model.safetensors": b"not asked for"})
    fetched = onnx_hub(files)
    convert(locate(source), tmp_path / "out", to="hf", verify=True)
    assert set(fetched) == {"config.json", "tokenizer.json", "onnx/model.onnx", "onnx/model.onnx.data"}
    found = tiny.load(tmp_path / "out")
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in arrays(CONFIGS["llama"]).items()
    }


@pytest.mark.parametrize("place", ["model.onnx", "onnx/model.onnx"])
def test_an_onnx_model_is_what_a_repository_without_others_is(onnx_hub, tmp_path, place):
    fetched = onnx_hub(onnx_files(place))
    convert(locate("org/name"), tmp_path / "out", to="hf")
    assert len(fetched) == 4


def test_onnx_files_are_not_fetched_beside_safetensors(onnx_hub):
    fetched = onnx_hub(onnx_files("onnx/model.onnx", **{"model.safetensors": b""}))
    locate("org/name")
    assert sorted(fetched) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_an_onnx_model_that_is_not_there(onnx_hub):
    onnx_hub(onnx_files("onnx/model.onnx"))
    with pytest.raises(UsageError, match="repository org/name has no file onnx/model_q4.onnx"):
        locate("org/name/onnx/model_q4.onnx")
    with pytest.raises(UsageError, match="is not the name of a file of a hub repository"):
        locate("org/name/onnx/../model.onnx")


@pytest.mark.parametrize("location", ["../secret", "*", "a[b]"])
def test_names_of_external_data_are_no_patterns(onnx_hub, location):
    from onnx import TensorProto, helper

    weight = TensorProto(name="w", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    graph = helper.make_graph([], "g", [], [], [weight])
    fetched = onnx_hub({"model.onnx": helper.make_model(graph).SerializeToString(), "secret": b"", "a": b""})
    with pytest.raises(UnsafeCheckpoint, match="as a file that holds weights"):
        locate("org/name/model.onnx")
    assert fetched == ["model.onnx"]


def test_a_file_that_is_missing_in_a_local_folder_is_not_looked_for_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no such file or directory; a repository is meant by"):
        locate("org/name/x.onnx", HubOptions(offline=True))
    with pytest.raises(Unreachable, match="not in the hub cache"):
        locate("hf://org/name/x.onnx", HubOptions(offline=True, cache_dir=str(tmp_path)))
