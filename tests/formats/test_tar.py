"""Tar archives: every legal dialect is read, what is no plain file is refused, headers suit tarfile."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from pathlib import Path

import pytest

from nemoconv.errors import CorruptCheckpoint, NemoconvError, OutputError, UnsafeCheckpoint
from nemoconv.formats import tar
from nemoconv.formats.tar import TarFolder
from nemoconv.stores.files import SourceFile

FILES = {"./model_config.yaml": b"a: 1\n", "./mp_rank_00/model_weights.ckpt": bytes(range(256)) * 5}


def archive(path: Path, members: dict[str, bytes] = FILES, *, mode: str = "w", **options: object) -> Path:
    with tarfile.open(path, mode, **options) as out:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def special(path: Path, kind: bytes, name: str = "x", link: str = "") -> Path:
    with tarfile.open(path, "w") as out:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        out.addfile(info)
    return path


@pytest.mark.parametrize("layout", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_reads_each_dialect(tmp_path: Path, layout: int, mode: str) -> None:
    long = "d" * 90 + "/" + "n" * 90
    path = archive(tmp_path / "m.nemo", {**FILES, long: b"long"}, mode=mode, format=layout)
    folder = TarFolder(path)
    assert folder.compressed == (mode == "w:gz")
    assert list(folder.names()) == ["model_config.yaml"]
    assert list(folder.folders()) == ["d" * 90, "mp_rank_00"]
    assert list(folder.names("mp_rank_00")) == ["mp_rank_00/model_weights.ckpt"]
    assert folder.read("model_config.yaml") == b"a: 1\n"
    assert folder.file("mp_rank_00/model_weights.ckpt").pread(10, 250) == bytes(
        [*range(250, 256), 0, 1, 2, 3]
    )
    assert folder.read(long) == b"long"
    assert folder.exists("mp_rank_00")
    assert not folder.exists("nothing")
    folder.close()


def test_reads_what_tar_add_writes(tmp_path: Path) -> None:
    """NeMo packs a folder as ".": members are "./name", folders are members."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "f").write_bytes(b"x")
    with tarfile.open(tmp_path / "m.nemo", "w") as out:
        out.add(tmp_path / "in", arcname=".")
    folder = TarFolder(tmp_path / "m.nemo")
    assert list(folder.folders()) == ["deep"]
    assert folder.read("deep/f") == b"x"


def test_a_member_ends_where_it_ends(tmp_path: Path) -> None:
    file = TarFolder(archive(tmp_path / "m.nemo")).file("model_config.yaml")
    with pytest.raises(CorruptCheckpoint, match=r"m.nemo:model_config.yaml: ends at byte 5"):
        file.pread(6, 0)


def test_base_256_sizes(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.nemo", {"x": b"12345"}, format=tarfile.GNU_FORMAT)
    data = bytearray(path.read_bytes())
    data[124:136] = b"\x80" + (5).to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    assert TarFolder(path).read("x") == b"12345"


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.FIFOTYPE, "a FIFO"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (b"Z", "of the unknown type"),
    ],
)
def test_refuses_what_is_no_file(tmp_path: Path, kind: bytes, what: str) -> None:
    with pytest.raises(UnsafeCheckpoint, match=what):
        TarFolder(special(tmp_path / "m.nemo", kind, link="/etc/passwd"))


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\\b", "a\nb", "a//b", "a/./b", "c:/x"])
def test_refuses_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafeCheckpoint):
        TarFolder(archive(tmp_path / "m.nemo", {name: b""}))


@pytest.mark.parametrize("names", [("x", "./x"), ("x", "x"), ("x", "x/y")])
def test_refuses_names_that_readers_take_differently(tmp_path: Path, names: tuple[str, str]) -> None:
    path = tmp_path / "m.nemo"
    with tarfile.open(path, "w") as out:
        for name in names:
            out.addfile(tarfile.TarInfo(name))
    with pytest.raises(UnsafeCheckpoint, match=r"twice|both a file and a folder"):
        TarFolder(path)


def test_refuses_pax_sparse_members_and_sizes(tmp_path: Path) -> None:
    for headers, what in (
        ({"GNU.sparse.major": "1"}, "a sparse file"),
        ({"size": "-5"}, "of the size '-5'"),
    ):
        with tarfile.open(tmp_path / "m.nemo", "w", format=tarfile.PAX_FORMAT) as out:
            info = tarfile.TarInfo("x")
            info.pax_headers = headers
            out.addfile(info)
        with pytest.raises(UnsafeCheckpoint, match=what):
            TarFolder(tmp_path / "m.nemo")


@pytest.mark.parametrize("keep", [0, 100, 512, 600, 2048, 3000])
def test_cut_archives(tmp_path: Path, keep: int) -> None:
    path = archive(tmp_path / "m.nemo")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptCheckpoint, match=r"m\.nemo.*(ends at byte|archive at)"):
        TarFolder(path)


def test_flipped_header_and_no_tar_at_all(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.nemo")
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptCheckpoint, match="checksum is wrong"):
        TarFolder(path)


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\nsize 5\n", 3, "a Git LFS pointer, .*git lfs pull"),
        (b"<!DOCTYPE html>" + bytes(1000), 3, "a web page"),
        (bz2.compress(bytes(range(256)) * 40), 5, "is bzip2 data; a .nemo archive is a tar"),
        (lzma.compress(bytes(range(256)) * 40), 5, "is xz data"),
        (b"PK\x03\x04" + b"9" * 1000, 5, "is a zip archive"),
        (b"x" * 1000, 3, "byte 0: not a tar header .*is the file a .nemo archive"),
        (b"x", 3, "ends at byte 1 .*is the file a .nemo archive"),
    ],
)
def test_says_what_else_a_file_is(tmp_path: Path, content: bytes, code: int, message: str) -> None:
    (tmp_path / "m.nemo").write_bytes(content)
    with pytest.raises(NemoconvError, match=message) as error:
        TarFolder(tmp_path / "m.nemo")
    assert error.value.exit_code == code


def test_a_member_may_be_called_like_another_kind_of_archive(tmp_path: Path) -> None:
    assert TarFolder(archive(tmp_path / "m.nemo", {"BZh91AY": b"x", "<html": b"y"})).exists("BZh91AY")


def test_gzip_that_is_cut_broken_or_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "m.nemo", mode="w:gz")
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(CorruptCheckpoint, match="end too early"):
        TarFolder(path)
    path.write_bytes(whole[:40] + bytes([whole[40] ^ 0xFF]) + whole[41:])
    with pytest.raises(CorruptCheckpoint, match="broken gzip data"):
        TarFolder(path)
    monkeypatch.setattr(tar, "_INFLATE_FREE", 1000)
    path.write_bytes(gzip.compress(bytes(10 << 20)))
    with pytest.raises(UnsafeCheckpoint, match="gzip bomb"):
        TarFolder(path)


def test_gzip_needs_scratch_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 0

    monkeypatch.setattr(tar.shutil, "disk_usage", lambda _: Full)
    with pytest.raises(OutputError, match="TMPDIR"):
        TarFolder(archive(tmp_path / "m.nemo", mode="w:gz"))


def test_gzip_in_several_members_and_padded(tmp_path: Path) -> None:
    plain = archive(tmp_path / "plain").read_bytes()
    (tmp_path / "m.nemo").write_bytes(gzip.compress(plain[:700]) + gzip.compress(plain[700:]) + bytes(512))
    assert TarFolder(tmp_path / "m.nemo").read("model_config.yaml") == b"a: 1\n"


@pytest.mark.parametrize("name", ["./short", "./" + "n" * 120, "./ü"])
def test_written_headers_suit_tarfile(tmp_path: Path, name: str) -> None:
    data = b"payload"
    path = tmp_path / "m.nemo"
    path.write_bytes(
        tar.member_header("./", 0, folder=True)
        + tar.member_header(name, len(data))
        + data
        + bytes(-len(data) % tar.BLOCK)
        + tar.END
    )
    with tarfile.open(path) as file:
        folder, member = file.getmembers()
        assert folder.isdir()
        assert member.name == name
        assert file.extractfile(member).read() == data  # type: ignore[union-attr]
    assert TarFolder(path).read(name.removeprefix("./")) == data


def test_written_sizes_beyond_octal() -> None:
    """More than 8 GiB goes into a pax record; tarfile reads the same number."""
    header = tar.member_header("./big", 9 << 30)
    assert len(header) == 3 * tar.BLOCK
    with tarfile.open(fileobj=io.BytesIO(header + bytes(1024)), errorlevel=0) as file:
        assert file.next().size == 9 << 30  # type: ignore[union-attr]


def test_parts_sort_by_their_place_in_the_archive(tmp_path: Path) -> None:
    folder = TarFolder(archive(tmp_path / "m.nemo", {"z": b"1", "a": b"2"}))
    assert folder.file("z").position(0) < folder.file("a").position(0)
    assert isinstance(folder.file("z"), SourceFile)
