"""Source files: nothing outside the checkpoint is opened, short and odd files are ordinary errors."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemoconv.errors import CorruptCheckpoint, NemoconvError, UnsafeCheckpoint, UnsupportedFormat
from nemoconv.stores.files import SourceDir, SourceFile


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_bytes(b"0123456789")
    (tmp_path / "model" / "sub").mkdir()
    (tmp_path / "model" / "sub" / "b").write_text("b")
    (tmp_path / "modelling").mkdir()
    (tmp_path / "modelling" / "c").write_text("c")
    directory = SourceDir(tmp_path / "model")
    yield directory
    directory.close()


def refused(directory, name, kind=UnsafeCheckpoint):
    with pytest.raises(NemoconvError) as caught:
        directory.file(name)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return caught.value.message


# --- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "sub/../../secret",
        "sub/../a",
        "..",
        "/etc/passwd",
        "//etc/passwd",
        "\\\\host\\share",
        "..\\secret",
        "sub\\..\\..\\secret",
        "C:\\x",
        "file:///etc/passwd",
        "",
        "a\0b",
        "a\0/../../secret",
    ],
)
def test_names_that_are_not_plain(checkpoint, name):
    message = refused(checkpoint, name)
    assert message.endswith("which is not a plain relative name")
    assert message.startswith(f"{checkpoint.path}: refers to the file ")
    with pytest.raises(UnsafeCheckpoint):  # nor may one ask whether it is there
        checkpoint.exists(name)


def test_plain_names(checkpoint):
    assert checkpoint.read("a") == b"0123456789"
    assert checkpoint.read("sub/b") == b"b"
    assert checkpoint.read("./sub//b") == b"b"
    assert checkpoint.file("a") is checkpoint.file("a")
    assert list(checkpoint.names()) == ["a"]
    assert list(checkpoint.names("sub")) == ["sub/b"]
    assert list(checkpoint.names("nothing")) == []
    assert len(checkpoint.opened()) == 3


@pytest.mark.parametrize("name", [".", "./", "./."])
def test_the_directory_itself(checkpoint, name):
    assert "leads outside the checkpoint" in refused(checkpoint, name)


def test_a_missing_file(checkpoint):
    assert refused(checkpoint, "no", CorruptCheckpoint) == f"{checkpoint.path}/no: missing"
    assert not checkpoint.exists("no")
    assert refused(checkpoint, "x" * 5000, CorruptCheckpoint).endswith("...")


@given(st.text(alphabet="./\\ab\0:\n", max_size=12))
def test_no_text_leads_outside(tmp_path_factory, name):
    base = tmp_path_factory.getbasetemp()
    root = base / "root"
    root.mkdir(exist_ok=True)
    try:
        real = SourceDir(root).resolve(name)
    except UnsafeCheckpoint:
        return
    assert os.path.realpath(real).startswith(os.path.realpath(root) + os.sep)


# --- links -----------------------------------------------------------------------------------------


def test_links_that_lead_out(checkpoint, tmp_path):
    root = tmp_path / "model"
    (root / "relative").symlink_to("../secret")
    (root / "absolute").symlink_to("/etc/passwd")
    (root / "folder").symlink_to("..")
    (root / "sibling").symlink_to("../modelling/c")  # its path starts with ours
    (root / "chain").symlink_to("relative")
    for name, leads in (
        ("relative", tmp_path / "secret"),
        ("absolute", "/etc/passwd"),
        ("folder/secret", tmp_path / "secret"),
        ("sibling", tmp_path / "modelling" / "c"),
        ("chain", tmp_path / "secret"),
    ):
        assert refused(checkpoint, name) == f"{root / name}: leads outside the checkpoint, to {leads}"


def test_links_inside_are_followed(checkpoint, tmp_path):
    root = tmp_path / "model"
    (root / "link").symlink_to("sub/b")
    (root / "sub" / "up").symlink_to("../a")
    (root / "round").symlink_to("../model/a")
    assert checkpoint.read("link") == b"b"
    assert checkpoint.read("sub/up") == b"0123456789"
    assert checkpoint.read("round") == b"0123456789"


def test_broken_links(checkpoint, tmp_path):
    root = tmp_path / "model"
    (root / "gone").symlink_to("nothing")
    (root / "loop").symlink_to("loop")
    (root / "out").symlink_to("../nothing")
    assert refused(checkpoint, "gone", CorruptCheckpoint) == f"{root}/gone: missing"
    assert checkpoint.exists("gone")
    assert "leads outside" in refused(checkpoint, "out")
    assert "Too many levels of symbolic links" in refused(checkpoint, "loop", CorruptCheckpoint)


def test_a_checkpoint_that_is_itself_a_link(tmp_path, checkpoint):
    (tmp_path / "alias").symlink_to("model")
    with_alias = SourceDir(tmp_path / "alias")
    assert with_alias.read("a") == b"0123456789"
    with_alias.close()


def hub_cache(tmp_path):
    """models--org--name/{blobs,snapshots/<revision>} as huggingface_hub lays it out."""
    repo = tmp_path / "models--org--name"
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "blobs" / "123").write_text("blob")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    (snapshot / "config.json").symlink_to("../../blobs/123")
    return repo, snapshot


def test_the_hub_cache_works(tmp_path):
    _, snapshot = hub_cache(tmp_path)
    directory = SourceDir(snapshot)
    assert directory.read("config.json") == b"blob"
    directory.close()


def test_only_the_blobs_of_a_hub_cache_are_open(tmp_path):
    repo, snapshot = hub_cache(tmp_path)
    (tmp_path / "secret").write_text("secret")
    other = tmp_path / "models--org--other" / "blobs"
    other.mkdir(parents=True)
    (other / "9").write_text("9")
    (snapshot / "ref").symlink_to("../../refs/main")
    (snapshot / "secret").symlink_to("../../../secret")
    (snapshot / "other").symlink_to("../../../models--org--other/blobs/9")
    (repo / "blobs" / "out").symlink_to("../../secret")
    (snapshot / "twice").symlink_to("../../blobs/out")
    directory = SourceDir(snapshot)
    for name in ("ref", "secret", "other", "twice"):
        assert "leads outside the checkpoint" in refused(directory, name)
    directory.close()


def test_blobs_elsewhere_are_outside(tmp_path):
    """Not every folder beside one called blobs is a hub cache."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1").write_text("1")
    (tmp_path / "x" / "model").mkdir(parents=True)
    (tmp_path / "x" / "model" / "a").symlink_to("../../blobs/1")
    directory = SourceDir(tmp_path / "x" / "model")
    assert "leads outside" in refused(directory, "a")
    directory.close()


# --- kinds of files --------------------------------------------------------------------------------


def test_a_fifo_does_not_hang(checkpoint, tmp_path):
    os.mkfifo(tmp_path / "model" / "fifo")
    assert refused(checkpoint, "fifo") == f"{tmp_path}/model/fifo: not a regular file"


def test_a_directory_and_a_device(checkpoint, tmp_path):
    assert refused(checkpoint, "sub") == f"{tmp_path}/model/sub: not a regular file"
    with pytest.raises(UnsafeCheckpoint, match="^/dev/null: not a regular file$"):
        SourceFile("/dev/null")


def test_a_socket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        with pytest.raises(CorruptCheckpoint, match=r"^s: cannot be read \(No such device or address\)$"):
            SourceFile("s")


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(UnsupportedFormat) as caught:
        SourceDir(tmp_path / "x")
    assert caught.value.message == f"{tmp_path}/x: not a directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(checkpoint, tmp_path):
    (tmp_path / "model" / "a").chmod(0)
    assert refused(checkpoint, "a", CorruptCheckpoint).endswith("cannot be read (Permission denied)")


def test_no_file_stays_open_after_a_refusal(checkpoint, tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        refused(checkpoint, "sub")
    assert len(os.listdir("/proc/self/fd")) == before


# --- reading ---------------------------------------------------------------------------------------


def test_pread(checkpoint):
    file = checkpoint.file("a")
    assert file.size == 10
    assert file.name == "a"
    assert file.pread(3, 4) == b"456"
    assert file.pread(0, 10) == b""
    assert repr(file) == f"SourceFile({file.path!r})"


@pytest.mark.parametrize(("size", "offset"), [(3, 8), (1, 10), (-1, 0), (1, -1), (1 << 62, 0), (1, 1 << 70)])
def test_reads_beyond_the_end(checkpoint, size, offset):
    with pytest.raises(CorruptCheckpoint) as caught:
        checkpoint.file("a").pread(size, offset)
    assert caught.value.message == (
        f"{checkpoint.path}/a: ends at byte 10, but {offset:,}..{offset + size:,} are needed"
    )
    assert caught.value.hint == "the copy looks cut short; compare its size with the original"


def test_a_file_that_shrinks(checkpoint):
    file = checkpoint.file("a")
    os.truncate(file.path, 4)
    with pytest.raises(CorruptCheckpoint) as caught:
        file.pread(10, 0)
    assert caught.value.message == f"{file.path}: ended at byte 4 while it was read"


def test_short_reads_are_finished(checkpoint, monkeypatch):
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:3]], at))
    assert checkpoint.read("a") == b"0123456789"


def test_a_disk_that_cannot_be_read(checkpoint, monkeypatch):
    file = checkpoint.file("a")

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(CorruptCheckpoint) as caught:
        file.pread(4, 0)
    assert caught.value.message == f"{file.path}: cannot be read (Input/output error)"


def test_a_small_file_that_is_large(checkpoint):
    with pytest.raises(UnsafeCheckpoint) as caught:
        checkpoint.read("a", limit=9)
    assert caught.value.message == f"{checkpoint.path}/a: 10 bytes, more than the 9 allowed"
