"""The executor, against numpy and torch: any geometry, any tile size, every byte once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from itertools import permutations
from math import prod
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemoconv.errors import CorruptCheckpoint, NemoconvError, OutputError, UsageError
from nemoconv.resharding.execute import BASE_NBYTES, LARGE_TILE_NBYTES, TILE_NBYTES, Limits, execute
from nemoconv.resharding.plan import Job, Payload, Plan, Target
from nemoconv.resharding.tiles import tiles
from nemoconv.resharding.worker import Worker
from nemoconv.stores.files import SourceFile
from nemoconv.stores.output import OutputFile
from nemoconv.tensors.dtypes import BY_NAME
from nemoconv.tensors.stored import Extent, contiguous_strides

BY_SIZE = {1: "uint8", 2: "bfloat16", 4: "float32", 8: "float64"}
SHAPES = st.lists(st.integers(1, 6), min_size=0, max_size=4).map(tuple)


def slices(start, shape):
    return tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))


def tiling(draw, start, shape, depth=3):
    """A random way to cut a box into boxes."""
    long = [axis for axis, n in enumerate(shape) if n > 1]
    if not depth or not long or draw(st.booleans()):
        return [(start, shape)]
    axis = draw(st.sampled_from(long))
    cut = draw(st.integers(1, shape[axis] - 1))
    low = (*shape[:axis], cut, *shape[axis + 1 :])
    rest = (*shape[:axis], shape[axis] - cut, *shape[axis + 1 :])
    above = (*start[:axis], start[axis] + cut, *start[axis + 1 :])
    return [*tiling(draw, start, low, depth - 1), *tiling(draw, above, rest, depth - 1)]


def lay(draw, shape, itemsize, gaps):
    """(strides, bytes spanned) of a box laid out in a random order of its axes."""
    step, strides = itemsize, [0] * len(shape)
    for axis in draw(st.permutations(range(len(shape)))):
        strides[axis] = step
        step *= shape[axis]
        if gaps:
            step += draw(st.integers(0, 3)) * itemsize
    return tuple(strides), step


@st.composite
def jobs(draw):
    """(shape, item size, source boxes, target payloads, files of each side, fill, discard)."""
    shape, itemsize = draw(SHAPES), draw(st.sampled_from(sorted(BY_SIZE)))
    fill, discard = draw(st.booleans()), draw(st.booleans())
    ends = [draw(st.integers(0, 5)) for _ in range(3)]
    sources = []
    for start, size in tiling(draw, (0,) * len(shape), shape):
        if fill and draw(st.integers(0, 3)) == 0:
            continue
        which = draw(st.integers(0, 2))
        strides, nbytes = lay(draw, size, itemsize, draw(st.booleans()))
        sources.append((which, ends[which], start, size, strides))
        ends[which] += nbytes + draw(st.integers(0, 3))
    out_ends, payloads = [draw(st.integers(0, 5)) for _ in range(2)], []
    for start, size in tiling(draw, (0,) * len(shape), shape):
        if discard and draw(st.integers(0, 3)) == 0:
            continue
        which = draw(st.integers(0, 1))
        strides, nbytes = lay(draw, size, itemsize, gaps=False)
        payloads.append((which, out_ends[which], nbytes, start, size, strides, tiling(draw, start, size)))
        out_ends[which] += nbytes + draw(st.integers(0, 3))
    return shape, itemsize, sources, payloads, ends, out_ends, fill, discard


def strided_view(raw, offset, shape, strides, itemsize):
    """A box in a byte array, with one more axis for the bytes of an element."""
    return numpy.ndarray((*shape, itemsize), numpy.uint8, raw, offset, (*strides, 1))


@settings(deadline=None, max_examples=150)
@given(jobs(), st.sampled_from([8, 24, 64, 500, 1 << 20]), st.sampled_from([1, 3]))
def test_any_geometry_equals_numpy(tmp_path_factory, case, tile_nbytes, workers):
    shape, itemsize, sources, payloads, ends, out_ends, fill, discard = case
    folder = tmp_path_factory.getbasetemp()
    random = numpy.random.default_rng(0)
    raw = [random.integers(0, 256, end + 8, dtype=numpy.uint8) for end in ends]
    files = []
    for number, data in enumerate(raw):
        (folder / f"in{number}").write_bytes(data.tobytes())
        files.append(SourceFile(folder / f"in{number}"))
    logical = numpy.zeros((*shape, itemsize), numpy.uint8)
    extents = []
    for which, offset, start, size, strides in sources:
        logical[slices(start, size)] = strided_view(raw[which], offset, size, strides, itemsize)
        extents.append(Extent(files[which], offset, start, size, strides))

    outputs = []
    for number, end in enumerate(out_ends):
        (folder / f"out{number}").unlink(missing_ok=True)
        outputs.append(OutputFile(str(folder / f"out{number}"), f"out{number}"))
        outputs[-1].size = end + 8
    expected = [numpy.zeros(end + 8, numpy.uint8) for end in out_ends]
    targets, made = [], []
    for which, offset, nbytes, start, size, strides, parts in payloads:
        payload = Payload(f"p{len(made)}", outputs[which], offset, nbytes)
        made.append((payload, which))
        strided_view(expected[which], offset, size, strides, itemsize)[...] = logical[slices(start, size)]
        for low, part in parts:
            at = sum((a - b) * step for a, b, step in zip(low, start, strides, strict=True))
            targets.append(Target(payload, at, low, part, strides))

    dtype = BY_NAME[BY_SIZE[itemsize]]
    job = Job("x", shape, dtype, dtype, tuple(extents), tuple(targets), fill, discard)
    job.check()
    seen = []
    execute(Plan([job]), Limits(workers, tile_nbytes), seen.append)
    for output in outputs:
        output.close()
    for file in files:
        file.close()
    for number, want in enumerate(expected):
        path = folder / f"out{number}"
        if any(which == number for _, which in made):
            assert numpy.array_equal(numpy.fromfile(path, numpy.uint8), want)
    for payload, which in made:
        written = expected[which][payload.offset : payload.offset + payload.nbytes]
        assert payload.crc32 == zlib.crc32(written.tobytes())
    assert sum(seen) == Plan([job]).write_nbytes


@given(SHAPES, st.integers(1, 40))
def test_tiles_cover_a_box_once_in_order(shape, limit):
    start = tuple(range(len(shape)))
    numbers = numpy.arange(prod(shape)).reshape(shape)
    found = []
    for low, size in tiles(start, shape, limit):
        assert prod(size) <= limit
        origin = tuple(a - b for a, b in zip(low, start, strict=True))
        found.append(numbers[slices(origin, size)].reshape(-1))
    assert numpy.concatenate(found).tolist() == list(range(prod(shape)))


def test_tiles_of_nothing():
    assert list(tiles((0, 0), (3, 0), 5)) == []
    assert list(tiles((), (), 5)) == [((), ())]


# --- helpers for whole runs ------------------------------------------------------------------------


def simple(folder: Path, data: numpy.ndarray, source: str, target: str, *, jobs: int = 1):
    """A plan that copies ``data`` (bits) from one file to one file, in ``jobs`` pieces along axis 0."""
    (folder / "in").write_bytes(data.tobytes())
    file, output = SourceFile(folder / "in"), OutputFile(str(folder / "out"), "out")
    from_dtype, to_dtype = BY_NAME[source], BY_NAME[target]
    plan, inner = Plan(), prod(data.shape[1:])
    rows = len(data) // jobs
    for number in range(jobs):
        shape = (rows, *data.shape[1:])
        first = number * rows * inner
        extent = Extent(
            file,
            first * from_dtype.itemsize,
            (0,) * data.ndim,
            shape,
            contiguous_strides(shape, from_dtype.itemsize),
        )
        payload = Payload(f"t{number}", output, first * to_dtype.itemsize, rows * inner * to_dtype.itemsize)
        strides = contiguous_strides(shape, to_dtype.itemsize)
        target_box = Target(payload, 0, (0,) * data.ndim, shape, strides)
        plan.jobs.append(Job(f"t{number}", shape, from_dtype, to_dtype, (extent,), (target_box,)))
    output.size = data.size * to_dtype.itemsize
    plan.check()
    return plan, file, output


def no_threads() -> bool:
    """Whether all workers have ended; they get a moment for the way from their last line to their end."""
    workers = [thread for thread in threading.enumerate() if thread.name.startswith("nemoconv-")]
    for thread in workers:
        thread.join(1)
    return not any(thread.is_alive() for thread in workers)


# --- casts -----------------------------------------------------------------------------------------


def all_bits(name: str) -> numpy.ndarray:
    """Every number of a 16-bit type; of float32 every upper half with lower halves around the ties."""
    if BY_NAME[name].itemsize == 2:
        return numpy.arange(1 << 16, dtype=numpy.uint16)
    lower = [0, 1, 0x0FFF, 0x1000, 0x1001, 0x2000, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
    upper = numpy.arange(1 << 16, dtype=numpy.uint32) << 16
    return (upper[:, None] | numpy.array(lower, numpy.uint32)).reshape(-1)


CASTS = list(permutations(["float32", "float16", "bfloat16"], 2))


@pytest.mark.parametrize(("source", "target"), CASTS)
def test_casts_equal_torch_bit_for_bit(tmp_path, source, target):
    """All numbers equal torch's: ties to even, subnormals, -0.0, overflow to infinity. Not compared:
    the payload and sign of NaNs, which torch's vectorized and scalar code set differently themselves;
    a NaN stays a NaN."""
    torch = pytest.importorskip("torch")
    bits = all_bits(source)
    plan, file, output = simple(tmp_path, bits, source, target)
    report = execute(plan, Limits(2, 64 << 10))
    file.close()
    output.close()
    kinds = {name: numpy.dtype(f"u{BY_NAME[name].itemsize}") for name in (source, target)}
    found = numpy.fromfile(tmp_path / "out", kinds[target])
    signed = torch.from_numpy(bits.view(f"i{kinds[source].itemsize}").copy())
    cast = signed.view(getattr(torch, source)).to(getattr(torch, target))
    as_bits = {2: torch.int16, 4: torch.int32}[kinds[target].itemsize]
    expected = cast.view(as_bits).numpy().view(kinds[target])
    nan = torch.isnan(signed.view(getattr(torch, source))).numpy()
    assert nan.any()
    assert (found[~nan] == expected[~nan]).all()
    assert numpy.isnan(found.view(BY_NAME[target].numpy())[nan].astype("f4")).all()
    lost = torch.isinf(cast) & torch.isfinite(signed.view(getattr(torch, source)))
    count = int(lost.sum())
    assert report.overflows == ({"t0": count} if count else {})
    assert bool(count) == (
        (source, target) in [("float32", "float16"), ("float32", "bfloat16"), ("bfloat16", "float16")]
    )


def test_overflow_is_counted_by_tensor_whatever_the_threads_do(tmp_path):
    values = numpy.full((300, 100), 65520.0, numpy.float32)  # the smallest that rounds to infinity
    values[:100] = 65519.9
    values[100:101] = numpy.inf
    plan, file, output = simple(tmp_path, values.view(numpy.uint32), "float32", "float16", jobs=3)
    report = execute(plan, Limits(3, 1000))
    file.close()
    output.close()
    assert report.overflows == {"t1": 99 * 100, "t2": 100 * 100}
    assert numpy.fromfile(tmp_path / "out", numpy.float16)[0] == 65504


@pytest.mark.parametrize("target", ["float8_e4m3fn", "float8_e5m2"])
def test_overflow_to_float8_is_counted_even_where_it_becomes_nan(tmp_path, target):
    values = numpy.array([1e6, -1e6, 1.0, numpy.nan], numpy.float32)
    plan, file, output = simple(tmp_path, values.view(numpy.uint32), "float32", target)
    report = execute(plan, Limits(1, 64))
    file.close()
    output.close()
    assert report.overflows == {"t0": 2}


# --- failures --------------------------------------------------------------------------------------


def test_an_error_of_one_worker_stops_the_others(tmp_path):
    plan, file, output = simple(tmp_path, numpy.zeros((4000, 8), numpy.uint32), "float32", "float32", jobs=40)
    calls = []

    def progress(nbytes):
        calls.append(nbytes)
        if len(calls) == 3:
            raise ZeroDivisionError("in a worker")

    with pytest.raises(ZeroDivisionError, match="in a worker"):
        execute(plan, Limits(3, 64), progress)
    assert len(calls) <= 3 + 2  # what the other two had under way
    assert no_threads()
    file.close()
    output.close()


def test_a_worker_without_memory_is_an_error(tmp_path, monkeypatch):
    plan, file, output = simple(tmp_path, numpy.zeros((4, 8), numpy.uint32), "float32", "float32")
    monkeypatch.setattr(
        "nemoconv.resharding.worker.Worker.__init__", lambda *_: (_ for _ in ()).throw(MemoryError())
    )
    with pytest.raises(MemoryError):
        execute(plan, Limits(2, 64))
    file.close()
    output.close()


def test_a_source_that_shrinks_is_an_error_not_a_signal(tmp_path):
    plan, file, output = simple(tmp_path, numpy.ones((4000, 8), numpy.uint32), "float32", "float32", jobs=4)

    def progress(_):
        os.truncate(tmp_path / "in", 100)

    with pytest.raises(CorruptCheckpoint) as caught:
        execute(plan, Limits(2, 4096), progress)
    assert f"{tmp_path / 'in'}: ended at byte " in caught.value.message
    assert caught.value.hint == "was the file changed by another process?"
    assert no_threads()
    file.close()
    output.close()


def test_a_source_that_changes_is_noticed(tmp_path):
    plan, file, output = simple(tmp_path, numpy.ones((40, 8), numpy.uint32), "float32", "float32")
    execute(plan, Limits(1, 4096))
    file.check_unchanged()
    with open(tmp_path / "in", "r+b") as other:
        other.write(b"x")
    os.utime(tmp_path / "in", ns=(0, 0))
    with pytest.raises(CorruptCheckpoint) as caught:
        file.check_unchanged()
    assert caught.value.message == f"{tmp_path / 'in'}: changed while it was read"
    (tmp_path / "in").unlink()
    with pytest.raises(CorruptCheckpoint, match="changed while it was read"):
        file.check_unchanged()
    file.close()
    output.close()


def test_a_full_disk_is_an_output_error(tmp_path, monkeypatch):
    plan, file, output = simple(tmp_path, numpy.ones((40, 8), numpy.uint32), "float32", "float32")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError) as caught:
        execute(plan, Limits(2, 64))
    assert caught.value.message == f"{tmp_path / 'out'}: cannot be written (No space left on device)"
    assert caught.value.hint == "free space on that file system or choose another output"
    file.close()
    output.close()


def test_short_writes_are_finished(tmp_path, monkeypatch):
    """Kernels may write less than asked: signals, quotas, network file systems."""
    data = numpy.random.default_rng(0).integers(0, 1 << 32, (64, 16 << 10), dtype=numpy.uint32)
    (tmp_path / "in").write_bytes(data.tobytes())
    file, output = SourceFile(tmp_path / "in"), OutputFile(str(tmp_path / "out"), "out")
    output.size = data.nbytes
    payload = Payload("x", output, 0, data.nbytes)
    dtype = BY_NAME["float32"]
    swapped = Extent(file, 0, (0, 0, 0), (2, 32, 16 << 10), (4 * (16 << 10), 8 * (16 << 10), 4))
    target = Target(payload, 0, (0, 0, 0), (2, 32, 16 << 10), (32 * 4 * (16 << 10), 4 * (16 << 10), 4))
    plan = Plan([Job("x", (2, 32, 16 << 10), dtype, dtype, (swapped,), (target,))])
    pwrite, pwritev, preadv = os.pwrite, os.pwritev, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, d, at: pwrite(fd, d[: max(1, len(d) // 2 + 1)], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, v, at: pwritev(fd, [v[0][:4097]], at))
    monkeypatch.setattr(os, "preadv", lambda fd, v, at: preadv(fd, [v[0][: max(1, len(v[0]) // 3)]], at))
    execute(plan, Limits(1, 1 << 20))
    file.close()
    output.close()
    found = numpy.fromfile(tmp_path / "out", numpy.uint32).reshape(2, 32, -1)
    assert (found == data.reshape(32, 2, -1).transpose(1, 0, 2)).all()
    assert payload.crc32 == zlib.crc32((tmp_path / "out").read_bytes())


def test_a_payload_that_is_not_written_whole_is_a_bug_that_is_told(tmp_path):
    plan, file, output = simple(tmp_path, numpy.ones((4, 8), numpy.uint32), "float32", "float32")
    job = plan.jobs[0]
    half = job.targets[0]
    plan.jobs[0] = Job(job.name, job.shape, job.source_dtype, job.target_dtype, job.sources,
                       (Target(half.payload, 0, (0, 0), (2, 8), half.strides),), discard=True)  # fmt: skip
    with pytest.raises(NemoconvError) as caught:
        execute(plan, Limits(1, 4096))
    assert caught.value.message == "t0: 64 of 128 bytes were written; this is a bug"
    assert caught.value.exit_code == 70
    file.close()
    output.close()


def test_ctrl_c_waits_for_threads_that_write(tmp_path, monkeypatch):
    """Python 3.11's Thread.join, once interrupted, takes a running thread for a finished one."""
    data = numpy.zeros((1 << 10, 8), numpy.uint32)
    plan, file, output = simple(tmp_path, data, "float32", "float32", jobs=8)
    under_way, whole = set(), OutputFile.pwrite

    def slow(*arguments):
        under_way.add(threading.get_ident())
        if len(under_way) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        whole(*arguments)
        under_way.discard(threading.get_ident())

    monkeypatch.setattr(OutputFile, "pwrite", slow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            execute(plan, Limits(3, 1024))
        assert not under_way
    finally:
        signal.signal(signal.SIGINT, before)
    file.close()
    output.close()


# --- memory ----------------------------------------------------------------------------------------


def test_ctrl_c_while_threads_start(tmp_path, monkeypatch):
    """Neither those that run nor the one that was just being born may write anything."""
    plan, file, output = simple(tmp_path, numpy.ones((64, 8), numpy.uint32), "float32", "float32")
    begun = []

    def start(thread):
        if len(begun) == 2:
            raise KeyboardInterrupt
        begun.append(thread)
        whole(thread)

    whole = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(KeyboardInterrupt):
        execute(plan, Limits(3, 64))
    assert no_threads()
    assert not numpy.fromfile(tmp_path / "out", numpy.uint8).any()
    file.close()
    output.close()


def test_limits_keep_the_promise_or_refuse():
    limits = Limits.within(512 << 20, 0, workers=4)
    assert limits == Limits(4, TILE_NBYTES)
    assert limits.nbytes == 4 * 3 * TILE_NBYTES
    assert Limits.within(512 << 20, 0, workers=16) == Limits(16, LARGE_TILE_NBYTES)
    assert Limits.within(512 << 20, 0, workers=16).nbytes + BASE_NBYTES <= 256 << 20
    small = Limits.within(BASE_NBYTES + (1 << 20), 0, workers=4)
    assert small.workers == 1
    assert small.nbytes <= 1 << 20
    with pytest.raises(UsageError) as caught:
        Limits.within(40 << 20, 0)
    assert caught.value.message == "--max-memory 40 MiB is too little for this conversion"
    assert caught.value.hint == "it needs at least 41 MiB"


@pytest.mark.parametrize(
    ("cores", "rows", "target", "expected"),
    [
        (3, 4000, "float32", 2),  # long runs: one core is left to the kernel
        (8, 4000, "float32", 3),  # there is a core left anyway
        (3, 4000, "bfloat16", 3),  # casts take the processor's time
        (3, 100, "float32", 3),  # so do short runs
    ],
)
def test_copying_long_runs_leaves_a_core_to_the_kernel(tmp_path, monkeypatch, cores, rows, target, expected):
    monkeypatch.setattr("nemoconv.resharding.execute.usable_cores", lambda: cores)
    plan, file, output = simple(tmp_path, numpy.zeros((rows, 8), numpy.uint32), "float32", target)
    begun = []

    def worker(tile_nbytes, report):
        begun.append(threading.current_thread().name)
        return Worker(tile_nbytes, report)

    execute(plan, Limits(3, 64 << 10), make_worker=worker)
    file.close()
    output.close()
    assert len(begun) == expected


_CHILD = """
import resource, sys, threading, time
resource.setrlimit(resource.RLIMIT_DATA, (512 << 20, 512 << 20))
from nemoconv.converters.run.convert import convert
peak, stop = 0, threading.Event()
def anonymous():
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["RssAnon"].split()[0]) << 10
def sample():
    global peak
    while not stop.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.002)
watch = threading.Thread(target=sample)
watch.start()
convert(sys.argv[1], sys.argv[2], to=sys.argv[3], max_memory=64 << 20)
stop.set()
watch.join()
print(peak)
"""


@pytest.mark.parametrize("to", ["nemo2", "hf"])
def test_memory_stays_small_whatever_the_model(tmp_path, to):
    """A 300 MB model (sparse, so that the test is quick) in a child that could not hold two of it."""
    import importlib.util

    place = Path(__file__).parents[2] / "benchmarks" / "models.py"
    spec = importlib.util.spec_from_file_location("models", place)
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    config = {**models.LLAMA_1B, "num_hidden_layers": 2, "hidden_size": 1024, "num_attention_heads": 16,
              "vocab_size": 96000}  # fmt: skip
    nbytes = models.write(tmp_path / "model", config, sparse=True)
    assert nbytes > 280 << 20
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, tmp_path / "model", tmp_path / "out", to],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) <= 64 << 20
    finally:
        import shutil

        shutil.rmtree(tmp_path / "out", ignore_errors=True)
