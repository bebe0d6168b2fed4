"""Who holds what."""

from __future__ import annotations

from nemoconv.tensors.layout import Layout
from nemoconv.tensors.ranks import rank_rows, span, table_lines


def test_spans():
    assert [span(range(3, 4)), span(range(3, 8))] == ["3", "3-7"]


def test_every_layer_is_held_once_by_each_tensor_and_expert_rank():
    layout = Layout(2, 2, 2, virtual_pipeline_parallel_size=2)
    rows = rank_rows(layout, 8, 4, {0: 10})
    assert len(rows) == 8
    assert [row.nbytes for row in rows] == [10] + [0] * 7
    for tensor in range(2):
        for expert in range(2):
            held = [
                layer
                for row in rows
                if (row.tensor_parallel_rank, row.expert_parallel_rank) == (tensor, expert)
                for run in row.runs
                for layer in run
            ]
            assert sorted(held) == list(range(8))
    assert rows[0].layers == "0-1, 4-5"
    assert rows[2].experts == range(2, 4)
    assert [row.has_output for row in rows] == [False] * 4 + [True] * 4


def test_the_table():
    lines = list(table_lines(rank_rows(Layout(2, 2, stages=(1, 3)), 4, 0, {2: 2_500_000}), 4))
    assert lines == [
        "  ranks  layers      on disk",
        "  0-1    E#...  0     0.0 MB",
        "  2-3     .###L 1-3   2.5 MB",
    ]


def test_ranks_that_hold_the_same_share_a_line_of_the_table():
    lines = list(table_lines(rank_rows(Layout(4, 1, 2, expert_tensor_parallel_size=1), 2, 8), 2))
    assert len(lines) == 3
    assert "0, 2" in lines[1]
    assert "0-3" in lines[1]
    assert "4-7" in lines[2]


def test_a_stage_without_layers_and_one_layer_too_many_to_draw():
    assert "E..  none" in list(table_lines(rank_rows(Layout(1, 2, stages=(0, 2)), 2), 2))[1]
    assert "0-199" in list(table_lines(rank_rows(Layout(), 200), 200))[1]
