"""Who writes what when: a file has one writer while there is another that has none."""

import threading
from dataclasses import replace

import numpy
import pytest

from nemoconv.resharding.execute import Limits, execute
from nemoconv.resharding.plan import Job, Payload, Plan, Target
from nemoconv.resharding.schedule import WORKED_WRITERS, WRITERS, FileSchedule
from nemoconv.stores.files import SourceFile
from nemoconv.stores.output import OutputFile
from nemoconv.tensors.dtypes import BY_NAME
from nemoconv.tensors.stored import Extent

F32 = BY_NAME["float32"]
ROWS, COLUMNS = 64, 8192
NBYTES = ROWS * COLUMNS * 4


@pytest.fixture
def source(tmp_path):
    data = numpy.random.default_rng(0).integers(0, 1 << 32, (8, ROWS, COLUMNS), dtype=numpy.uint32)
    (tmp_path / "in").write_bytes(data.tobytes())
    file = SourceFile(tmp_path / "in")
    yield file, data
    file.close()


def outputs(folder, count, size):
    files = [OutputFile(str(folder / f"out{number}"), f"out{number}") for number in range(count)]
    for file in files:
        file.size = size
    return files


def matrix(source, number):
    return Extent(source, number * NBYTES, (0, 0), (ROWS, COLUMNS), (COLUMNS * 4, 4))


def whole(source, number, file, offset=0):
    payload = Payload(f"t{number}", file, offset, NBYTES)
    target = Target(payload, 0, (0, 0), (ROWS, COLUMNS), (COLUMNS * 4, 4))
    return Job(f"t{number}", (ROWS, COLUMNS), F32, F32, (matrix(source, number),), (target,))


def cut(source, number, files, axis):
    """A matrix whose rows or columns are shared among the files."""
    shape = [ROWS, COLUMNS]
    shape[axis] //= len(files)
    targets = []
    for place, file in enumerate(files):
        start = [0, 0]
        start[axis] = place * shape[axis]
        payload = Payload(f"t{number}.{place}", file, number * NBYTES // len(files), NBYTES // len(files))
        targets.append(Target(payload, 0, tuple(start), tuple(shape), (shape[1] * 4, 4)))
    return Job(f"t{number}", (ROWS, COLUMNS), F32, F32, (matrix(source, number),), tuple(targets))


def files_of(task):
    return {target.payload.file.name for target in task[0].targets}


def test_a_worker_stays_with_a_file_and_others_take_others(tmp_path, source):
    file, _ = source
    files = outputs(tmp_path, 2, 2 * NBYTES)
    jobs = [whole(file, number, files[number % 2], number // 2 * NBYTES) for number in range(4)]
    schedule = FileSchedule(Plan(jobs), 1 << 20, 2)
    taken = {worker: [] for worker in range(2)}
    for _ in range(2):
        for worker in taken:
            taken[worker].append(schedule.take(worker)[0].name)
    assert taken == {0: ["t0", "t2"], 1: ["t1", "t3"]}
    assert schedule.take(0) is None
    assert schedule.take(1) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_file_has_few_writers_where_there_is_no_other(tmp_path, source, dtype):
    """A few more where values are cast, as that takes longer than to write them."""
    file, _ = source
    (output,) = outputs(tmp_path, 1, 8 * NBYTES)
    jobs = [whole(file, number, output, number * NBYTES) for number in range(8)]
    jobs = [replace(job, target_dtype=BY_NAME[dtype]) for job in jobs]
    writers = WRITERS if dtype == "float32" else WORKED_WRITERS
    schedule = FileSchedule(Plan(jobs), 1 << 20, 16)
    took = [schedule.take(worker) is not None for worker in range(8)]
    assert took == [True] * writers + [False] * (8 - writers)


def test_a_worker_that_is_done_joins_where_most_is_left(tmp_path, source):
    file, _ = source
    files = outputs(tmp_path, 3, 4 * NBYTES)
    jobs = [whole(file, 0, files[0])]
    jobs += [whole(file, 1 + number, files[1], number * NBYTES) for number in range(2)]
    jobs += [whole(file, 3 + number, files[2], number * NBYTES) for number in range(4)]
    schedule = FileSchedule(Plan(jobs), 1 << 20, 3)
    assert [schedule.take(worker)[0].name for worker in range(3)] == ["t0", "t1", "t3"]
    assert schedule.take(0)[0].name == "t4"


@pytest.mark.parametrize(("axis", "apart"), [(0, True), (1, False)], ids=["rows", "columns"])
def test_a_tensor_is_taken_apart_by_file_where_runs_stay_long(tmp_path, source, axis, apart):
    """Each of eight files would read its columns in runs of 4 KiB."""
    file, _ = source
    files = outputs(tmp_path, 8, NBYTES)
    schedule = FileSchedule(Plan([cut(file, 0, files, axis)]), 1 << 20, 8)
    tasks = []
    while (task := schedule.take(0)) is not None:
        tasks.append(task)
    assert [len(files_of(task)) for task in tasks] == ([1] * 8 if apart else [8])
    if apart:
        assert {task[0].shape for task in tasks} == {(ROWS // 8, COLUMNS)}


@pytest.mark.parametrize("workers", [1, 2, 4, 16])
def test_bytes_and_checksums_are_the_same_for_any_number_of_workers(tmp_path, source, workers):
    file, data = source
    files = outputs(tmp_path, 4, 8 * NBYTES // 4)
    plan = Plan([cut(file, number, files, number % 2) for number in range(8)])
    execute(plan, Limits(workers, 64 << 10))
    for place, output in enumerate(files):
        output.close()
        found = numpy.fromfile(output.path, numpy.uint32).reshape(8, -1)
        for number in range(8):
            wanted = numpy.split(data[number], 4, axis=number % 2)[place]
            assert (found[number] == wanted.reshape(-1)).all()
    checksums = [target.payload.crc32 for job in plan.jobs for target in job.targets]
    again = Plan([cut(file, number, files, number % 2) for number in range(8)])
    for output in files:
        (tmp_path / output.name).unlink()
    execute(again, Limits(3, 16 << 10))
    assert checksums == [target.payload.crc32 for job in again.jobs for target in job.targets]
    for output in files:
        output.close()


def test_no_two_workers_write_to_one_file_while_another_has_none(tmp_path, source, monkeypatch):
    file, _ = source
    files = outputs(tmp_path, 4, 2 * NBYTES)
    plan = Plan([whole(file, number, files[number % 4], number // 4 * NBYTES) for number in range(8)])
    writers, lock, write = {}, threading.Lock(), OutputFile.pwrite
    begun = threading.Barrier(4, timeout=30)

    def watched(self, data, offset):
        with lock:
            first = threading.get_ident() not in {each for seen in writers.values() for each in seen}
            writers.setdefault(self.name, []).append(threading.get_ident())
        if first:
            begun.wait()  # each worker is at a file before any goes on
        write(self, data, offset)

    monkeypatch.setattr(OutputFile, "pwrite", watched)
    execute(plan, Limits(4, 256 << 10))
    for output in files:
        output.close()
    assert len({seen[0] for seen in writers.values()}) == 4
