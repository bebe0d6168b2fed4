"""Transposed sources: every byte in its place, read line by line and not over and over."""

from __future__ import annotations

from unittest import mock

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemoconv.resharding.execute import Limits, execute
from nemoconv.resharding.plan import Job, Payload, Plan, Target
from nemoconv.resharding.tiles import tile_groups
from nemoconv.stores.files import SourceFile
from nemoconv.stores.output import OutputDirectory
from nemoconv.tensors import strided
from nemoconv.tensors.checksum import crc32
from nemoconv.tensors.dtypes import BY_NAME
from nemoconv.tensors.read import read_box
from nemoconv.tensors.stored import Extent, StoredTensor


class Counted(SourceFile):
    """A file that counts the bytes that are read of it."""

    def __init__(self, path):
        super().__init__(path)
        self.nbytes = 0

    def read_into(self, offset, buffer):
        self.nbytes += len(buffer)
        super().read_into(offset, buffer)


def transposed(tmp_path, array):
    """``array`` as a tensor whose file holds its transpose, 5 bytes in."""
    (tmp_path / "f").write_bytes(b"12345" + array.T.tobytes())
    file = Counted(tmp_path / "f")
    dtype = BY_NAME[array.dtype.name]
    strides = (dtype.itemsize, dtype.itemsize * array.shape[0])
    return file, StoredTensor("w", dtype, array.shape, (Extent(file, 5, (0, 0), array.shape, strides),))


def job_of(tensor, payload):
    size = tensor.dtype.itemsize
    target = Target(payload, 0, (0, 0), tensor.shape, (tensor.shape[1] * size, size))
    return Job("w", tensor.shape, tensor.dtype, tensor.dtype, tensor.extents, (target,))


@pytest.mark.parametrize("kind", ["float32", "uint16", "int8"])
@pytest.mark.parametrize(
    ("start", "shape"), [((0, 0), (700, 900)), ((3, 5), (300, 800)), ((9, 0), (1, 900)), ((0, 7), (700, 1))]
)
def test_boxes_of_a_matrix(tmp_path, kind, start, shape):
    array = numpy.random.default_rng(0).integers(0, 100, (700, 900)).astype(kind)
    _, tensor = transposed(tmp_path, array)
    expected = array[start[0] : start[0] + shape[0], start[1] : start[1] + shape[1]]
    assert numpy.array_equal(read_box(tensor, start, shape), expected)


def test_nothing_is_wasted(tmp_path):
    """64 of 20,000 columns of the file: 0.3 % of it, not all. Near together, they are read through."""
    array = numpy.random.default_rng(0).integers(0, 100, (20_000, 100)).astype(numpy.float32)
    file, tensor = transposed(tmp_path, array)
    assert numpy.array_equal(read_box(tensor, (128, 0), (64, 100)), array[128:192])
    assert file.nbytes == 64 * 100 * 4
    file, tensor = transposed(tmp_path, array[:2000])
    assert numpy.array_equal(read_box(tensor, (128, 0), (64, 100)), array[128:192])
    assert 64 * 100 * 4 < file.nbytes <= 2000 * 100 * 4


def test_files_may_ask_for_longer_reads(tmp_path):
    """What is computed when it is read is asked for in one piece."""
    array = numpy.random.default_rng(0).integers(0, 100, (20_000, 100)).astype(numpy.float32)
    file, tensor = transposed(tmp_path, array)
    with mock.patch.object(Counted, "short_read", 1 << 20):
        assert numpy.array_equal(read_box(tensor, (128, 0), (64, 100)), array[128:192])
    assert file.nbytes > 10 * 64 * 100 * 4


@pytest.mark.parametrize("cost", [strided.LINE_COST, 0])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_box_of_any_order(tmp_path_factory, cost, data):
    """Tensors of up to four axes that lie in the file in any order of axes, line by line wherever it can be."""
    rank = data.draw(st.integers(1, 4))
    shape = tuple(data.draw(st.integers(1, (60, 40, 12, 6)[rank - 1])) for _ in range(rank))
    order = data.draw(st.permutations(range(rank)))
    array = numpy.random.default_rng(0).integers(0, 1 << 16, shape).astype(numpy.uint16)
    path = tmp_path_factory.mktemp("f") / "f"
    path.write_bytes(numpy.ascontiguousarray(array.transpose(order)).tobytes())
    strides, step = [0] * rank, 2
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    extent = Extent(SourceFile(path), 0, (0,) * rank, shape, tuple(strides))
    tensor = StoredTensor("w", BY_NAME["uint16"], shape, (extent,))
    start = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    box = tuple(data.draw(st.integers(1, n - a)) for a, n in zip(start, shape, strict=True))
    with mock.patch.object(strided, "LINE_COST", cost):
        found = read_box(tensor, start, box)
    assert numpy.array_equal(found, array[tuple(slice(a, a + n) for a, n in zip(start, box, strict=True))])
    extent.file.close()


@pytest.mark.parametrize("limit", [1, 7, 1000, 4096, 10**7])
def test_tiles_cover_a_transposed_matrix_once(tmp_path, limit):
    _, tensor = transposed(tmp_path, numpy.zeros((37, 53), numpy.float32))
    seen = numpy.zeros((37, 53), int)
    for group in tile_groups(job_of(tensor, None), limit):
        for start, shape in group:
            assert shape[0] * shape[1] <= limit
            seen[start[0] : start[0] + shape[0], start[1] : start[1] + shape[1]] += 1
        assert len({(start[0], shape[0]) for start, shape in group}) == 1  # a group is whole rows
        assert sum(shape[1] for _, shape in group) == 53
    assert (seen == 1).all()


@pytest.mark.parametrize("kind", ["float32", "uint16"])
@pytest.mark.parametrize("cost", [strided.LINE_COST, 0])
def test_a_matrix_is_turned_round(tmp_path, kind, cost):
    """Many tiles, two workers: all bytes, one checksum; line by line, every byte is read once."""
    array = numpy.random.default_rng(0).integers(0, 1 << 16, (1100, 1300)).astype(kind)
    file, tensor = transposed(tmp_path, array)
    with OutputDirectory(tmp_path / "out") as output:
        made = output.file("x")
        made.size = array.nbytes
        payload = Payload("w", made, 0, array.nbytes)
        plan = Plan([job_of(tensor, payload)])
        plan.check()
        with mock.patch.object(strided, "LINE_COST", cost):
            execute(plan, Limits(2, 256 << 10))
        written = made.read_back()
    assert written == array.tobytes()
    assert payload.crc32 == crc32(array.tobytes())
    assert file.nbytes == array.nbytes or cost
