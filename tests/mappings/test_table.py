"""Tables: what a malformed one is refused for, how ranks cut tensors, and that tables never change."""

from __future__ import annotations

import copy
import dataclasses

import numpy
import pytest

from nemoconv.errors import LayoutError
from nemoconv.mappings import load_table
from nemoconv.mappings.hf.fields import read_config
from nemoconv.mappings.rules import fused_qkv, gated, same
from nemoconv.mappings.sizes import attention_sizes
from nemoconv.mappings.table import Part, Rule, Table, check_layout, holes
from nemoconv.tensors.layout import Layout

LLAMA = load_table("llama")


def table(*rules, **changes):
    return Table("toy", "ToyForCausalLM", (), rules, "m", "Model", "Config", **changes)


def sizes(**changes):
    config = {
        "num_attention_heads": 8,
        "num_query_groups": 4,
        "num_layers": 2,
        "hidden_size": 6,
        "ffn_hidden_size": 8,
        "kv_channels": 3,
        "vocab_size": 16,
        **changes,
    }
    return attention_sizes(config)


def test_holes():
    assert holes("a.{layer}.b.{expert}") == ("layer", "expert")
    assert holes("a.b") == ()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([same("a.{layer}", "b", "hidden")], "toy: b and a.{layer} have other holes"),
        ([same("a.{layer}", "b.{expert}", "hidden")], "toy: b.{expert} and a.{layer} have other holes"),
        ([same("a", "b", "hidden", other_names=("c.{layer}",))], "toy: c.{layer} and a have other holes"),
        ([same("a", "b", "hidden"), same("c", "b", "hidden")], "toy: b is named by two rules"),
        ([same("a", "b", "hidden"), same("a", "c", "hidden")], "toy: a is named by two rules"),
        ([same("a", "b", "hidden", other_names=("a",))], "toy: a is named by two rules"),
        ([Rule("a", "half hidden", (Part("b", "hidden"),))], "toy: b does not place {'half'}"),
        ([Rule("a", "hidden", (Part("b", "hidden ffn"),))], "toy: b does not place {'ffn'}"),
        ([same("a", "b", "hidden", cut="ffn")], "toy: a cuts or pads an axis it lacks"),
        ([Rule("a", "hidden", (Part("b", "hidden"),), pad="vocab")], "toy: a cuts or pads an axis it lacks"),
        ([same("a", "b", "(hidden")], "unbalanced brackets or repeated factor in '(hidden'"),
    ],
)
def test_a_malformed_table_is_refused(rules, message):
    with pytest.raises(ValueError, match=".+") as caught:
        table(*rules)
    assert str(caught.value) == message


def test_two_rules_may_name_a_tensor_under_other_conditions():
    one, other = (("moe", True),), (("moe", False),)
    table(same("a", "b", "hidden", when=one), same("a", "c", "hidden", when=other))


def test_everything_is_frozen():
    for value, name in (
        (LLAMA, "rules"),
        (LLAMA.rules[0], "nemo"),
        (LLAMA.rules[0].parts[0], "hf"),
        (LLAMA.fields[0], "hf"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, ())
    assert isinstance(LLAMA.rules, tuple)
    assert isinstance(LLAMA.fields, tuple)
    hash(LLAMA)


# --- fragments against hand-written loops ----------------------------------------------------------


def cut(rule, array, size, layout):
    """What each rank holds, in the order in which it is stored."""
    ranks = [[] for _ in range(layout.tensor_parallel_size)]
    for rank, start, shape in rule.fragments(size, layout):
        box = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
        ranks[rank].append(array[box])
    return ranks


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_qkv_is_cut_by_groups(tp):
    """Megatron's ColumnParallelLinear: equal runs of rows, each a whole number of groups."""
    size = sizes()
    rows = 4 * (2 + 2) * 3
    array = numpy.arange(rows * 6).reshape(rows, 6)
    rule = fused_qkv("qkv", "q", "k", "v")
    for rank, pieces in enumerate(cut(rule, array, size, Layout(tp))):
        assert len(pieces) == 1
        expected = []
        for group in range(rank * 4 // tp, (rank + 1) * 4 // tp):
            for row in range(group * 12, group * 12 + 12):
                expected.append(array[row].tolist())
        assert pieces[0].tolist() == expected


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_gated_ranks_hold_a_slice_of_gate_and_a_slice_of_up(tp, bias):
    size = sizes()
    shape = (16,) if bias else (16, 6)
    array = numpy.arange(numpy.prod(shape)).reshape(shape)
    gate, up = array[:8], array[8:]
    for rank, pieces in enumerate(cut(gated("fc1", "g", "u", bias=bias), array, size, Layout(tp))):
        first, last = rank * 8 // tp, (rank + 1) * 8 // tp
        assert [piece.tolist() for piece in pieces] == [gate[first:last].tolist(), up[first:last].tolist()]


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_proj_is_cut_by_columns(tp):
    """RowParallelLinear: each rank takes the columns of its own heads."""
    size = sizes()
    rule = next(rule for rule in LLAMA.rules if rule.nemo.endswith("linear_proj.weight"))
    array = numpy.arange(6 * 24).reshape(6, 24)
    for rank, pieces in enumerate(cut(rule, array, size, Layout(tp))):
        assert len(pieces) == 1
        assert pieces[0].tolist() == [row[rank * 24 // tp : (rank + 1) * 24 // tp] for row in array.tolist()]


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_fc2_vocabulary_and_norm(tp):
    size = sizes()
    by_end = {rule.nemo.rpartition("layers.{layer}.")[2]: rule for rule in LLAMA.rules}
    fc2 = numpy.arange(6 * 8).reshape(6, 8)
    found = cut(by_end["mlp.linear_fc2.weight"], fc2, size, Layout(tp))
    assert [[p.tolist() for p in pieces] for pieces in found] == [
        [fc2[:, r * 8 // tp : (r + 1) * 8 // tp].tolist()] for r in range(tp)
    ]
    words = numpy.arange(16 * 6).reshape(16, 6)
    found = cut(by_end["embedding.word_embeddings.weight"], words, size, Layout(tp))
    assert [[p.tolist() for p in pieces] for pieces in found] == [
        [words[r * 16 // tp : (r + 1) * 16 // tp].tolist()] for r in range(tp)
    ]
    norm = list(by_end["decoder.final_layernorm.weight"].fragments(size, Layout(tp)))
    assert norm == [(0, (0,), (6,))]  # every rank holds the whole; it is stored once


# --- layouts that do not fit -----------------------------------------------------------------------


def config(**changes):
    hf = {
        "model_type": "llama",
        "num_hidden_layers": 6,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "vocab_size": 100,
        **changes,
    }
    return read_config(LLAMA.fields, hf)[0]


@pytest.mark.parametrize(
    ("layout", "changes", "message", "hint"),
    [
        (
            Layout(3),
            {},
            "cannot cut decoder.layers.*.self_attention.linear_qkv.weight into "
            "tensor_parallel_size=3: num_query_groups=4",
            "tensor parallel sizes that divide it: 1, 2, 4",
        ),
        (
            Layout(3),
            {"num_attention_heads": 8, "num_key_value_heads": 2},
            "cannot cut decoder.layers.*.self_attention.linear_qkv.weight into "
            "tensor_parallel_size=3: num_query_groups=2",
            "tensor parallel sizes that divide it: 1, 2; that share its heads: 4",
        ),
        (
            Layout(4),
            {"intermediate_size": 42},
            "cannot cut decoder.layers.*.mlp.linear_fc1.weight into "
            "tensor_parallel_size=4: ffn_hidden_size=42",
            "tensor parallel sizes that divide it: 1, 2, 3, 6, 7, 14, 21, 42",
        ),
        (
            Layout(1, 4),
            {},
            "cannot cut 6 layers into pipeline_parallel_size=4",
            "use one of: 1, 2, 3, 6",
        ),
    ],
)
def test_a_layout_that_does_not_divide_lists_those_that_do(layout, changes, message, hint):
    model = config(**changes)
    with pytest.raises(LayoutError) as caught:
        check_layout(LLAMA, model, attention_sizes(model), layout)
    assert caught.value.message == message
    assert caught.value.hint == hint


def test_a_vocabulary_that_does_not_divide_is_no_reason_to_refuse_it_is_padded():
    model = config(vocab_size=101)
    check_layout(LLAMA, model, attention_sizes(model), Layout(4, 2))


# --- instances -------------------------------------------------------------------------------------


def names(model):
    return [i.nemo for i in LLAMA.instances(model, attention_sizes(model))]


def test_instances_come_in_model_order_with_the_stage_of_their_layer():
    model = config(num_hidden_layers=2)
    found = list(LLAMA.instances(model, attention_sizes(model)))
    assert found[0].nemo == "embedding.word_embeddings.weight"
    assert [i.nemo for i in found][-2:] == ["decoder.final_layernorm.weight", "output_layer.weight"]
    assert (found[0].layer, found[-1].layer) == (-1, 2)
    layered = [i for i in found if i.index]
    assert [i.layer for i in layered] == [0] * 6 + [1] * 6
    assert layered[-1].nemo == "decoder.layers.1.mlp.linear_fc2.weight"


def test_a_tied_model_does_not_change_the_table_for_an_untied_one():
    before = copy.deepcopy(LLAMA.rules)
    untied = names(config())
    assert "output_layer.weight" not in names(config(tie_word_embeddings=True))
    assert names(config()) == untied
    assert "output_layer.weight" in untied
    assert before == LLAMA.rules
    assert load_table("llama") is LLAMA


def test_biases_of_one_kind_are_absent_from_hugging_face_for_the_other():
    model = config(attention_bias=True)
    found = {i.nemo: i.in_hf for i in LLAMA.instances(model, attention_sizes(model)) if "bias" in i.nemo}
    assert found["decoder.layers.0.self_attention.linear_qkv.bias"] is True
    assert found["decoder.layers.0.mlp.linear_fc1.bias"] is False
    assert not any("bias" in name for name in names(config()))
