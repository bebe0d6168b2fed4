"""Rows of a projection that makes several things are followed to where they are used, or not told at all."""

from __future__ import annotations

import pytest

from nemoconv.converters.onnx.names.dataflow import Dataflow
from nemoconv.converters.onnx.names.rows import RowFlow, tile
from nemoconv.converters.onnx.names.values import Rows

from ..onnx_drawing import Drawing

ROWS = 24


def rows_of(draw, *, flat=False):
    """(graph, rows) of a projection [24, 8] and of what ``draw`` makes of its result."""
    g = Drawing()
    x = g.node("Gather", g.weight("table", (50, 8)), "input_ids")
    if flat:
        y = g.node("Gemm", x, g.weight("w", (ROWS, 8)), transB=1)
    else:
        y = g.node("MatMul", x, g.weight("w", (8, ROWS)))
    names = draw(g, y)
    flow = Dataflow(g.onnx())
    found = RowFlow(flow, flow.linears[0])
    return [found.rows(name) for name in names]


def sizes(g, *numbers):
    return g.integers(f"sizes{len(g.initializers)}", numbers)


def split(g, y, numbers, axis=-1):
    return [*g.nodes_of("Split", y, sizes(g, *numbers), outputs=len(numbers), axis=axis)]


def slices(g, y, bounds, axis, step=1):
    return [
        g.node("Slice", y, sizes(g, first), sizes(g, end), sizes(g, axis), sizes(g, step))
        for first, end in bounds
    ]


@pytest.mark.parametrize("axis", [-1, 2])
def test_a_split(axis):
    assert rows_of(lambda g, y: split(g, y, (12, 6, 6), axis)) == [
        Rows(0, 12, 24), Rows(12, 6, 24), Rows(18, 6, 24)
    ]  # fmt: skip


def test_slices_to_the_end():
    end = (1 << 63) - 1
    assert rows_of(lambda g, y: slices(g, y, [(0, 12), (12, 18), (18, end), (-6, end)], -1)) == [
        Rows(0, 12, 24), Rows(12, 6, 24), Rows(18, 6, 24), Rows(18, 6, 24)
    ]  # fmt: skip


def test_group_by_group():
    def draw(g, y):
        groups = g.node("Reshape", y, sizes(g, 0, 0, 2, 12))
        turned = g.node("Transpose", groups, perm=(0, 2, 1, 3))
        return split(g, turned, (4, 4, 4), 3)

    assert rows_of(draw) == [Rows(0, 4, 12), Rows(4, 4, 12), Rows(8, 4, 12)]


def test_rotation_keeps_to_the_rows_of_its_heads():
    def draw(g, y):
        query, key, _ = split(g, y, (12, 6, 6))
        heads = g.node("Transpose", g.node("Reshape", query, sizes(g, 0, 0, 2, 6)), perm=(0, 2, 1, 3))
        half = g.node("Neg", *slices(g, heads, [(0, 3)], 3))
        turned = g.node("Mul", g.node("Concat", half, heads, axis=-1), "position_ids")
        return [turned, g.node("Concat", "past.0.key", key, axis=1), g.node("Add", turned, key)]

    assert rows_of(draw) == [Rows(0, 12, 24), Rows(12, 6, 24), Rows(0, 18, 24)]


def test_where_to_cut_may_be_worked_out_from_the_length():
    def draw(g, y):
        length = g.node("Gather", g.node("Shape", y), sizes(g, -1), axis=0)
        third = g.node("Div", g.node("Add", length, sizes(g, 2)), sizes(g, 3))
        two = g.node("Mul", third, sizes(g, 2))
        axis = sizes(g, -1)
        return [g.node("Slice", y, sizes(g, 0), third, axis), g.node("Slice", y, third, two, axis)]

    assert rows_of(draw) == [Rows(0, 8, 24), Rows(8, 8, 24)]


WHOLE = Rows(0, 24, 24)


@pytest.mark.parametrize(
    "draw",
    [
        lambda g, y: split(g, y, (12, 6, 6), 1),  # along the sequence
        lambda g, y: split(g, y, (12, 6, 5)),  # not all of it
        lambda g, y: split(g, g.node("Transpose", y, perm=(0, 2, 1)), (12, 6, 6), 2),
        lambda g, y: split(g, g.node("Reshape", y, sizes(g, 0, -1)), (12, 6, 6)),
        lambda g, y: split(g, g.node("Mul", y, "position_ids"), (12, 6, 6)),
        lambda g, y: slices(g, y, [(0, 12)], -1, step=2),
        lambda g, y: slices(g, y, [(0, 12)], 1),
        lambda g, y: slices(g, y, [(12, 12)], -1),
    ],
)
def test_what_does_not_tell_rows(draw):
    assert set(rows_of(draw)) == {WHOLE}


def test_a_gemm_gives_two_axes():
    assert rows_of(lambda g, y: split(g, y, (12, 12), 1), flat=True) == [Rows(0, 12, 24), Rows(12, 12, 24)]
    assert set(rows_of(lambda g, y: split(g, y, (12, 12), 2), flat=True)) == {WHOLE}


def test_tiles():
    assert tile([Rows(12, 6, 24), Rows(0, 12, 24), Rows(18, 6, 24)])
    assert not tile([Rows(0, 12, 24), Rows(12, 6, 24)])
    assert not tile([Rows(0, 12, 24), Rows(6, 18, 24)])
    assert not tile([Rows(0, 6, 12), Rows(12, 12, 24), Rows(6, 6, 12)])
