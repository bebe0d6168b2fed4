"""Strided copies between files and buffers, against numpy's strides."""

from __future__ import annotations

import os
from itertools import product
from math import prod

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemoconv.stores.files import SourceFile
from nemoconv.tensors import strided
from nemoconv.tensors.strided import gather_runs, loops, positions, read_strided, split_run


@st.composite
def geometry(draw):
    """(shape, item size, strides in the file, strides in the buffer): both orders permuted, with gaps."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=0, max_size=4)))
    itemsize = draw(st.sampled_from([1, 2, 4, 8]))

    def strides(gaps):
        step, found = itemsize, [0] * len(shape)
        for axis in draw(st.permutations(range(len(shape)))):
            found[axis] = step
            step *= shape[axis]
            if gaps:
                step += draw(st.integers(0, 3)) * itemsize
        return tuple(found)

    return shape, itemsize, strides(draw(st.booleans())), strides(draw(st.booleans()))


def span(shape, strides, itemsize):
    return itemsize + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))


def pairs(shape, a, b, itemsize):
    """Every byte of the copy as (offset on one side, offset on the other)."""
    for index in product(*(range(n) for n in shape)):
        x, y = (sum(i * step for i, step in zip(index, s, strict=True)) for s in (a, b))
        for byte in range(itemsize):
            yield x + byte, y + byte


@given(geometry())
def test_loops_cover_the_same_bytes_in_fewer_axes(case):
    shape, itemsize, a, b = case
    axes = loops(shape, a, b)
    outer, run = split_run(axes, itemsize)
    assert len(axes) <= len(shape)
    assert prod(n for n, _, _ in outer) * run == prod(shape) * itemsize
    found = {(x + i, y + i) for x, y in positions(outer) for i in range(run)}
    assert found == set(pairs(shape, a, b, itemsize))


def test_loops_merge_what_is_contiguous_on_both_sides():
    assert loops((2, 3, 4), (24, 8, 2), (24, 8, 2)) == [(24, 2, 2)]
    assert loops((2, 3, 4), (100, 8, 2), (24, 8, 2)) == [(2, 100, 24), (12, 2, 2)]
    assert loops((1, 1), (8, 2), (4, 2)) == []
    assert split_run([(24, 2, 2)], 2) == ([], 48)
    assert split_run([(24, 4, 2)], 2) == ([(24, 4, 2)], 2)


@settings(deadline=None, max_examples=150)
@given(geometry(), st.integers(0, 9), st.integers(1, 6), st.sampled_from([4, 16 << 10]))
def test_read_strided(tmp_path_factory, case, offset, scratch_runs, direct):
    shape, itemsize, in_file, in_buffer = case
    path = tmp_path_factory.getbasetemp() / "strided"
    data = numpy.random.default_rng(0).integers(
        1, 256, offset + span(shape, in_file, itemsize), dtype=numpy.uint8
    )
    path.write_bytes(data.tobytes())
    buffer = numpy.zeros(span(shape, in_buffer, itemsize) + 3, numpy.uint8)
    expected = buffer.copy()
    for x, y in pairs(shape, in_file, in_buffer, itemsize):
        expected[y] = data[offset + x]
    scratch = numpy.empty(scratch_runs * itemsize * 4, numpy.uint8)
    file = SourceFile(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strided, "DIRECT_RUN", direct)
        read_strided(file, offset, loops(shape, in_file, in_buffer), itemsize, buffer, scratch)
    file.close()
    assert (buffer == expected).all()


@settings(deadline=None)
@given(geometry(), st.sampled_from([2, 16 << 10]))
def test_gather_runs(case, direct):
    """What is to be written lies where it should, and every piece is contiguous in the file."""
    shape, itemsize, in_file, in_buffer = case
    source = numpy.random.default_rng(0).integers(1, 256, span(shape, in_buffer, itemsize), dtype=numpy.uint8)
    scratch = numpy.empty(prod(shape) * itemsize, numpy.uint8)
    image = numpy.zeros(span(shape, in_file, itemsize), numpy.uint8)
    expected = image.copy()
    for x, y in pairs(shape, in_file, in_buffer, itemsize):
        expected[x] = source[y]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strided, "DIRECT_RUN", direct)
        runs = gather_runs(loops(shape, in_file, in_buffer), itemsize, source, scratch)
    for at, views in runs:
        for view in views:
            assert not image[at : at + len(view)].any(), "written twice"
            image[at : at + len(view)] = view
            at += len(view)
    assert (image == expected).all()


def test_short_runs_are_read_in_few_calls(tmp_path, monkeypatch):
    """4,096 elements that lie apart cost one system call, not 4,096."""
    path = tmp_path / "x"
    path.write_bytes(os.urandom(4096 * 8))
    file, calls = SourceFile(path), []
    whole = SourceFile.read_into

    def counted(self, *arguments):
        calls.append(arguments)
        whole(self, *arguments)

    monkeypatch.setattr(SourceFile, "read_into", counted)
    target, scratch = numpy.empty(8192, numpy.uint8), numpy.empty(1 << 16, numpy.uint8)
    read_strided(file, 0, [(4096, 8, 2)], 2, target, scratch)
    assert len(calls) == 1
    assert target.tobytes() == numpy.frombuffer(path.read_bytes(), "u2")[::4].tobytes()
    file.close()
