"""The transforms, against hand-written loops: which element of Hugging Face is which of Megatron."""

from __future__ import annotations

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemoconv.converters.bind import Space
from nemoconv.errors import UnsupportedConfig
from nemoconv.mappings.rules import (
    fused_qkv,
    gated,
    largest_power_of_two_divisor,
    padded_vocab_size,
    same,
    vocabulary,
)
from nemoconv.mappings.sizes import attention_sizes
from nemoconv.tensors.stored import Extent, contiguous_strides

CONFIG = {
    "num_attention_heads": 6,
    "num_query_groups": 3,
    "num_layers": 2,
    "hidden_size": 5,
    "ffn_hidden_size": 7,
    "kv_channels": 4,
    "vocab_size": 9,
}


def gathered(rule, hf, config=CONFIG, **changes):
    """The Megatron tensor that the rule makes of Hugging Face arrays, element by element."""
    sizes = {**attention_sizes(config), **changes}
    space = Space(rule, sizes)
    flat = numpy.full(space.shape, -1)
    for part, array in zip(rule.parts, hf, strict=True):
        assert part.shape(sizes) == array.shape
        values = array.reshape(-1)
        extent = Extent(None, 0, (0,) * array.ndim, array.shape, contiguous_strides(array.shape, 1))
        for box in space.place(part, sizes, extent):
            for index in numpy.ndindex(box.shape):
                at = tuple(a + b for a, b in zip(box.start, index, strict=True))
                assert flat[at] == -1
                flat[at] = values[box.offset + sum(i * s for i, s in zip(index, box.strides, strict=True))]
    return flat.reshape(rule.view.shape(sizes))


def numbered(*shapes):
    """Arrays whose elements are all different."""
    found, first = [], 0
    for shape in shapes:
        count = int(numpy.prod(shape))
        found.append(numpy.arange(first, first + count).reshape(shape))
        first += count
    return found


def interleave(q, k, v, groups, heads_per_group, head_dim):
    """Megatron's order, written as a loop over rows."""
    rows = []
    for group in range(groups):
        for head in range(heads_per_group):
            for d in range(head_dim):
                rows.append(q[(group * heads_per_group + head) * head_dim + d])
        for d in range(head_dim):
            rows.append(k[group * head_dim + d])
        for d in range(head_dim):
            rows.append(v[group * head_dim + d])
    return numpy.array(rows)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("heads", "groups"), [(6, 3), (4, 4), (6, 1), (8, 2)])
def test_fused_qkv(bias, heads, groups):
    config = {**CONFIG, "num_attention_heads": heads, "num_query_groups": groups}
    hidden = () if bias else (5,)
    q, k, v = numbered((heads * 4, *hidden), (groups * 4, *hidden), (groups * 4, *hidden))
    found = gathered(fused_qkv("qkv", "q", "k", "v", bias=bias), (q, k, v), config)
    assert (found == interleave(q, k, v, groups, heads // groups, 4)).all()
    assert found.shape == (groups * (heads // groups + 2) * 4, *hidden)


@pytest.mark.parametrize("bias", [False, True])
def test_gated(bias):
    hidden = () if bias else (5,)
    gate, up = numbered((7, *hidden), (7, *hidden))
    found = gathered(gated("fc1", "gate", "up", bias=bias), (gate, up))
    rows = []
    for row in gate:
        rows.append(row.tolist())
    for row in up:
        rows.append(row.tolist())
    assert found.tolist() == rows


def test_same():
    (array,) = numbered((5, 24))
    rule = same("a", "b", "hidden (group query_head head_dim)", cut="group")
    assert (gathered(rule, (array,)) == array).all()


def test_a_vocabulary_is_padded_behind_its_rows():
    (words,) = numbered((9, 5))
    found = gathered(vocabulary("a", "b"), (words,), vocab=12)
    assert found.shape == (12, 5)
    assert (found[:9] == words).all()
    assert (found[9:] == -1).all()  # nobody writes them; the executor fills zeros


def test_heads_that_do_not_divide_into_groups():
    with pytest.raises(UnsupportedConfig) as caught:
        attention_sizes({**CONFIG, "num_attention_heads": 7})
    assert caught.value.message == "num_attention_heads=7 is not a multiple of num_query_groups=3"


def megatron_padding(vocab, divisor, tp):
    """megatron/training/tokenizer: _vocab_size_with_padding."""
    after = vocab
    multiple = divisor * tp
    while after % multiple != 0:
        after += 1
    return after


@given(st.integers(1, 3000), st.sampled_from([1, 2, 64, 128]), st.sampled_from([1, 2, 3, 4, 8]))
def test_padding_as_megatron(vocab, divisor, tp):
    assert padded_vocab_size(vocab, divisor, tp) == megatron_padding(vocab, divisor, tp)


@pytest.mark.parametrize(
    ("vocab", "tp", "padded"),
    [
        (128256, 1, 128256),
        (128256, 8, 128256),
        (32001, 1, 32001),
        (32001, 2, 32002),
        (32001, 8, 32008),
        (100, 8, 128),
    ],
)
def test_without_a_divisor_nothing_is_padded_that_divides(vocab, tp, padded):
    assert padded_vocab_size(vocab, None, tp) == padded


def test_largest_power_of_two_divisor():
    assert [largest_power_of_two_divisor(n) for n in (32000, 128256, 32001, 96, 1 << 20)] == [
        128,
        128,
        1,
        32,
        128,
    ]
