"""Layouts of conversions: everything that a change of layout can write, a conversion can write at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert, plan
from nemoconv.converters.run.reshard import reshard
from nemoconv.errors import LayoutError, UsageError
from nemoconv.tensors.layout import Layout

LLAMA = {**tiny.CONFIG, "num_hidden_layers": 6, "num_key_value_heads": 4}
LAYOUTS = [
    Layout(2, 2, virtual_pipeline_parallel_size=3),
    Layout(1, 3, stages=(1, 4, 1)),
    Layout(2, 2, virtual_pipeline_parallel_size=2, stages=(0, 3, 1, 2)),
    Layout(1, 4, account_for_embedding_in_pipeline_split=True, account_for_loss_in_pipeline_split=True),
    Layout(1, 3, num_layers_in_first_pipeline_stage=3, num_layers_in_last_pipeline_stage=1),
]


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "model"
    tiny.write(folder, LLAMA)
    return folder


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "weights").iterdir())}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_conversion_writes_what_a_change_of_layout_writes(hf: Path, tmp_path: Path, layout: Layout) -> None:
    convert(hf, tmp_path / "at once", to="nemo2", layout=layout, verify=True)
    convert(hf, tmp_path / "one", to="nemo2")
    reshard(tmp_path / "one", tmp_path / "later", layout=layout)
    assert weights(tmp_path / "at once") == weights(tmp_path / "later")
    for name in ("at once", "later"):
        with open_checkpoint(tmp_path / name) as checkpoint:
            assert checkpoint.layout == layout
    convert(tmp_path / "at once", tmp_path / "back", to="hf", verify=True)
    assert tiny.load(tmp_path / "back").keys() == tiny.load(hf).keys()


def test_a_file_and_sizes_that_win_over_it(hf: Path, tmp_path: Path) -> None:
    (tmp_path / "layout.yaml").write_text("tensor_parallel_size: 4\nstages: [2, 4]\n")
    report = convert(
        hf, tmp_path / "out", to="nemo2", layout=tmp_path / "layout.yaml", tensor_parallel_size=2
    )
    assert report.layout == "tp2 pp2 stages 2-4"


@pytest.mark.parametrize(("size", "stages"), [(4, "1, 2 times 2, 1"), (5, "2, 4 times 1")])
def test_layers_that_do_not_come_out_even(hf: Path, tmp_path: Path, size: int, stages: str) -> None:
    report = convert(hf, tmp_path / "out", to="nemo2", pipeline_parallel_size=size, verify=True)
    assert f"6 layers do not come out even on the stages, which get {stages}" in report.notes
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert str(checkpoint.layout) == report.layout
        assert not checkpoint.layout.is_even


def test_megatron_deals_layers_like_this() -> None:
    """The sizes that NeMo's recipes have for the models whose layers no power of two divides."""
    llama, deepseek = Layout(8, 16).dealt(126), Layout(1, 16).dealt(61)
    assert llama == Layout(
        8, 16, account_for_embedding_in_pipeline_split=True, account_for_loss_in_pipeline_split=True
    )
    assert [len(layers) for layers in llama.layers(126)] == [7, *[8] * 14, 7]
    assert deepseek == Layout(
        1, 16, num_layers_in_first_pipeline_stage=3, num_layers_in_last_pipeline_stage=2
    )
    assert Layout(1, 9, virtual_pipeline_parallel_size=7).dealt(126) == Layout(
        1, 9, virtual_pipeline_parallel_size=7
    )
    for count in range(1, 40):
        for size in range(1, count + 1):
            held = [len(layers) for layers in Layout(1, size).dealt(count).layers(count)]
            assert sum(held) == count
            assert max(held[1:-1], default=0) - min(held[1:-1], default=0) == 0
            assert max(held) - min(held) <= max(2, size), (count, size, held)


def test_what_nemo_1_cannot_say_is_refused(hf: Path, tmp_path: Path) -> None:
    for layout in (Layout(1, 2, virtual_pipeline_parallel_size=3), Layout(1, 2, stages=(2, 4))):
        with pytest.raises(LayoutError, match="a .nemo has equal pipeline stages"):
            convert(hf, tmp_path / "x.nemo", to="nemo", layout=layout)
    with pytest.raises(LayoutError, match="cut as all else"):
        plan(hf, tmp_path / "x.nemo", to="nemo", tensor_parallel_size=2, expert_tensor_parallel_size=1)
    with pytest.raises(LayoutError, match="cannot cut 6 layers into pipeline_parallel_size=4"):
        plan(hf, tmp_path / "x.nemo", to="nemo", pipeline_parallel_size=4)


def test_what_is_no_layout(hf: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none.yaml: cannot be read"):
        convert(hf, tmp_path / "out", to="nemo2", layout=tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="needs more than one pipeline stage"):
        convert(hf, tmp_path / "out", to="nemo2", virtual_pipeline_parallel_size=2)
    with pytest.raises(LayoutError, match="the format onnx has no parallel layout"):
        convert(hf, tmp_path / "out", to="onnx", pipeline_parallel_size=2)
