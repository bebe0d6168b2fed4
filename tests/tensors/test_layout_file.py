"""Layouts in YAML, and Megatron's notation for stages."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemoconv.errors import CorruptCheckpoint, LayoutError, UsageError
from nemoconv.resharding.layout_file import notation, parse_layout, parse_notation, read_layout
from nemoconv.tensors.layout import Layout


def test_a_file(tmp_path):
    path = tmp_path / "layout.yaml"
    path.write_text("tensor_parallel_size: 2\npipeline_parallel_size: 2\nstages: [3, 5]\n")
    assert read_layout(path) == Layout(2, 2, stages=(3, 5))
    assert read_layout(path, Layout(4, 8, 2)) == Layout(2, 2, 2, stages=(3, 5))
    path.write_text("tensor_parallel_size: [2\n")
    with pytest.raises(CorruptCheckpoint, match="layout.yaml: not YAML"):
        read_layout(path)
    with pytest.raises(UsageError, match="gone.yaml: cannot be read"):
        read_layout(tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"stages": [1, 2, 3]}, Layout(1, 3, stages=(1, 2, 3))),
        ({"stages": ["0-2", "3", "4-7"]}, Layout(1, 3, stages=(3, 1, 4))),
        (
            {"pipeline_parallel_size": 2, "stages": [1, 2, 3, 4]},
            Layout(1, 2, virtual_pipeline_parallel_size=2, stages=(1, 2, 3, 4)),
        ),
        (
            {"virtual_pipeline_parallel_size": 2, "stages": [1, 2, 3, 4]},
            Layout(1, 2, virtual_pipeline_parallel_size=2, stages=(1, 2, 3, 4)),
        ),
        ({"stages": "E|t*4|t*3,L"}, Layout(1, 3, stages=(0, 4, 3))),
        (
            {"pipeline_parallel_size": 2, "account_for_loss_in_pipeline_split": True},
            Layout(1, 2, account_for_loss_in_pipeline_split=True),
        ),
        ({"expert_parallel_size": 4, "expert_tensor_parallel_size": 2}, Layout(1, 1, 4, 1, 2)),
    ],
)
def test_settings(said, expected):
    assert parse_layout(said, "x") == expected


def test_uneven_settings_replace_those_of_the_base():
    base = Layout(1, 2, num_layers_in_first_pipeline_stage=3)
    assert parse_layout({"pipeline_parallel_size": 2, "stages": [1, 7]}, "x", base).stages == (1, 7)
    said = {"account_for_loss_in_pipeline_split": True}
    assert parse_layout(said, "x", base) == Layout(1, 2, account_for_loss_in_pipeline_split=True)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([1], "x: not a mapping"),
        ({"tp": 2}, "x: unknown key 'tp'; known: tensor_parallel_size"),
        ({"tensor_parallel_size": 0}, "x: tensor_parallel_size is '0', not a positive number"),
        ({"tensor_parallel_size": True}, "x: tensor_parallel_size is 'True'"),
        ({"account_for_loss_in_pipeline_split": "no"}, "neither true nor false"),
        ({"stages": []}, "x: stages is neither a list nor text"),
        ({"stages": [1, "x"]}, "x: stages: stage 1 is 'x'"),
        ({"stages": [-1, 2]}, "x: stages: stage 0 is '-1'"),
        ({"stages": ["0-2", "4-7"]}, "stage 1 holds layers 4-7, but layer 3 is next"),
        ({"stages": ["0-2", "2-7"]}, "stage 1 holds layers 2-7, but layer 3 is next"),
        ({"pipeline_parallel_size": 2, "stages": [1, 2, 3]}, "3 stages cannot be dealt to pipeline_.*=2"),
        ({"stages": [1, 2], "num_layers_in_first_pipeline_stage": 1}, "x: .* exclude each other"),
        ({"stages": "Etx|tL"}, "'x' in the stages is unknown"),
        ({"stages": "tt|tL"}, "do not begin with E and end with L"),
        ({"stages": "|Ett|tL"}, "the embedding .E. is in the first stage"),
        ({"stages": "E(t|)*99999999,L"}, "stands for more than 16,384 layers"),
        ({"stages": "E((t*9999)*9999)*9999,L"}, "unknown|more than"),
    ],
)
def test_nonsense(said, message):
    with pytest.raises(UsageError, match=message):
        parse_layout(said, "x")


def test_layers_that_predict_more_tokens_are_refused():
    with pytest.raises(LayoutError, match=r"predict more tokens \(m\)"):
        parse_notation("Et|tmL")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=8))
def test_the_notation_comes_back(counts):
    layout = Layout(1, len(counts), stages=tuple(counts))
    text = notation(layout, sum(counts))
    assert parse_notation(text) == counts
    assert parse_layout({"stages": text}, "x") == layout
