"""Boxes and views, against numpy's own reshape and indexing."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemoconv.tensors.boxes import intersect, narrow, open_extent, open_range, view
from nemoconv.tensors.stored import Extent, contiguous_strides

SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


def slices(start, shape):
    return tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))


@st.composite
def ranges(draw):
    sizes = draw(SIZES)
    first = draw(st.integers(0, prod(sizes)))
    return first, draw(st.integers(first, prod(sizes))), sizes


@given(ranges())
def test_open_range_holds_the_flat_indices_in_order(case):
    first, last, sizes = case
    numbers = numpy.arange(prod(sizes)).reshape(sizes)
    found = [numbers[slices(*box)].reshape(-1) for box in open_range(first, last, sizes)]
    assert numpy.concatenate([*found, numpy.empty(0, int)]).tolist() == list(range(first, last))


@given(ranges())
def test_open_range_yields_few_boxes(case):
    first, last, sizes = case
    assert len(list(open_range(first, last, sizes))) <= max(1, 2 * len(sizes) - 1)


def test_open_range_of_nothing():
    assert list(open_range(3, 3, (2, 4))) == []
    assert list(open_range(0, 0, ())) == []
    assert list(open_range(0, 1, ())) == [((), ())]
    assert list(open_range(0, 0, (3, 0))) == []


@st.composite
def boxes(draw, count=2):
    shape = draw(SIZES)

    def one():
        start = tuple(draw(st.integers(0, n)) for n in shape)
        return start, tuple(draw(st.integers(0, n - a)) for a, n in zip(start, shape, strict=True))

    return shape, [one() for _ in range(count)]


@given(boxes())
def test_intersect_is_what_both_hold(case):
    shape, (a, b) = case
    masks = []
    for box in (a, b):
        mask = numpy.zeros(shape, bool)
        mask[slices(*box)] = True
        masks.append(mask)
    both = masks[0] & masks[1]
    common = intersect(*a, *b)
    assert (common is None) == (not both.any())
    if common:
        held = numpy.zeros(shape, bool)
        held[slices(*common)] = True
        assert (held == both).all()
    assert common == intersect(*b, *a)


def test_intersect_of_scalars():
    assert intersect((), (), (), ()) == ((), ())


@st.composite
def opened(draw):
    """A stored array with strides, a box of it, and a view that opens its axes."""
    names = iter("abcdefghijkl")
    axes = [draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)) for _ in range(draw(st.integers(1, 3)))]
    sizes, words = {}, []
    for axis in axes:
        factors = [next(names) for _ in axis]
        sizes |= dict(zip(factors, axis, strict=True))
        words.append(f"({' '.join(factors)})" if len(factors) > 1 or draw(st.booleans()) else factors[0])
    shape = tuple(prod(axis) for axis in axes)
    start = tuple(draw(st.integers(0, n - 1)) for n in shape)
    size = tuple(draw(st.integers(1, n - a)) for a, n in zip(start, shape, strict=True))
    order = draw(st.permutations(range(len(shape))))
    return " ".join(words), sizes, shape, start, size, order


def addresses(extent, shape):
    """Byte address by index of what the extent holds; -1 elsewhere."""
    found = numpy.full(shape, -1)
    for index in product(*(range(n) for n in extent.shape)):
        at = tuple(a + b for a, b in zip(extent.start, index, strict=True))
        assert found[at] == -1, "held twice"
        found[at] = extent.offset + sum(i * step for i, step in zip(index, extent.strides, strict=True))
    return found


@given(opened())
def test_open_extent_keeps_the_address_of_every_element(case):
    spec, sizes, shape, start, size, order = case
    opened_view = view(spec)
    assert opened_view.shape(sizes) == shape
    step, strides = 2, [0] * len(shape)
    for axis in order:  # a transposed source, with gaps
        strides[axis] = step
        step *= shape[axis] + 1
    extent = Extent(None, 1000, start, size, tuple(strides))
    factors = tuple(sizes[name] for name in opened_view.factors)
    expected = addresses(extent, shape).reshape(factors)
    found = numpy.full(factors, -1)
    for box in open_extent(extent, opened_view, sizes):
        part = addresses(box, factors)
        assert not ((part >= 0) & (found >= 0)).any(), "held twice"
        found = numpy.maximum(found, part)
    assert (found == expected).all()


@given(boxes(count=1), st.data())
def test_narrow_keeps_addresses(case, data):
    shape, [(start, size)] = case
    extent = Extent(None, 64, start, size, contiguous_strides(shape, 4))
    low = tuple(a + data.draw(st.integers(0, n)) for a, n in zip(start, size, strict=True))
    part = tuple(data.draw(st.integers(0, a + n - b)) for a, n, b in zip(start, size, low, strict=True))
    whole, narrowed = addresses(extent, shape), addresses(narrow(extent, low, part), shape)
    mask = narrowed >= 0
    assert int(mask.sum()) == prod(part)
    assert (narrowed[mask] == whole[mask]).all()


def test_view_names_the_factors():
    parsed = view("(group head head_dim) hidden")
    assert parsed.axes == (("group", "head", "head_dim"), ("hidden",))
    assert parsed.factors == ("group", "head", "head_dim", "hidden")
    assert str(parsed) == "(group head head_dim) hidden"
    assert view("( a b )c").axes == (("a", "b"), ("c",))
    assert view("").axes == ()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("((a b) c)", "nested brackets in '((a b) c)'"),
        ("a) b", "unbalanced or empty brackets in 'a) b'"),
        ("() b", "unbalanced or empty brackets in '() b'"),
        ("(a b", "unbalanced brackets or repeated factor in '(a b'"),
        ("(a b) a", "unbalanced brackets or repeated factor in '(a b) a'"),
    ],
)
def test_a_malformed_view_is_refused(spec, message):
    with pytest.raises(ValueError, match=".+") as caught:
        view(spec)
    assert str(caught.value) == message
