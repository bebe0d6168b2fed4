"""The shapes that rules come in, named as the field names them."""

from __future__ import annotations

from .hf.fields import Value
from .table import Part, Rule

When = tuple[tuple[str, Value], ...]


def same(
    nemo: str,
    hf: str,
    axes: str,
    *,
    cut: str | None = None,
    other_names: tuple[str, ...] = (),
    when: When = (),
    hf_when: When = (),
) -> Rule:
    """One tensor, the same on both sides."""
    return Rule(nemo, axes, (Part(hf, axes),), cut=cut, other_names=other_names, when=when, hf_when=hf_when)


def vocabulary(nemo: str, hf: str, *, when: When = ()) -> Rule:
    """An embedding [vocab_size, hidden_size], which Megatron may pad with rows that mean nothing."""
    part = Part(hf, "vocab hidden", (("vocab", 0, "true_vocab"),))
    return Rule(nemo, "vocab hidden", (part,), cut="vocab", when=when, pad="vocab")


def fused_qkv(
    nemo: str, q: str, k: str, v: str, *, bias: bool = False, when: When = (), hf_when: When = ()
) -> Rule:
    """Separate q, k, v <-> Megatron's grouped ``linear_qkv``.

    q    [num_attention_heads * kv_channels, hidden_size]
    k, v [num_query_groups * kv_channels, hidden_size]
    qkv  [num_query_groups * (heads_per_group + 2) * kv_channels, hidden_size]; a group holds its query
    heads, then its key head, then its value head. Biases have no hidden axis.

    Source: megatron/core/transformer/attention.py, ``get_query_key_value_tensors``.
    """
    hidden = "" if bias else " hidden"
    one = "(group head_dim)" + hidden
    parts = (
        Part(q, "(group head head_dim)" + hidden, (("head", 0, "heads_per_group"),)),
        Part(k, one, (("head", "heads_per_group", 1),)),
        Part(v, one, (("head", "value_head", 1),)),
    )
    return Rule(nemo, "(group head head_dim)" + hidden, parts, cut="group", when=when, hf_when=hf_when)


def packed_qkv(nemo: str, hf: str, *, bias: bool = False, transposed: bool = False, when: When = ()) -> Rule:
    """One tensor with all of q, then all of k, then all of v <-> the groups of :func:`fused_qkv`.

    [(num_attention_heads + 2 * num_query_groups) * kv_channels, hidden_size]; ``transposed``: [hidden_size,
    rows], as GPT-2's Conv1D has it. A bias has rows only.
    """

    def part(rows: str, heads: tuple[int | str, int | str], run: tuple[int | str, int | str]) -> Part:
        axes = rows if bias else f"hidden {rows}" if transposed else f"{rows} hidden"
        return Part(hf, axes, (("head", *heads),), ((int(transposed and not bias), *run, "qkv_rows"),))

    parts = (
        part("(group head head_dim)", (0, "heads_per_group"), (0, "q_rows")),
        part("(group head_dim)", ("heads_per_group", 1), ("q_rows", "k_rows")),
        part("(group head_dim)", ("value_head", 1), ("v_first", "k_rows")),
    )
    axes = "(group head head_dim)" + ("" if bias else " hidden")
    return Rule(nemo, axes, parts, cut="group", when=when)


def transposed(nemo: str, hf: str, rows: str, columns: str, *, cut: str) -> Rule:
    """A matrix [rows, columns] in Megatron that Hugging Face keeps as [columns, rows] (GPT-2's Conv1D)."""
    return Rule(nemo, f"{rows} {columns}", (Part(hf, f"{columns} {rows}"),), cut=cut)


def gated(nemo: str, gate: str, up: str, *, bias: bool = False, when: When = (), hf_when: When = ()) -> Rule:
    """gate and up <-> ``linear_fc1``: [2 * ffn_hidden_size, hidden_size], all of gate, then all of up.

    Source: megatron/core/transformer/mlp.py, ``apply_swiglu_sharded_factory``.
    """
    axes = "ffn" if bias else "ffn hidden"
    parts = (Part(gate, axes, (("half", 0, 1),)), Part(up, axes, (("half", 1, 1),)))
    whole = "(half ffn)" + ("" if bias else " hidden")
    return Rule(nemo, whole, parts, cut="ffn", when=when, hf_when=hf_when)


def padded_vocab_size(vocab_size: int, divisor: int | None, tensor_parallel_size: int) -> int:
    """Rows that an embedding needs so that every rank holds equally many.

    Megatron pads to a multiple of ``make_vocab_size_divisible_by * tensor_parallel_size``
    (megatron/training/tokenizer, ``_vocab_size_with_padding``). Without a divisor nothing is padded
    that already divides: NeMo 2 does not pad a vocabulary that its config states.
    """
    if divisor is None:
        if vocab_size % tensor_parallel_size == 0:
            return vocab_size
        divisor = largest_power_of_two_divisor(vocab_size)
    step = divisor * tensor_parallel_size
    return -(-vocab_size // step) * step


def largest_power_of_two_divisor(vocab_size: int, limit: int = 128) -> int:
    """NeMo's ``make_vocab_size_divisible_by`` for a vocabulary: the largest power of two that divides it."""
    return min(limit, vocab_size & -vocab_size)
