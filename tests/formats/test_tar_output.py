"""An output archive appears whole or not at all, under the same guarantees as an output directory."""

from __future__ import annotations

import os
import signal
import tarfile
import threading

import pytest
import tiny

from nemoconv.errors import NemoconvError, OutputError, UsageError
from nemoconv.formats.tar import TarFolder
from nemoconv.formats.tar_output import OutputArchive
from nemoconv.stores import output as output_module


def stage_of(target):
    return target.parent / f".{target.name}.incomplete"


def members(path):
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive.getmembers() if m.isfile()}


def write_one(target, data=b"new", *, before=lambda stage: None, overwrite=False):
    with OutputArchive(target, overwrite=overwrite) as output:
        output.write("a", data)
        before(output.stage)
        output.commit()


def refused(call, *arguments, **options):
    with pytest.raises(OutputError) as caught:
        call(*arguments, **options)
    assert caught.value.exit_code == 6
    return caught.value


def test_an_archive_appears_whole(tmp_path):
    target = tmp_path / "new" / "out.nemo"
    with OutputArchive(target) as output:
        weights = output.file("mp_rank_00/model_weights.ckpt")
        weights.size = 1000
        weights.pwrite_later(990, b"last")
        output.file("empty")
        weights.pwrite(b"first", 0)
        output.write("model_config.yaml", b"a: 1\n")
        weights.pwritev([memoryview(b"in "), memoryview(b"pieces")], 500)
        weights.write_pending()
        assert weights.read_back(500, 9) == b"in pieces"
        assert output.file("model_config.yaml").read_back() == b"a: 1\n"
        assert not target.exists()
        output.commit()
    assert os.listdir(tmp_path / "new") == ["out.nemo"]
    held = members(target)
    assert held["./model_config.yaml"] == b"a: 1\n"
    assert held["./empty"] == b""
    whole = held["./mp_rank_00/model_weights.ckpt"]
    assert (whole[:5], whole[500:509], whole[990:994], len(whole)) == (b"first", b"in pieces", b"last", 1000)
    with tarfile.open(target) as archive:
        assert [m.name for m in archive.getmembers()] == [
            ".", "./mp_rank_00", "./mp_rank_00/model_weights.ckpt", "./empty", "./model_config.yaml",
        ]  # fmt: skip
    folder = TarFolder(target)
    assert folder.file("mp_rank_00/model_weights.ckpt").base % 512 == 0


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_one(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_without_commit_nothing_appears(tmp_path):
    with OutputArchive(tmp_path / "out.nemo") as output:
        output.write("a", b"1")
    assert os.listdir(tmp_path) == []


def test_an_error_leaves_nothing(tmp_path):
    def stop(_stage):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_one(tmp_path / "out.nemo", before=stop)
    assert os.listdir(tmp_path) == []


def test_what_is_staged_can_be_read_once_it_is_complete(tmp_path):
    with OutputArchive(tmp_path / "out.nemo") as output:
        output.write("a", b"1")
        with pytest.raises(NemoconvError):
            TarFolder(output.staged)
        output.complete()
        assert TarFolder(output.staged).read("a") == b"1"
        with pytest.raises(NemoconvError, match="bug"):
            output.write("b", b"2")
        output.commit()
    assert list(members(tmp_path / "out.nemo")) == ["./a"]


def test_an_output_that_exists(tmp_path):
    target = tmp_path / "out.nemo"
    target.write_bytes(b"old")
    error = refused(OutputArchive(target).check)
    assert error.message == f"{target}: exists already"
    OutputArchive(target, overwrite=True).check()
    write_one(target, overwrite=True)
    assert members(target) == {"./a": b"new"}
    assert os.listdir(tmp_path) == ["out.nemo"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["directory", "fifo", "link", "dangling link"])
def test_an_output_that_is_no_file(tmp_path, kind, overwrite):
    out = tmp_path / "out"
    (tmp_path / "real").write_bytes(b"keep")
    if kind == "directory":
        out.mkdir()
    elif kind == "fifo":
        os.mkfifo(out)
    else:
        out.symlink_to({"link": "real", "dangling link": "nothing"}[kind])
    error = refused(OutputArchive(out, overwrite=overwrite).check)
    assert error.message == f"{out}: exists and is not a file"


def test_its_own_source_is_no_output(tmp_path):
    source = tmp_path / "model.nemo"
    write_one(source)
    refused(OutputArchive(source, overwrite=True).check, (source,))
    (tmp_path / "hf").mkdir()
    refused(OutputArchive(tmp_path / "hf" / "x.nemo").check, (tmp_path / "hf",))
    OutputArchive(tmp_path / "model2.nemo").check((source,))


def test_a_name_that_is_none():
    with pytest.raises(UsageError):
        OutputArchive("/")


def test_a_target_that_appears_while_we_write(tmp_path):
    target = tmp_path / "out.nemo"
    error = refused(write_one, target, before=lambda stage: target.write_bytes(b"theirs"))
    assert error.message == f"{target}: exists already"
    assert target.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["out.nemo"]


def test_a_target_that_appears_at_the_last_moment(tmp_path, monkeypatch):
    """Between the look and the rename: the rename itself must not replace."""
    target = tmp_path / "out.nemo"
    appear = OutputArchive._appear

    def late(self):
        target.write_bytes(b"theirs")
        appear(self)

    monkeypatch.setattr(OutputArchive, "_appear", late)
    refused(write_one, target)
    assert target.read_bytes() == b"theirs"


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("swaps", [True, False], ids=["renameat2", "two renames"])
def test_a_flush_that_fails_changes_nothing(tmp_path, monkeypatch, old, swaps):
    target = tmp_path / "out.nemo"
    if old is not None:
        target.write_bytes(old)
    if not swaps:
        monkeypatch.setattr(output_module, "_LIBC", object())
    sync = output_module._sync_folder

    def fail(path):
        if path == tmp_path:
            raise OutputError("the disk is gone")
        sync(path)

    monkeypatch.setattr(output_module, "_sync_folder", fail)
    refused(write_one, target, overwrite=old is not None)
    assert (target.read_bytes() if target.exists() else None) == old
    assert not stage_of(target).exists()


def test_two_runs_at_once(tmp_path):
    target = tmp_path / "out.nemo"
    with OutputArchive(target) as output:
        output.write("a", b"1")
        error = refused(write_one, target)
        assert "another run" in error.message
        output.commit()
    assert members(target) == {"./a": b"1"}


def test_what_a_killed_run_left_is_removed(tmp_path):
    target = tmp_path / "out.nemo"
    stage_of(target).mkdir()
    (stage_of(target) / "out.nemo").write_bytes(b"half")
    write_one(target)
    assert members(target) == {"./a": b"new"}
    assert os.listdir(tmp_path) == ["out.nemo"]


def test_writing_outside_a_member_is_a_bug(tmp_path):
    with OutputArchive(tmp_path / "out.nemo") as output:
        file = output.file("a")
        file.size = 4
        with pytest.raises(NemoconvError, match="bug"):
            file.pwrite(b"12345", 0)
        with pytest.raises(NemoconvError, match="bug"):
            file.pwritev([memoryview(b"12"), memoryview(b"3")], 2)


def test_members_are_written_from_threads(tmp_path):
    with OutputArchive(tmp_path / "out.nemo") as output:
        files = [output.file(f"r{n}") for n in range(8)]
        for file in files:
            file.size = 1 << 16
        output.whole.allocate()

        def fill(number):
            for offset in range(0, 1 << 16, 1024):
                files[number].pwrite(bytes([number]) * 1024, offset)

        threads = [threading.Thread(target=fill, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        output.commit()
    assert members(tmp_path / "out.nemo") == {f"./r{n}": bytes([n]) * (1 << 16) for n in range(8)}


def test_the_umask_holds(tmp_path):
    before = os.umask(0o027)
    try:
        write_one(tmp_path / "out.nemo")
    finally:
        os.umask(before)
    assert (tmp_path / "out.nemo").stat().st_mode & 0o777 == 0o640


# killed at every step of a conversion


def killed_at(step, source, target, *, overwrite):
    """Convert in a child that dies before its ``step``-th write, flush, rename or removal; whether it died."""
    from nemoconv.converters.run.convert import convert

    child = os.fork()
    if child == 0:
        left = [step]

        def dying(function):
            def wrapped(*arguments, **options):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return wrapped

        for owner, name in (
            (os, "pwrite"), (os, "pwritev"), (os, "fsync"), (os, "rename"), (os, "ftruncate"), (os, "mkdir"),
            (os, "unlink"), (os, "rmdir"), (output_module, "_swap"), (OutputArchive, "_appear"),
        ):  # fmt: skip
            setattr(owner, name, dying(getattr(owner, name)))
        code = 1
        try:
            convert(source, target, to="nemo", tensor_parallel_size=2, overwrite=overwrite)
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status != 0


@pytest.mark.parametrize("old", [None, b"old"], ids=["new", "overwrite"])
def test_killed_at_every_step(tmp_path, old):
    from nemoconv.converters.run.convert import convert

    source, out, target = tmp_path / "hf", tmp_path / "out", tmp_path / "out" / "x.nemo"
    out.mkdir()
    tiny.write(source)
    convert(source, tmp_path / "whole.nemo", to="nemo", tensor_parallel_size=2)
    whole = (tmp_path / "whole.nemo").read_bytes()
    step, states = 1, set()
    while True:
        target.unlink(missing_ok=True)
        if old is not None:
            target.write_bytes(old)
        died = killed_at(step, source, target, overwrite=old is not None)
        assert set(os.listdir(out)) <= {target.name, stage_of(target).name}
        held = target.read_bytes() if target.exists() else None
        assert held in (old, whole)
        states.add((held == whole, stage_of(target).exists()))
        if not died:
            break
        step += 1 + step // 8
    assert step > 40
    assert held == whole
    assert os.listdir(out) == [target.name]
    assert (False, True) in states
