"""A flipped bit in a source whose format has checksums ends the conversion that reads it, in one pass."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from nemoconv.converters.look.verify import verify
from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.reshard import reshard
from nemoconv.errors import CorruptCheckpoint, OutputError
from nemoconv.formats.tar_output import OutputArchive
from nemoconv.formats.torch.dist import read_chunk, read_metadata
from nemoconv.stores.files import SourceDir, SourceFile
from nemoconv.stores.output import OutputDirectory

CONFIG = {**tiny.CONFIG, "num_hidden_layers": 2, "num_key_value_heads": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    tiny.write(root / "hf", CONFIG)
    for name, options in {
        "tp1": {},
        "tp2pp2": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
    }.items():
        convert(root / "hf", root / name, to="nemo2", **options)
        convert(root / "hf", root / f"{name}.nemo", to="nemo", rank_files=True, **options)
    return root


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def places(folder: Path) -> dict[str, tuple[Path, int]]:
    """Of each tensor, a byte in the middle of its first chunk."""
    directory, found = SourceDir(folder), {}
    for name, tensor in read_metadata(directory, "weights").tensors.items():
        chunk = tensor.chunks[0]
        extent = read_chunk(directory, tensor, chunk, "weights")
        nbytes = tensor.dtype.itemsize
        for length in chunk.shape:
            nbytes *= length
        found[name] = Path(extent.file.path), extent.offset + nbytes // 2
    return found


@pytest.mark.parametrize("layout", ["tp1", "tp2pp2"])
def test_each_tensor_of_a_nemo_2_directory(root: Path, tmp_path: Path, layout: str) -> None:
    for number, name in enumerate(places(root / layout)):
        broken, out = tmp_path / f"{number}", tmp_path / "out"
        shutil.copytree(root / layout, broken)
        (broken / "nemoconv_manifest.json").unlink()  # as NeMo writes it
        path, offset = places(broken)[name]
        flip(path, offset)
        for run in (
            lambda broken=broken, out=out: convert(broken, out, to="hf"),
            lambda broken=broken, out=out: convert(
                broken, out, to="nemo2", dtype="float32", tensor_parallel_size=2
            ),
            lambda broken=broken, out=out: reshard(
                broken, out, tensor_parallel_size=1, pipeline_parallel_size=1
            ),
            lambda broken=broken, out=out: verify(broken, root / "hf"),
        ):
            with pytest.raises(CorruptCheckpoint) as caught:
                run()
            assert f"{path.name}: {name} (bytes " in caught.value.message
            assert not out.exists()
        shutil.rmtree(broken)
    convert(root / layout, tmp_path / "out", to="hf")


@pytest.mark.parametrize("layout", ["tp1", "tp2pp2"])
def test_rank_files_of_an_archive(root: Path, tmp_path: Path, layout: str) -> None:
    """A byte here and there in the archive's weights: some of them are framing, which is found out otherwise."""
    source = root / f"{layout}.nemo"
    needle = (root / "hf" / "model.safetensors").read_bytes()[-64:]  # the bits of some tensor's end
    at = source.read_bytes().find(needle[-16:])
    assert at > 0
    shutil.copy(source, tmp_path / "broken.nemo")
    flip(tmp_path / "broken.nemo", at)
    with pytest.raises(CorruptCheckpoint, match=r"(record data/\d+|\.weight of tp) .*has checksum"):
        convert(tmp_path / "broken.nemo", tmp_path / "out", to="hf")
    assert not (tmp_path / "out").exists()
    convert(source, tmp_path / "out", to="hf")


def test_every_record_is_compared(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No record of a source is read in pieces that do not join up: then none of them would be compared."""
    from nemoconv.stores import files

    made: list[files.RecordChecks] = []
    begin = files.RecordChecks.__init__

    def remember(self: files.RecordChecks) -> None:
        begin(self)
        made.append(self)

    monkeypatch.setattr(files.RecordChecks, "__init__", remember)
    for layout in ("tp1", "tp2pp2"):
        for number, run in enumerate(
            (
                lambda layout=layout: convert(root / layout, tmp_path / layout, to="hf"),
                lambda layout=layout: convert(root / f"{layout}.nemo", tmp_path / f"{layout}1", to="hf"),
                lambda layout=layout: reshard(root / layout, tmp_path / f"{layout}2", tensor_parallel_size=2),
            )
        ):
            made.clear()
            run()
            assert sum(checks.settled for checks in made) > 10, number
            assert all(not checks._records for checks in made), number


@pytest.mark.parametrize("to", ["hf", "nemo2", "nemo"])
def test_what_the_disk_garbles_is_an_error_of_the_output(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    """Of what was written, not of the source, whether or not the format's own checksums tell first."""
    needle = (root / "hf" / "model.safetensors").read_bytes()[-16:]
    complete = OutputDirectory.complete

    def garble(output: OutputDirectory) -> None:
        complete(output)
        staged = [p for p in (output.staged, *output.staged.rglob("*")) if p.is_file()]
        (path,) = (p for p in staged if needle in p.read_bytes())
        flip(path, path.read_bytes().find(needle))

    for kind in (OutputDirectory, OutputArchive):
        monkeypatch.setattr(kind, "complete", garble if kind is OutputDirectory else _garble_archive(needle))
    with pytest.raises(OutputError, match="^what was written ") as caught:
        convert(root / "hf", tmp_path / "out", to=to, verify=True)
    assert caught.value.exit_code == 6
    assert list(tmp_path.iterdir()) == []


def _garble_archive(needle: bytes) -> Callable[[OutputArchive], None]:
    complete = OutputArchive.complete

    def garble(output: OutputArchive) -> None:
        ended = output._ended
        complete(output)
        if not ended:
            flip(output.staged, output.staged.read_bytes().find(needle))

    return garble


def test_what_torch_wrote_without_checksums(tmp_path: Path) -> None:
    """torch can be told to leave out the checksums: zeros stand in their place."""
    torch = pytest.importorskip("torch")
    from nemoconv.formats.torch.checkpoint import read_state_dict

    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(1000)}, tmp_path / "weights.ckpt")
    finally:
        torch.serialization.set_crc32_options(True)
    state = read_state_dict(SourceFile(tmp_path / "weights.ckpt"))
    (extent,) = state.tensors["a"].extents
    assert extent.file.pread(8000, extent.offset) == torch.arange(1000).numpy().tobytes()
    assert state.file.verify_crc() == 0
