"""Hub repositories: safetensors where there are some, else the one .nemo archive."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest

from nemoconv.converters.conversion import convert
from nemoconv.converters.sources import locate
from nemoconv.errors import CorruptCheckpoint, UnsupportedFormat

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
