"""Experts in two matrices, as GroupedMLP keeps them: what an expert is, and shapes that cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from nemoconv.converters.ranks.weights import is_grouped, split_grouped
from nemoconv.errors import CorruptCheckpoint
from nemoconv.stores.files import SourceFile
from nemoconv.tensors.dtypes import BY_NAME
from nemoconv.tensors.read import read_box
from nemoconv.tensors.stored import Extent, StoredTensor, contiguous_strides

EXPERTS, HIDDEN, FFN = 3, 4, 5
PREFIX = "model.decoder.layers.1.mlp."
SHAPES = {
    PREFIX + "router.weight": (EXPERTS, HIDDEN),
    PREFIX + "experts.weight1": (HIDDEN, EXPERTS * 2 * FFN),
    PREFIX + "experts.weight2": (EXPERTS * FFN, HIDDEN),
}


@pytest.fixture
def tensors(tmp_path: Path) -> dict[str, StoredTensor]:
    """One file of consecutive numbers."""
    (tmp_path / "file").write_bytes(numpy.arange(10_000, dtype="<f4").tobytes())
    file = SourceFile(tmp_path / "file")
    return {name: stored(file, name, shape) for name, shape in SHAPES.items()}


def stored(file: SourceFile, name: str, shape: tuple[int, ...]) -> StoredTensor:
    start, offset = (0,) * len(shape), 400 * (1 + list(SHAPES).index(name))
    extent = Extent(file, offset, start, shape, contiguous_strides(shape, 4))
    return StoredTensor(name, BY_NAME["float32"], shape, (extent,))


def whole(tensor: StoredTensor) -> numpy.ndarray:
    return read_box(tensor, (0,) * len(tensor.shape), tensor.shape).reshape(tensor.shape)


def test_an_expert_is_a_run_of_bytes_with_its_matrices_turned(tensors: dict[str, StoredTensor]) -> None:
    split = split_grouped(tensors, "here")
    first = whole(tensors[PREFIX + "experts.weight1"]).reshape(EXPERTS, HIDDEN, 2 * FFN)
    second = whole(tensors[PREFIX + "experts.weight2"]).reshape(EXPERTS, FFN, HIDDEN)
    for expert in range(EXPERTS):
        name = f"{PREFIX}experts.local_experts.{expert}."
        assert (whole(split[name + "linear_fc1.weight"]) == first[expert].T).all()
        assert (whole(split[name + "linear_fc2.weight"]) == second[expert].T).all()
    assert split[PREFIX + "router.weight"] is tensors[PREFIX + "router.weight"]
    assert len(split) == 1 + 2 * EXPERTS


def test_other_names_are_left_alone() -> None:
    assert is_grouped(PREFIX + "experts.weight1")
    assert not is_grouped(PREFIX + "experts.linear_fc1.weight1")
    assert not is_grouped("model.decoder.layers.1.self_attention.weight1")


@pytest.mark.parametrize("name", ["experts.weight1", "experts.weight2"])
@pytest.mark.parametrize(
    ("what", "message"),
    [("router", "no router beside it"), ("hidden", "not of 3 experts"), ("count", "not of 3 experts")],
)
def test_shapes_that_contradict_the_router(
    tensors: dict[str, StoredTensor], name: str, what: str, message: str
) -> None:
    tensor = tensors[PREFIX + name]
    file, shape = tensor.extents[0].file, list(tensor.shape)
    held = 0 if name == "experts.weight1" else 1
    if what == "router":
        tensors = {PREFIX + name: tensor}
    else:
        shape[held if what == "hidden" else 1 - held] -= 1
    tensors = {**tensors, PREFIX + name: stored(file, PREFIX + name, tuple(shape))}
    with pytest.raises(CorruptCheckpoint, match=rf"here: .*{name} .*{message}"):
        split_grouped(tensors, "here")


def test_a_matrix_that_does_not_lie_in_one_run_is_refused(tensors: dict[str, StoredTensor]) -> None:
    tensor = tensors[PREFIX + "experts.weight2"]
    turned = tensor.extents[0]._replace(strides=tensor.extents[0].strides[::-1])
    tensors[PREFIX + "experts.weight2"] = StoredTensor(tensor.name, tensor.dtype, tensor.shape, (turned,))
    with pytest.raises(CorruptCheckpoint, match="one run"):
        split_grouped(tensors, "here")
