"""Ranks put together by the rules that cut them: every rule of every table, at every size that divides it."""

from __future__ import annotations

import numpy
import pytest

from nemoconv.converters.joining import assemble, cut_by
from nemoconv.errors import CorruptCheckpoint
from nemoconv.mappings import load_table
from nemoconv.mappings.hf.fields import read_config
from nemoconv.stores.files import SourceFile
from nemoconv.tensors.dtypes import BY_NAME
from nemoconv.tensors.layout import Layout
from nemoconv.tensors.read import read_box
from nemoconv.tensors.stored import Extent, StoredTensor, contiguous_strides

CONFIG = {
    "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 4, "vocab_size": 40, "num_experts": 2, "moe_intermediate_size": 12,
    "num_local_experts": 2, "shared_expert_intermediate_size": 8,
}  # fmt: skip


def cut(rule, sizes, whole, count):
    """What each rank holds, with numpy: the fragments of the axis that the rule cuts, joined."""
    parts = [[] for _ in range(count)]
    axis = next((i for i, names in enumerate(rule.view.axes) if rule.cut in names), None)
    if axis is None:
        return [whole] * count
    for rank, start, box in rule.fragments(sizes, Layout(count)):
        parts[rank].append(whole[tuple(slice(a, a + n) for a, n in zip(start, box, strict=True))])
    return [numpy.concatenate(part, axis=axis) for part in parts]


def store(path, array):
    path.write_bytes(array.tobytes())
    extent = Extent(SourceFile(path), 0, (0,) * array.ndim, array.shape, contiguous_strides(array.shape, 2))
    return StoredTensor("x", BY_NAME["int16"], array.shape, (extent,))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "nemotron", "starcoder2", "phi3", "qwen2_moe"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_rule(tmp_path, architecture, count):
    table = load_table(architecture)
    hf = {key: value for rule in table.fields for key, value in CONFIG.items() if key in rule.hf_keys}
    config, _ = read_config(
        table.fields, {**hf, **({"attention_bias": True} if architecture == "llama" else {})}
    )
    sizes = table.sizes(config)
    for number, rule in enumerate(table.rules):
        if not rule.applies(config):
            continue
        whole = numpy.arange(numpy.prod(rule.view.shape(sizes)), dtype=numpy.int16).reshape(
            rule.view.shape(sizes)
        )
        pieces = [
            store(tmp_path / f"{number}_{rank}", piece)
            for rank, piece in enumerate(cut(rule, sizes, whole, count))
        ]
        tensor = assemble("here", "x", pieces, cut_by(rule, sizes, count))
        assert tensor.shape == whole.shape
        assert sum(numpy.prod(extent.shape) for extent in tensor.extents) == whole.size
        assert numpy.array_equal(read_box(tensor, (0,) * whole.ndim, whole.shape), whole), rule.nemo
        wrong = store(tmp_path / "wrong", numpy.zeros((*pieces[0].shape, 2), numpy.int16))
        with pytest.raises(CorruptCheckpoint, match="rank 0"):
            assemble("here", "x", [wrong, *pieces[1:]], cut_by(rule, sizes, count))
