"""Parallel layouts."""

from __future__ import annotations

import dataclasses

import pytest

from nemoconv.errors import LayoutError, UsageError
from nemoconv.resharding.layout import Layout, divisors


def test_divisors():
    assert divisors(1) == [1]
    assert divisors(12) == [1, 2, 3, 4, 6, 12]


def test_ranks_count_tensor_parallel_fastest():
    layout = Layout(2, 3)
    assert layout.world_size == 6
    assert [layout.rank(tp, pp) for pp in range(3) for tp in range(2)] == list(range(6))
    assert str(layout) == "tp2 pp3"


def test_stages_hold_equally_many_layers_in_order():
    layout = Layout(1, 4)
    layout.check(12)
    assert [layout.stage(layer, 12) for layer in range(12)] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_layers_that_do_not_divide():
    with pytest.raises(LayoutError) as caught:
        Layout(1, 5).check(12)
    assert caught.value.message == "cannot cut 12 layers into pipeline_parallel_size=5"
    assert caught.value.hint == "use one of: 1, 2, 3, 4, 6, 12"
    assert caught.value.exit_code == 5


def test_pieces():
    assert list(Layout(4).pieces(8, "num_query_groups", "x")) == [(0, 2), (2, 2), (4, 2), (6, 2)]
    assert list(Layout(1).pieces(3, "num_query_groups", "x")) == [(0, 3)]
    with pytest.raises(LayoutError) as caught:
        next(Layout(3).pieces(8, "num_query_groups", "the.weight"))
    assert caught.value.message == "cannot cut the.weight into tensor_parallel_size=3: num_query_groups=8"
    assert caught.value.hint == "tensor parallel sizes that divide it: 1, 2, 4, 8"


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (-2, 1)])
def test_sizes_are_positive(sizes):
    with pytest.raises(UsageError, match="_parallel_size=-?[0-9]+ is not a positive number") as caught:
        Layout(*sizes)
    assert caught.value.exit_code == 2


def test_a_layout_is_a_value():
    assert Layout(2, 3) == Layout(2, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Layout().tensor_parallel_size = 2
