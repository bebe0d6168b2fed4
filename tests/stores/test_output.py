"""Output appears whole or not at all: whatever exists already, fails, interrupts or kills the run."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import tiny

import nemoconv
from nemoconv.converters.run.convert import convert
from nemoconv.errors import NemoconvError, OutputError, UsageError
from nemoconv.stores import output as output_module
from nemoconv.stores.output import OutputDirectory
from nemoconv.tensors import strided


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "model"
    tiny.write(folder, shards=3)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def wholes(model, tmp_path_factory):
    """What an undisturbed conversion writes, by format."""
    folder = tmp_path_factory.mktemp("whole")
    for to in ("hf", "nemo2"):
        convert(model, folder / to, to=to)
    return {to: tree(folder / to) for to in ("hf", "nemo2")}


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def stage_of(target):
    return target.parent / f".{target.name}.incomplete"


def write_one(target, name, data, *, before=lambda stage: None, overwrite=False):
    """A whole output of one file; ``before`` is called with the stage before it is committed."""
    with OutputDirectory(target, overwrite=overwrite) as output:
        output.write(name, data)
        before(output.stage)
        output.commit()


def refused(call, *arguments, **options):
    with pytest.raises(OutputError) as caught:
        call(*arguments, **options)
    assert caught.value.exit_code == 6
    return caught.value


# --- what may be there -----------------------------------------------------------------------------


def test_a_directory_appears_whole(tmp_path):
    with OutputDirectory(tmp_path / "new" / "out") as output:
        output.write("a", b"1")
        output.write("deep/er/b", b"22")
        assert not (tmp_path / "new" / "out").exists()
        assert tree(tmp_path / "new").keys() == {".out.incomplete/out/a", ".out.incomplete/out/deep/er/b"}
        output.commit()
    assert tree(tmp_path) == {"new/out/a": b"1", "new/out/deep/er/b": b"22"}


def test_without_commit_nothing_appears(tmp_path):
    with OutputDirectory(tmp_path / "out") as output:
        output.write("a", b"1")
    assert os.listdir(tmp_path) == []


def test_the_umask_holds(tmp_path):
    before = os.umask(0o027)
    try:
        with OutputDirectory(tmp_path / "out") as output:
            output.write("sub/a", b"1")
            output.commit()
    finally:
        os.umask(before)
    assert (tmp_path / "out" / "sub" / "a").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


def test_an_output_that_exists(tmp_path):
    (tmp_path / "out").mkdir()
    error = refused(OutputDirectory(tmp_path / "out").check)
    assert error.message == f"{tmp_path}/out: exists already"
    assert error.hint == "pass --overwrite to replace it"
    OutputDirectory(tmp_path / "out", overwrite=True).check()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["file", "fifo", "link", "dangling link", "loop"])
def test_an_output_that_is_no_directory(tmp_path, kind, overwrite):
    out = tmp_path / "out"
    (tmp_path / "real").mkdir()
    if kind == "file":
        out.write_text("keep")
    elif kind == "fifo":
        os.mkfifo(out)
    else:
        out.symlink_to({"link": "real", "dangling link": "nothing", "loop": "out"}[kind])
    error = refused(OutputDirectory(out, overwrite=overwrite).check)
    assert error.message == f"{out}: exists and is not a directory"
    assert error.hint == "choose another output"
    assert os.path.lexists(out)


@pytest.mark.parametrize("place", ["model", "model/out", "model/a/b", "", "alias", "alias/out"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_in_its_source_or_around_it(tmp_path, place, overwrite):
    (tmp_path / "home" / "model").mkdir(parents=True)
    (tmp_path / "home" / "alias").symlink_to("model")
    source, out = tmp_path / "home" / "model", tmp_path / "home" / place
    error = refused(OutputDirectory(out, overwrite=overwrite).check, (source,))
    assert error.message == f"{out}: is the source, inside it or around it"


def test_an_output_beside_its_source(tmp_path):
    (tmp_path / "model").mkdir()
    OutputDirectory(tmp_path / "model2").check((tmp_path / "model",))
    OutputDirectory(tmp_path / "mode").check((tmp_path / "model",))


def test_a_root_is_no_name():
    with pytest.raises(UsageError, match="^/: not a name for an output directory"):
        OutputDirectory("/")


def test_an_output_that_appears_meanwhile(tmp_path):

    def appear(_):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("x")

    error = refused(write_one, tmp_path / "out", "a", b"1", before=appear)
    assert error.message == f"{tmp_path}/out: exists already"
    assert tree(tmp_path) == {"out/theirs": b"x"}


@pytest.mark.parametrize("theirs", [True, False], ids=["full", "empty"])
def test_an_output_that_appears_at_the_last_moment(tmp_path, monkeypatch, theirs):
    """Between the look and the rename: the rename itself replaces nothing, not even an empty directory."""
    appear = OutputDirectory._appear

    def late(output):
        (tmp_path / "out").mkdir()
        if theirs:
            (tmp_path / "out" / "theirs").write_text("x")
        appear(output)

    monkeypatch.setattr(OutputDirectory, "_appear", late)
    error = refused(write_one, tmp_path / "out", "a", b"1")
    assert error.message == f"{tmp_path}/out: exists already"
    assert tree(tmp_path) == ({"out/theirs": b"x"} if theirs else {})
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nothing")
    for name in ("file", "link"):
        error = refused(OutputDirectory(tmp_path / name / "deep" / "out").check)
        assert error.message == f"{tmp_path}/{name}: is not a directory"
    OutputDirectory(tmp_path / "new" / "deep" / "out").check()


def test_overwrite_replaces_at_the_end_only(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with OutputDirectory(tmp_path / "out", overwrite=True) as output:
        output.write("new", b"new")
        assert tree(tmp_path / "out") == {"old": b"old"}
        output.commit()
    assert tree(tmp_path) == {"out/new": b"new"}


def test_overwrite_keeps_the_old_one_on_failure(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(ZeroDivisionError):
        write_one(tmp_path / "out", "new", b"new", before=lambda _: 1 / 0, overwrite=True)
    assert tree(tmp_path) == {"out/old": b"old"}


def test_overwrite_without_renameat2(tmp_path, monkeypatch):
    """Old kernels and some network file systems cannot exchange two names."""
    monkeypatch.setattr("nemoconv.stores.output._LIBC", object())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with OutputDirectory(tmp_path / "out", overwrite=True) as output:
        output.write("new", b"new")
        output.commit()
    assert tree(tmp_path) == {"out/new": b"new"}


def test_overwrite_without_renameat2_that_fails_half_way(tmp_path, monkeypatch):
    monkeypatch.setattr("nemoconv.stores.output._LIBC", object())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    whole, calls = os.rename, []

    def rename(a, b):
        calls.append(b)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        whole(a, b)

    monkeypatch.setattr(os, "rename", rename)
    refused(write_one, tmp_path / "out", "new", b"new", overwrite=True)
    assert tree(tmp_path) == {"out/old": b"old"}


@pytest.mark.parametrize("exchange", [True, False])
def test_overwrite_that_cannot_be_flushed(tmp_path, monkeypatch, exchange):
    """The last fsync fails, when the new output has its name already: the old one comes back."""
    if not exchange:
        monkeypatch.setattr("nemoconv.stores.output._LIBC", object())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    whole = os.fsync

    def fsync(fd):
        if os.readlink(f"/proc/self/fd/{fd}") == str(tmp_path):
            raise OSError(errno.EIO, "Input/output error")
        whole(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    refused(write_one, tmp_path / "out", "new", b"new", overwrite=True)
    assert tree(tmp_path) == {"out/old": b"old"}
    assert os.listdir(tmp_path) == ["out"]


def test_what_a_killed_run_left_is_removed(tmp_path):
    stage = stage_of(tmp_path / "out")
    (stage / "deep").mkdir(parents=True)
    (stage / "deep" / "x").write_text("x")
    (stage / "link").symlink_to(tmp_path / "precious")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "y").write_text("y")
    with OutputDirectory(tmp_path / "out") as output:
        output.write("a", b"1")
        output.commit()
    assert tree(tmp_path) == {"out/a": b"1", "precious/y": b"y"}


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_stage_that_is_no_directory(tmp_path, kind):
    stage = stage_of(tmp_path / "out")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "y").write_text("y")
    if kind == "file":
        stage.write_text("keep")
    else:
        stage.symlink_to("precious")
    error = refused(OutputDirectory(tmp_path / "out").__enter__)
    assert error.message == f"{stage}: cannot be written (Not a directory)"
    assert (tmp_path / "precious" / "y").read_text() == "y"
    assert os.path.lexists(stage)


def test_no_file_leaves_the_stage(tmp_path):
    """A link in the stage is not written through."""
    (tmp_path / "victim").write_text("victim")
    with OutputDirectory(tmp_path / "out") as output:
        output.staged.mkdir()
        (output.staged / "a").symlink_to(tmp_path / "victim")
        refused(output.write, "a", b"1")
    assert tree(tmp_path) == {"victim": b"victim"}


# --- two writers -----------------------------------------------------------------------------------


def test_two_writers(tmp_path):
    """The lock of another process is seen, and dies with it."""
    script = f"""
import sys
from nemoconv.stores import output as output_module
from nemoconv.stores.output import OutputDirectory
with OutputDirectory({str(tmp_path / "out")!r}) as output:
    output.write("a", b"theirs")
    print("locked", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "locked\n"
        error = refused(OutputDirectory(tmp_path / "out").__enter__)
        assert error.message == f"{tmp_path}/out: another run is writing it"
        assert error.hint == "wait for it or choose another output"
        assert tree(tmp_path) == {".out.incomplete/out/a": b"theirs"}
        child.send_signal(signal.SIGKILL)
        child.wait()
    with OutputDirectory(tmp_path / "out") as output:
        output.write("b", b"ours")
        output.commit()
    assert tree(tmp_path) == {"out/b": b"ours"}


def test_writers_that_race(tmp_path):
    """Of many at once those that win the lock write whole directories; the others are told."""
    outcomes = []

    def write(number):
        try:
            with OutputDirectory(tmp_path / "out", overwrite=True) as output:
                for name in "abc":
                    output.write(name, b"%d" % number)
                output.commit()
            outcomes.append("written")
        except OutputError as error:
            outcomes.append(error.message)

    for _ in range(10):
        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(outcomes) == 40
    assert set(outcomes) <= {"written", f"{tmp_path}/out: another run is writing it"}
    assert "written" in outcomes
    found = tree(tmp_path)
    assert found.keys() == {"out/a", "out/b", "out/c"}
    assert len(set(found.values())) == 1


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    error = refused(OutputDirectory(tmp_path / "out").__enter__)
    assert error.message == f"{stage_of(tmp_path / 'out')}: cannot be written (Function not implemented)"
    assert os.listdir(tmp_path) == []


# --- faults ----------------------------------------------------------------------------------------


class Fault:
    """The k-th call of one function of ``os`` fails; calls before and after it do not."""

    def __init__(self, monkeypatch, function, code, which):
        self.whole, self.calls, self.which = getattr(os, function), 0, which
        self.function, self.code = function, code
        self.lock = threading.Lock()
        monkeypatch.setattr(os, function, self)

    def counts(self, arguments):
        if self.function == "open":  # only of what is written
            return arguments[1] & (os.O_CREAT | os.O_DIRECTORY)
        if self.function == "mkdir":  # not of what is there: that is no failure
            return not os.path.isdir(arguments[0])
        return True

    def __call__(self, *arguments, **options):
        if self.counts(arguments):
            with self.lock:
                self.calls += 1
                now = self.calls == self.which
            if now:
                raise OSError(self.code, os.strerror(self.code))
        return self.whole(*arguments, **options)


FUNCTIONS = ["pwrite", "pwritev", "fsync", "rename", "ftruncate", "mkdir", "open", "statvfs"]


@pytest.mark.parametrize("to", ["hf", "nemo2"])
@pytest.mark.parametrize(
    ("function", "overwrite"), [*((f, False) for f in FUNCTIONS), ("fsync", True), ("open", True)]
)
def test_every_failing_call(model, wholes, tmp_path, function, to, overwrite):
    """Call 1 fails, then call 2, ... until none is left to fail; of many alike, later, every third."""
    out = tmp_path / "out"
    descriptors = len(os.listdir("/proc/self/fd"))
    if overwrite:
        out.mkdir()
        (out / "old").write_text("old")
    before = tree(tmp_path)
    which = 0
    while True:
        which += 1 if which < 9 else 3
        code = (errno.EIO, errno.ENOSPC)[which % 2]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(strided, "DIRECT_RUN", 16)  # so that small tensors take the ways of large ones
            if function == "rename":  # what is called where the kernel has nothing better
                patch.setattr("nemoconv.stores.output._LIBC", object())
            fault = Fault(patch, function, code, which)
            try:
                convert(model, out, to=to, overwrite=overwrite)
            except OutputError as error:
                assert error.exit_code == 6
                assert "\n" not in str(error)
                assert os.strerror(code) in str(error)
                assert (error.hint != "") == (code == errno.ENOSPC)
            else:
                assert fault.calls < which, "a failing call was passed over"
                break
        assert tree(tmp_path) == before, which
        assert os.listdir(tmp_path) == (["out"] if overwrite else [])
        assert len(os.listdir("/proc/self/fd")) == descriptors
    assert tree(out) == wholes[to]
    assert os.listdir(tmp_path) == ["out"]
    if function != "pwritev" or to == "hf":
        assert which > (5 if function in ("pwrite", "fsync", "open") else 1)


def test_output_equals_output(model, wholes, tmp_path):
    """The same input and options give the same bytes."""
    convert(model, tmp_path / "again", to="nemo2", max_memory=48 << 20)
    assert tree(tmp_path / "again") == wholes["nemo2"]


@pytest.mark.parametrize(
    "call", ["fallocate", "sync_file_range", "renameat2", "posix_fadvise", "sched_getaffinity"]
)
@pytest.mark.parametrize("to", ["hf", "nemo2"])
def test_a_platform_without_a_call(model, wholes, tmp_path, monkeypatch, call, to):
    """macOS has none of them; the same bytes appear without."""
    if hasattr(os, call):
        monkeypatch.delattr(os, call)
    else:
        monkeypatch.setattr(output_module, "_LIBC", Without(call))
    convert(model, tmp_path / "out", to=to, workers=3)
    assert tree(tmp_path / "out") == wholes[to]


class Without:
    """The C library, but for one call."""

    def __init__(self, call):
        self.call = call

    def __getattr__(self, name):
        if name == self.call:
            raise AttributeError(name)
        return getattr(ctypes.CDLL(None, use_errno=True), name)


def test_a_file_system_that_cannot_preallocate(model, wholes, tmp_path, monkeypatch):
    """NFS before 4.2 refuses it; the file is written all the same."""

    class Refusing(Without):
        def __getattr__(self, name):
            return refuse if name == self.call else super().__getattr__(name)

    def refuse(*_):
        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr(output_module, "_LIBC", Refusing("fallocate"))
    convert(model, tmp_path / "out", to="nemo2")
    assert tree(tmp_path / "out") == wholes["nemo2"]


# --- signals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["write", "verify", "flush"])
@pytest.mark.parametrize("to", ["hf", "nemo2"])
def test_ctrl_c(model, tmp_path, phase, to):
    sent = []

    def progress(now, done, total):
        if now == phase and not sent:
            sent.append(now)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            convert(model, tmp_path / "out", to=to, verify=True, progress=progress)
    finally:
        signal.signal(signal.SIGINT, before)
    assert os.listdir(tmp_path) == []


_VICTIM = """
import os, signal, sys, time
from nemoconv.converters.run.convert import convert
import nemoconv.converters.hf.checkpoint, nemoconv.converters.nemo2.checkpoint, nemoconv.resharding.execute
NAMES = "open mkdir ftruncate pwrite pwritev fsync rename close unlink rmdir".split()
def run(source, target, to, point, overwrite):
    calls = 0
    def counted(function):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return call
    if point:
        for name in NAMES:
            setattr(os, name, counted(getattr(os, name)))
    convert(source, target, to=to, overwrite=overwrite)
for line in sys.stdin:
    source, target, to, kind, when, overwrite = line.split()
    child = os.fork()
    if not child:
        run(source, target, to, int(when) if kind == "call" else 0, overwrite == "True")
        os._exit(0)
    if kind == "seconds":
        time.sleep(float(when))
        os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def victim():
    with subprocess.Popen(
        [sys.executable, "-c", _VICTIM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:

        def kill(source, target, to, kind, when, overwrite=False):
            child.stdin.write(f"{source} {target} {to} {kind} {when} {overwrite}\n")
            child.stdin.flush()
            code = int(child.stdout.readline())
            assert code in (0, -signal.SIGKILL)
            return code != 0

        yield kill
        child.stdin.close()


def opens(folder):
    """Whether our own reader takes a folder, with every tensor in it."""
    try:
        with nemoconv.open(folder) as checkpoint:
            for name in checkpoint.keys():  # noqa: SIM118
                checkpoint.read(name)
            checkpoint.model()
    except NemoconvError:
        return False
    return True


def check_stage(stage, staged, whole):
    """Nobody takes the stage for a checkpoint, nor what is in it before it is whole."""
    from safetensors import SafetensorError, safe_open

    assert not opens(stage)
    assert set(os.listdir(stage)) <= {staged.name}
    found = tree(staged)
    if opens(staged):  # killed just before the rename, or while the next run began to remove such a stage
        needed = (".safetensors", ".distcp", "config.json", ".metadata", "metadata.json", "io.json")
        assert {n: d for n, d in whole.items() if n.endswith(needed)}.items() <= found.items()
    for name in found:
        if name.endswith(".safetensors"):
            try:
                with safe_open(staged / name, "np") as file:
                    file.keys()
            except SafetensorError:
                continue
            assert found[name] == whole[name]


def check_after_kill(tmp_path, out, whole, old):
    """OUT is absent, old or whole; beside it at most the stage; the next run ends well."""
    stage = stage_of(out)
    assert set(os.listdir(tmp_path)) <= {out.name, stage.name}
    if out.exists():
        assert tree(out) in ([old, whole] if old is not None else [whole])
    else:
        assert old is None
    if stage.exists() and not (out.exists() and tree(out) == whole):
        check_stage(stage, stage / out.name, whole)
    return stage.exists() and opens(stage / out.name)


def prepare(out, old):
    shutil.rmtree(out, ignore_errors=True)
    if old is not None:
        out.mkdir()
        for name, data in old.items():
            (out / name).write_bytes(data)


@pytest.mark.parametrize("old", [None, {"old": b"old"}], ids=["new", "overwrite"])
@pytest.mark.parametrize("to", ["hf", "nemo2"])
def test_kill_before_every_system_call(victim, model, wholes, tmp_path, to, old):
    """Each point at which the run could die, by count, up to the one that no longer kills it."""
    out, states = tmp_path / "out", set()
    random.seed(to)
    point = 1
    while True:
        prepare(out, old)
        killed = victim(model, out, to, "call", point, old is not None)
        check_after_kill(tmp_path, out, wholes[to], old)
        states.add(tuple(sorted(os.listdir(tmp_path))))
        if not killed:
            break
        point += random.randint(1, 5 if to == "hf" else 15)
    assert point > 50
    assert tree(out) == wholes[to]
    assert os.listdir(tmp_path) == ["out"]
    assert len(states) >= 2


@pytest.mark.parametrize("to", ["hf", "nemo2"])
def test_kill_at_random_moments(victim, model, wholes, tmp_path, to):
    out, killed = tmp_path / "out", 0
    random.seed(0)
    for _ in range(15):
        prepare(out, None)
        killed += victim(model, out, to, "seconds", random.random() * 0.08)
        check_after_kill(tmp_path, out, wholes[to], None)
    shutil.rmtree(out, ignore_errors=True)
    convert(model, out, to=to)  # over whatever the last one left
    assert tree(out) == wholes[to]
    assert os.listdir(tmp_path) == ["out"]


@pytest.fixture(scope="module")
def at_the_last_moment(model, tmp_path_factory):
    """Stages by format, of runs that were killed when everything was written, flushed and about to be renamed."""
    folder = tmp_path_factory.mktemp("killed")
    for to in ("hf", "nemo2"):
        script = f"""
import os, signal
from nemoconv import convert
from nemoconv.stores import output as output_module
from nemoconv.stores.output import OutputDirectory
OutputDirectory._appear = lambda output: os.kill(os.getpid(), signal.SIGKILL)
convert({str(model)!r}, {str(folder / to)!r}, to={to!r})
"""
        assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == -signal.SIGKILL
    return {to: stage_of(folder / to) for to in ("hf", "nemo2")}


def test_at_the_last_moment_a_stage_is_no_checkpoint(at_the_last_moment, wholes):
    for to, stage in at_the_last_moment.items():
        assert tree(stage / to) == wholes[to]  # it is the last moment: nothing is missing
        check_stage(stage, stage / to, wholes[to])


def test_at_the_last_moment_a_stage_is_no_model_for_transformers(at_the_last_moment):
    transformers = pytest.importorskip("transformers")
    stage = at_the_last_moment["hf"]
    for load in (transformers.AutoConfig, transformers.AutoModelForCausalLM, transformers.LlamaForCausalLM):
        with pytest.raises((OSError, ValueError)):
            load.from_pretrained(stage)
    assert transformers.AutoConfig.from_pretrained(stage / "hf").model_type == "llama"


def test_at_the_last_moment_a_stage_is_no_checkpoint_for_torch(at_the_last_moment):
    checkpoint = pytest.importorskip("torch.distributed.checkpoint")
    stage = at_the_last_moment["nemo2"]
    for place in (stage, stage / "weights"):
        with pytest.raises((OSError, checkpoint.CheckpointException)):
            checkpoint.FileSystemReader(place).read_metadata()
    metadata = checkpoint.FileSystemReader(stage / "nemo2" / "weights").read_metadata()
    assert "module.decoder.final_layernorm.weight" in metadata.state_dict_metadata


# --- order on the disk -----------------------------------------------------------------------------


def _traced(command, log):
    return subprocess.run(
        [
            "strace",
            "-f",
            "-y",
            "-e",
            "trace=fsync,rename,renameat2,execve,connect,openat",
            "-o",
            log,
            *command,
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def strace(tmp_path_factory):
    log = tmp_path_factory.mktemp("strace") / "log"
    if shutil.which("strace") is None or _traced(["true"], log).returncode:
        pytest.skip("strace is absent or may not trace")


@pytest.mark.parametrize("to", ["hf", "nemo2"])
def test_everything_is_flushed_before_the_rename(strace, model, tmp_path, to):
    """SIGKILL cannot show a missing fsync; the order of system calls can. And nothing else is run."""
    out, log = tmp_path / "out", tmp_path / "log"
    script = f"from nemoconv import convert; convert({str(model)!r}, {str(out)!r}, to={to!r})"
    done = _traced([sys.executable, "-c", script], log)
    assert done.returncode == 0, done.stderr
    lines = log.read_text().splitlines()
    renames = [i for i, line in enumerate(lines) if re.search(r" rename(at2)?\(", line)]
    assert len(renames) == 1
    flushed = {match[1] for line in lines[: renames[0]] if (match := re.search(r" fsync\(\d+<(.*?)>", line))}
    stage = stage_of(out)
    staged = stage / out.name
    expected = {str(stage), str(staged)} | {str(staged / p.relative_to(out)) for p in out.rglob("*")}
    assert expected == flushed
    after = [line for line in lines[renames[0] :] if " fsync(" in line]
    assert [re.search(r"<(.*?)>", line)[1] for line in after] == [str(tmp_path)]
    assert sum(" execve(" in line for line in lines) == 1
    assert not any(" connect(" in line for line in lines)


def test_the_manifest_names_every_file(model, wholes):
    for whole in wholes.values():
        files = json.loads(whole["nemoconv_manifest.json"])["files"]
        assert files.keys() == whole.keys() - {"nemoconv_manifest.json"}
        assert {name: entry["size"] for name, entry in files.items()} == {
            name: len(whole[name]) for name in files
        }
