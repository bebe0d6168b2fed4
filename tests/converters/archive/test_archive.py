"""What all .nemo archives share: recognition, the config and its references, artifacts by name."""

from __future__ import annotations

import gzip
import io
import tarfile

import pytest

from nemoconv.converters.archive import archive as nemo_archive
from nemoconv.errors import CorruptCheckpoint, UnsafeCheckpoint


def archive(path, members, mode="w"):
    with tarfile.open(path, mode) as out:
        for name, data in members.items():
            info = tarfile.TarInfo("./" + name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def test_what_looks_like_an_archive(tmp_path):
    members = {"model_config.yaml": b"a: 1\n"}
    assert nemo_archive.looks_like_archive(archive(tmp_path / "x.nemo", members))
    assert nemo_archive.looks_like_archive(archive(tmp_path / "x.tar", members))
    assert nemo_archive.looks_like_archive(archive(tmp_path / "x.tar.gz", members, "w:gz"))
    (tmp_path / "plain.gz").write_bytes(gzip.compress(b"text"))
    (tmp_path / "model.safetensors").write_bytes(bytes(600))
    for name in ("plain.gz", "model.safetensors", "absent"):
        assert not nemo_archive.looks_like_archive(tmp_path / name)
        assert nemo_archive.peek(tmp_path / name) is None
    assert nemo_archive.peek(tmp_path) is None


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_what_was_looked_into_is_opened_once(tmp_path, mode, monkeypatch):
    path = archive(tmp_path / "x.nemo", {"model_config.yaml": b"target: a\n"}, mode)
    opened = []
    real = nemo_archive.open_folder
    monkeypatch.setattr(nemo_archive, "open_folder", lambda p: opened.append(p) or real(p))
    assert nemo_archive.peek(path) == {"target": "a"}
    assert nemo_archive.peek(path) == {"target": "a"}
    folder, config = nemo_archive.take(path)
    assert config == {"target": "a"}
    assert len(opened) == 1
    folder.close()
    archive(path, {"model_config.yaml": b"target: another\n"}, mode)
    assert nemo_archive.peek(path) == {"target": "another"}


def test_a_config_inside_model(tmp_path):
    path = archive(tmp_path / "x.nemo", {"model_config.yaml": b"model:\n  a: 1\ntrainer: {}\n"})
    assert nemo_archive.peek(path) == {"a": 1}


def test_references():
    config = {
        "size": 4,
        "wide": "${size}",
        "inner": {"deep": {"a": "${..b}", "b": "${.a}"}, "b": "${size}", "text": "x${.b}y${size}"},
        "list": [1, "${list.0}"],
        "outside": "${oc.env:HOME}",
    }
    found = nemo_archive.resolve(config, "here")
    assert found["wide"] == 4
    assert found["inner"] == {"deep": {"a": 4, "b": 4}, "b": 4, "text": "x4y4"}
    assert found["list"] == [1, 1]
    assert found["outside"] == "${oc.env:HOME}"


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"a": "${b}"}, CorruptCheckpoint),
        ({"a": "${a}"}, UnsafeCheckpoint),
        ({"a": "${b}", "b": "x${a}"}, UnsafeCheckpoint),
        ({"a": {"b": "${a}"}}, UnsafeCheckpoint),
        ({"a": [1], "b": "${a.7}"}, CorruptCheckpoint),
        ({"a": ["${b}", "${b}"], **{chr(98 + i): [f"${{{chr(99 + i)}}}"] * 9 for i in range(12)}, "n": 1}, UnsafeCheckpoint),
    ],
)  # fmt: skip
def test_references_that_lead_nowhere_or_round_and_round(config, error):
    with pytest.raises(error):
        nemo_archive.resolve(config, "here")


def test_artifacts(tmp_path):
    name = "0123456789abcdef0123456789abcdef_tokenizer.model"
    folder = nemo_archive.open_folder(archive(tmp_path / "x.nemo", {name: b"t", "b.txt": b"b"}))
    assert nemo_archive.artifact(folder, f"nemo:{name}").pread(1, 0) == b"t"
    assert nemo_archive.artifact(folder, "/another/machine/b.txt").pread(1, 0) == b"b"
    for absent in ("/etc/passwd", "", None, 3, "..", "a/.."):
        assert nemo_archive.artifact(folder, absent) is None
    with pytest.raises(CorruptCheckpoint):
        nemo_archive.artifact(folder, "nemo:absent")
    for path in ("nemo:../x", "nemo:/etc/passwd", "nemo:a\\b"):
        with pytest.raises(UnsafeCheckpoint):
            nemo_archive.artifact(folder, path)


def test_names_of_artifacts():
    first = nemo_archive.artifact_name("tokenizer.model", b"data")
    assert first == nemo_archive.artifact_name("tokenizer.model", b"data")
    assert first != nemo_archive.artifact_name("tokenizer.model", b"other")
    assert nemo_archive.original_name(first) == "tokenizer.model"
    assert nemo_archive.original_name(f"{'0' * 32}_{first}") == "tokenizer.model"
    assert nemo_archive.original_name("abc_tokenizer.model") == "abc_tokenizer.model"
