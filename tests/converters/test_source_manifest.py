"""A checkpoint that we wrote and that is no longer what its manifest says is never converted in silence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from click.testing import CliRunner

from nemoconv.cli import main
from nemoconv.converters import manifest
from nemoconv.converters.run.convert import convert, plan
from nemoconv.converters.run.reshard import reshard
from nemoconv.errors import CorruptCheckpoint, OutputError
from nemoconv.formats.tar import TarFolder
from nemoconv.stores.files import Folder, SourceDir, SourceFile
from nemoconv.stores.output import OutputFile

CONFIG = {**tiny.CONFIG, "num_attention_heads": 4, "num_key_value_heads": 2}
#: what we write, by name: options of the conversion, and what it is converted into again
WRITTEN: dict[str, tuple[dict[str, Any], str]] = {
    "hf": ({"to": "hf", "max_shard_nbytes": 6000}, "nemo2"),
    "nemo2": ({"to": "nemo2", "tensor_parallel_size": 2}, "hf"),
    "dist.nemo": ({"to": "nemo", "tensor_parallel_size": 2}, "hf"),
    "ranks.nemo": ({"to": "nemo", "tensor_parallel_size": 2, "rank_files": True}, "hf"),
    "onnx": ({"to": "onnx"}, "hf"),
    "packed": ({"to": "onnx", "pack": True}, "hf"),
    "plain": ({"to": "safetensors"}, "safetensors"),
}


def files_of(path: Path) -> Folder:
    return SourceDir(path) if path.is_dir() else TarFolder(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one shape, `a` and `b`, in every format that we write."""
    root = tmp_path_factory.mktemp("written")
    for seed, model in enumerate("ab"):
        arrays = {key: bits ^ (seed << 3) for key, bits in tiny.tensors(CONFIG).items()}
        tiny.write(root / model / "source", CONFIG, arrays=arrays)
        for name, (options, _) in WRITTEN.items():
            convert(root / model / "source", root / model / name, **options)
    return root


def places(path: Path) -> Iterator[tuple[str, str, Path, int]]:
    """(file, tensor, the file on the disk, a byte of the tensor there) of every tensor of a manifest."""
    folder = files_of(path)
    written = manifest.read(folder)
    assert written is not None
    for name, entry in written["files"].items():
        for tensor, offset, nbytes, _ in entry.get("tensors", []):
            file = folder.file(name)
            where = path if path.is_file() else path / name
            yield name, tensor, where, file.base + offset + nbytes // 2
    folder.close()


def flip(path: Path, offset: int, bit: int = 1) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ bit]))


@pytest.mark.parametrize("name", WRITTEN)
def test_a_flipped_bit_of_any_tensor(root: Path, tmp_path: Path, name: str) -> None:
    source, to = tmp_path / name, WRITTEN[name][1]
    (shutil.copytree if (root / "a" / name).is_dir() else shutil.copy)(root / "a" / name, source)
    report = convert(source, tmp_path / "clean", to=to)
    assert not any("manifest" in note for note in report.notes)
    for file, tensor, where, offset in places(source):
        flip(where, offset)
        with pytest.raises(CorruptCheckpoint) as caught:
            convert(source, tmp_path / "out", to=to)
        planned = name == "ranks.nemo" and "record data/" in caught.value.message  # read to tell the layout
        assert planned or tensor.partition("[")[0] in caught.value.message
        assert file.rpartition("/")[2] in caught.value.message
        assert not (tmp_path / "out").exists()
        flip(where, offset)
    assert {path.name for path in tmp_path.iterdir()} == {name, "clean"}


def test_every_tensor_is_compared_in_one_pass(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known of tensors is compared while they are read: next to nothing is read for that alone."""
    again: list[int] = []
    read = SourceFile._read

    def counted(self: SourceFile, offset: int, nbytes: int) -> bytes:
        again.append(nbytes)
        return read(self, offset, nbytes)

    monkeypatch.setattr(SourceFile, "_read", counted)
    for name, (_, to) in WRITTEN.items():
        convert(root / "a" / name, tmp_path / name, to=to)
        assert sum(again) == 0, name


@pytest.mark.parametrize("name", ["hf", "nemo2", "packed"])
def test_a_file_of_another_model(root: Path, tmp_path: Path, name: str) -> None:
    """Each file that holds tensors in turn is the other model's, of the same size and with the same names."""
    source, to = tmp_path / name, WRITTEN[name][1]
    shutil.copytree(root / "a" / name, source)
    for file in dict.fromkeys(file for file, *_ in places(source)):
        kept = (source / file).read_bytes()
        shutil.copy(root / "b" / name / file, source / file)
        with pytest.raises(CorruptCheckpoint) as caught:
            convert(source, tmp_path / "out", to=to)
        assert file in caught.value.message
        assert "nemoconv_manifest.json" in caught.value.message
        if name == "nemo2":  # each chunk has a checksum of its own in its frame
            with pytest.raises(CorruptCheckpoint, match=r"nemoconv_manifest\.json"):
                plan(source, tmp_path / "out", to=to)
        (source / file).write_bytes(kept)
    assert convert(source, tmp_path / "out", to=to).moves


def test_a_frame_that_changed_is_refused_before_anything_is_written(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "nemo2"
    shutil.copytree(root / "a" / "nemo2", source)
    (source / "weights" / "common.pt").write_bytes(b"x" + (source / "weights" / "common.pt").read_bytes()[1:])
    with pytest.raises(CorruptCheckpoint, match=r"common\.pt: what is not tensors has checksum"):
        plan(source, tmp_path / "out", to="hf")


def test_a_file_that_the_manifest_does_not_know(root: Path, tmp_path: Path) -> None:
    convert(root / "a" / "source", tmp_path / "hf", to="hf")
    os.remove(tmp_path / "hf" / "model.safetensors")
    for file in sorted((root / "a" / "hf").glob("model*")):
        shutil.copy(file, tmp_path / "hf" / file.name)
    with pytest.raises(
        CorruptCheckpoint, match=r"model.*: nemoconv_manifest\.json knows no file of that name"
    ):
        plan(tmp_path / "hf", tmp_path / "out", to="nemo2")


def test_an_edited_config_is_taken_with_a_note(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "hf"
    shutil.copytree(root / "a" / "hf", source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-6}))
    report = plan(source, tmp_path / "out", to="nemo2")
    assert report.notes == ["not as nemoconv_manifest.json says, and taken as they are: config.json"]


def test_ignoring_the_manifest_is_said_and_recorded(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "nemo2"
    shutil.copytree(root / "a" / "nemo2", source)
    shutil.copy(root / "b" / "nemo2" / "weights" / "__0_0.distcp", source / "weights" / "__0_0.distcp")
    for run in (
        lambda out, **more: convert(source, out, to="hf", **more),
        lambda out, **more: reshard(source, out, tensor_parallel_size=1, **more),
    ):
        with pytest.raises(CorruptCheckpoint, match="--ignore-manifest"):
            run(tmp_path / "out")
        report = run(tmp_path / "out", ignore_manifest=True, verify=True)
        assert any("was not compared, as --ignore-manifest asks" in note for note in report.notes)
        assert json.loads((tmp_path / "out" / manifest.NAME).read_text())["ignored_manifest"] is True
        shutil.rmtree(tmp_path / "out")
    result = CliRunner().invoke(main, ["nemo2hf", str(source), str(tmp_path / "out")])
    assert result.exit_code == 3
    result = CliRunner().invoke(main, ["nemo2hf", str(source), str(tmp_path / "out"), "--ignore-manifest"])
    assert result.exit_code == 0
    assert "--ignore-manifest" in result.output


def test_every_bit_of_the_manifest_is_covered(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "hf"
    shutil.copytree(root / "a" / "hf", source)
    size = (source / manifest.NAME).stat().st_size
    folder = SourceDir(source)
    for offset in [*range(size - 40, size), 0, size // 2]:
        for bit in range(8):
            flip(source / manifest.NAME, offset, 1 << bit)
            with pytest.raises(CorruptCheckpoint):
                manifest.read(SourceDir(source))
            flip(source / manifest.NAME, offset, 1 << bit)
    assert manifest.read(folder) is not None


def test_what_is_read_back_of_our_own_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that returns less than was asked for changes no checksum of the manifest."""
    tiny.write(tmp_path / "source", CONFIG)
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: whole(fd, max(1, size // 3), offset))
    convert(tmp_path / "source", tmp_path / "out", to="nemo2")
    monkeypatch.undo()
    convert(tmp_path / "out", tmp_path / "back", to="hf", verify=True)
    file = OutputFile(str(tmp_path / "cut"), "cut")
    file.pwrite(b"abc", 0)
    with pytest.raises(OutputError, match="ended at byte 3 while it was read back"):
        file.read_back(0, 4)
    file.close()
