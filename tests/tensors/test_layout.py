"""Parallel layouts."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from nemoconv.errors import LayoutError, UsageError
from nemoconv.tensors.layout import Layout, divisors


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
        Layout().tensor_parallel_size = 2  # type: ignore[misc]


def layers(layout, count):
    return [list(run) for run in layout.layers(count)]


def test_virtual_stages_take_turns():
    """The example in megatron-core's get_num_layers_to_build: 8 layers, 2 stages, 2 virtual stages."""
    layout = Layout(1, 2, virtual_pipeline_parallel_size=2)
    assert layers(layout, 8) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [layout.stage(layer, 8) for layer in range(8)] == [0, 0, 1, 1, 0, 0, 1, 1]
    assert [layout.virtual_stage(layer, 8) for layer in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert (layout.stage(-1, 8), layout.stage(8, 8)) == (0, 1)
    assert str(layout) == "tp1 pp2 vpp2"
    with pytest.raises(LayoutError, match="cannot cut the 6 layers of each pipeline rank into virtual_.*=4"):
        Layout(1, 2, virtual_pipeline_parallel_size=4).check(12)
    with pytest.raises(UsageError, match="needs more than one pipeline stage"):
        Layout(virtual_pipeline_parallel_size=2)


@pytest.mark.parametrize(
    ("settings", "count", "expected"),
    [
        ({"num_layers_in_first_pipeline_stage": 1}, 7, [1, 2, 2, 2]),
        ({"num_layers_in_last_pipeline_stage": 4}, 10, [2, 2, 2, 4]),
        ({"num_layers_in_first_pipeline_stage": 1, "num_layers_in_last_pipeline_stage": 3}, 8, [1, 2, 2, 3]),
        ({"account_for_embedding_in_pipeline_split": True}, 11, [2, 3, 3, 3]),
        ({"account_for_loss_in_pipeline_split": True}, 11, [3, 3, 3, 2]),
        (
            {"account_for_embedding_in_pipeline_split": True, "account_for_loss_in_pipeline_split": True},
            14,
            [3, 4, 4, 3],
        ),
        ({"stages": (0, 5, 5, 2)}, 12, [0, 5, 5, 2]),
    ],
)
def test_uneven_stages(settings, count, expected):
    layout = Layout(1, 4, **settings)
    assert [len(run) for run in layout.layers(count)] == expected
    assert list(itertools.chain(*layout.layers(count))) == list(range(count))


@pytest.mark.parametrize(
    ("settings", "count", "message"),
    [
        ({"num_layers_in_first_pipeline_stage": 1}, 8, "7 of 8 layers are left for the 3 other"),
        ({"account_for_loss_in_pipeline_split": True}, 8, "8 layers and the loss, 9 in all, into 4 stages"),
        ({"stages": (1, 2, 3, 4)}, 8, "the stages hold 10 layers, the model has num_layers=8"),
    ],
)
def test_layers_that_cannot_be_dealt_so(settings, count, message):
    with pytest.raises(LayoutError, match=message):
        Layout(1, 4, **settings).check(count)


def test_ways_of_dealing_exclude_each_other():
    with pytest.raises(UsageError, match="exclude each other"):
        Layout(1, 2, stages=(1, 1), account_for_loss_in_pipeline_split=True)
    with pytest.raises(UsageError, match="3 stages are given"):
        Layout(1, 2, stages=(1, 1, 1))


def test_experts_may_be_cut_otherwise():
    layout = Layout(4, 2, 2, expert_tensor_parallel_size=1)
    assert layout.stage_size == 4  # the 4 dense ranks; 2 x 1 expert ranks divide them
    assert layout.world_size == 8
    assert [len(list(layout.pieces(8, "x", "x", of_experts=e))) for e in (False, True)] == [4, 1]
    assert layout.rank(0, 1, 1) == 5
    assert str(layout) == "tp4 pp2 ep2 etp1"
    assert Layout(2, 1, 2).world_size == 4
    assert Layout(2, 1, 1, expert_tensor_parallel_size=2) == Layout(2)
