"""Strided copies between files and tile buffers, in as few system calls as the geometry allows."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy
from numpy.lib.stride_tricks import as_strided

from .byte_source import ByteSource

#: runs at least this long go between file and tile by themselves; shorter ones through one larger read
DIRECT_RUN = 16 << 10

#: bytes that are read on in the time that a read of its own costs: lines nearer together are read through
LINE_COST = 24 << 10

Buffer = numpy.ndarray[Any, numpy.dtype[numpy.uint8]]
#: one loop of a copy: count, byte stride in the file, byte stride in the buffer
Loop = tuple[int, int, int]


def loops(shape: tuple[int, ...], in_file: tuple[int, ...], in_buffer: tuple[int, ...]) -> list[Loop]:
    """The axes of a copy, outermost first, with axes of length 1 dropped and adjacent ones merged."""
    merged: list[Loop] = []
    for count, a, b in zip(shape, in_file, in_buffer, strict=True):
        if count == 1:
            continue
        if merged and merged[-1][1] == a * count and merged[-1][2] == b * count:
            merged[-1] = (merged[-1][0] * count, a, b)
        else:
            merged.append((count, a, b))
    return merged


def split_run(axes: list[Loop], itemsize: int) -> tuple[list[Loop], int]:
    """The outer loops of a copy and the bytes that are contiguous on both sides."""
    if axes and axes[-1][1:] == (itemsize, itemsize):
        return axes[:-1], axes[-1][0] * itemsize
    return axes, itemsize


def positions(axes: list[Loop]) -> Iterator[tuple[int, int]]:
    """(file, buffer) byte offsets of every iteration of the loops."""
    if not axes:
        yield 0, 0
        return
    (count, a, b), inner = axes[0], axes[1:]
    for index in range(count):
        for x, y in positions(inner):
            yield index * a + x, index * b + y


def _copy(target: Buffer, source: Buffer, axes: list[Loop], run: int, *, file_is_source: bool) -> None:
    """numpy's strided copy, in the widest element that divides the run and every stride and address."""
    file_side, buffer_side = (source, target) if file_is_source else (target, source)
    width = run
    for _, a, b in axes:
        width |= a | b
    width |= file_side.ctypes.data | buffer_side.ctypes.data
    width = min(width & -width, 8)
    shape = (*(count for count, _, _ in axes), run // width)
    element = numpy.dtype(f"u{width}")

    def strided(buffer: Buffer, which: int) -> numpy.ndarray[Any, Any]:
        usable = buffer[: len(buffer) // width * width].view(element)
        return as_strided(usable, shape, (*(axis[which] for axis in axes), width))

    file_view, buffer_view = strided(file_side, 1), strided(buffer_side, 2)
    if file_is_source:
        numpy.copyto(buffer_view, file_view)
    else:
        numpy.copyto(file_view, buffer_view)


def read_strided(
    file: ByteSource,
    offset: int,
    axes: list[Loop],
    itemsize: int,
    target: Buffer,
    scratch: Buffer,
) -> None:
    """Fill the strided places of ``target`` from the strided places of ``file`` at ``offset``.

    Short runs are read with what lies between them into ``scratch`` and picked out there; a copy
    whose span does not fit ``scratch`` is split along its widest file axis.
    """
    outer, run = split_run(axes, itemsize)
    if not outer or run >= DIRECT_RUN:
        view = target.data
        for in_file, in_buffer in positions(outer):
            file.read_into(offset + in_file, view[in_buffer : in_buffer + run])
        return
    span = run + sum((count - 1) * a for count, a, _ in outer)
    if span > LINE_COST and _read_lines(file, offset, axes, itemsize, span, target, scratch):
        return
    if span <= len(scratch):
        file.read_into(offset, scratch.data[:span])
        _copy(target, scratch[:span], outer, run, file_is_source=True)
        return
    widest = max(range(len(axes)), key=lambda i: axes[i][1])
    count, a, b = axes[widest]
    step = max(1, int(len(scratch) * count / span) // 2) if count > 1 else 1
    for first in range(0, count, step):
        part = [*axes[:widest], (min(step, count - first), a, b), *axes[widest + 1 :]]
        part = [axis for axis in part if axis[0] > 1]
        read_strided(file, offset + first * a, part, itemsize, target[first * b :], scratch)


def _read_lines(
    file: ByteSource,
    offset: int,
    axes: list[Loop],
    itemsize: int,
    span: int,
    target: Buffer,
    scratch: Buffer,
) -> bool:
    """Read what is contiguous in the file alone, line by line, and turn it round in ``scratch``.

    For a tile of a transposed matrix the lines are its columns, and what lies between them is most of the
    file. False, and nothing is done, where lines are too near together in ``span`` bytes, or do not fit.
    """
    length, inner = itemsize, 0
    ordered = sorted(axes, key=lambda axis: axis[1])
    for count, a, _ in ordered:
        if a != length:
            break
        length, inner = length * count, inner + 1
    outer = ordered[inner:][::-1]
    needed = length * prod(count for count, _, _ in outer)
    near = span <= needed // length * (length + LINE_COST)
    if near or length < file.short_read or needed > len(scratch):
        return False
    packed, step = [], needed
    for count, a, _ in outer:
        step //= count
        packed.append((count, a, step))
    for in_file, at in positions(packed):
        file.read_into(offset + in_file, scratch.data[at : at + length])
    turned = [(count, step, b) for (count, _, step), (_, _, b) in zip(packed, outer, strict=True)]
    turned += [(count, a, b) for count, a, b in reversed(ordered[:inner])]
    _copy(target, scratch[:needed], turned, itemsize, file_is_source=True)
    return True


def gather_runs(
    axes: list[Loop], itemsize: int, source: Buffer, scratch: Buffer
) -> list[tuple[int, list[memoryview]]]:
    """What to write of ``source`` (a tile): (file offset, buffers that follow one another there).

    Long runs are given as views of the tile, and so are those with gaps between them; other short ones
    are first packed into ``scratch``, which must be at least as long as the copy.
    """
    outer, run = split_run(axes, itemsize)
    view = source.data
    if not outer:
        return [(0, [view[:run]])]
    ordered = sorted(outer, key=lambda axis: -axis[1])
    dense = _dense(ordered, run)
    if run >= DIRECT_RUN or not dense:
        return [
            (at, [view[p + q : p + q + run] for _, q in positions(dense)])
            for at, p in positions(ordered[: len(ordered) - len(dense)])
        ]
    block = run
    for count, _, _ in dense:
        block *= count
    result = []
    packed = 0
    for at, p in positions(ordered[: len(ordered) - len(dense)]):
        place = scratch[packed : packed + block]
        _copy(place, source[p:], dense, run, file_is_source=False)
        result.append((at, [place.data]))
        packed += block
    return result


def _dense(ordered: list[Loop], run: int) -> list[Loop]:
    """The innermost of ``ordered`` (by file stride) that leave no gaps in the file."""
    expected, dense = run, 0
    for count, stride, _ in reversed(ordered):
        if stride != expected:
            break
        expected *= count
        dense += 1
    return ordered[len(ordered) - dense :]
