"""Keys that no two layers, experts or halves share (``singleton_local_shards``)."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemoconv.converters.registry import open_checkpoint
from nemoconv.converters.run.convert import convert
from nemoconv.converters.run.reshard import reshard
from nemoconv.converters.torch_dist.names import alone, halves_of, whole_of_half
from nemoconv.errors import CorruptCheckpoint, UsageError
from nemoconv.formats.torch import common as torch_common
from nemoconv.mappings import samples
from nemoconv.testing import data_of

from ..torch_dist.test_names import CONFIG

EXPERT = "decoder.layers.1.mlp.experts.local_experts.7.linear_fc1.weight"
GATE = "module.decoder.layers.1.mlp.experts.experts.7.linear_fc1.weight_w"


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    samples.build(tmp_path / "hf", CONFIG)
    return tmp_path / "hf"


def stored(folder: Path) -> dict[str, tuple[int, ...]]:
    with open_checkpoint(folder) as opened:
        return {key: tensor.shape for key, tensor in opened.metadata.tensors.items()}  # type: ignore[attr-defined]


def test_names() -> None:
    assert halves_of("module." + alone(EXPERT)) == (GATE, GATE[:-1] + "v")
    assert whole_of_half(GATE) == GATE[:-2]
    for other in ("a.linear_fc2.weight_w", "a.linear_fc1.weight", "a.linear_fc1.layer_norm_weight_w"):
        assert whole_of_half(other) is None


def test_each_tensor_has_a_key_and_the_loader_is_told(hf: Path, tmp_path: Path) -> None:
    layout = {"tensor_parallel_size": 2, "expert_parallel_size": 2}
    convert(hf, tmp_path / "nemo", to="nemo2", experts="singleton", verify=True, **layout)
    shapes = stored(tmp_path / "nemo")
    assert shapes[GATE] == shapes[GATE[:-1] + "v"] == (12, 16)
    assert shapes["module.decoder.layers.0.mlp.linear_fc1.weight_v"] == (24, 16)
    assert not any(".experts.experts.linear" in key or key.endswith("linear_fc1.weight") for key in shapes)
    common = torch_common.read_object((tmp_path / "nemo/weights/common.pt").read_bytes(), where="common.pt")
    assert common["content_metadata"]["singleton_local_shards"] is True
    reshard(tmp_path / "nemo", tmp_path / "cut", tensor_parallel_size=1, expert_parallel_size=4)
    assert stored(tmp_path / "cut") == shapes
    for source in ("nemo", "cut"):
        convert(tmp_path / source, tmp_path / f"{source}-back", to="hf", verify=True)
        assert data_of(tmp_path / f"{source}-back") == data_of(hf)


def test_stacked_is_what_is_written_by_default(hf: Path, tmp_path: Path) -> None:
    convert(hf, tmp_path / "default", to="nemo2")
    convert(hf, tmp_path / "stacked", to="nemo2", experts="stacked")
    assert data_of(tmp_path / "default") == data_of(tmp_path / "stacked")
    assert stored(tmp_path / "default") == stored(tmp_path / "stacked")


@pytest.mark.parametrize(("half", "message"), [("v", "has no other half"), ("w", "without its other half")])
def test_a_half_alone_is_named(hf: Path, tmp_path: Path, half: str, message: str) -> None:
    convert(hf, tmp_path / "nemo", to="nemo2", experts="singleton")
    place, key = tmp_path / "nemo/weights/.metadata", (GATE[:-1] + half).encode()
    data = place.read_bytes()
    assert key in data
    place.write_bytes(data.replace(key, key[:-1] + b"x"))
    with pytest.raises(CorruptCheckpoint, match=rf"experts\.7\.linear_fc1\.weight_[wv] .*{message}"):
        convert(tmp_path / "nemo", tmp_path / "back", to="hf")
    assert not (tmp_path / "back").exists()


def test_where_it_means_nothing_it_is_refused(hf: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="experts means nothing"):
        convert(hf, tmp_path / "back", to="hf", experts="stacked")
    with pytest.raises(UsageError, match="unknown experts 'grouped'") as caught:
        convert(hf, tmp_path / "nemo", to="nemo2", experts="grouped")
    assert "stacked" in str(caught.value.hint)
