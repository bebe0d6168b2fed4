"""Strided copies between tensors in memory, on any device, bit for bit whatever the element type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..tensors.strided import Loop
from .moves import Message, Move, aligned

if TYPE_CHECKING:
    import torch

_ALIGNMENT = 16
#: where bytes go, and where they come from
Pair = tuple["torch.Tensor", "torch.Tensor"]


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor as one axis of uint8, in the same memory."""
    import torch

    return tensor.detach().reshape(-1).view(torch.uint8)


def _element(width: int) -> torch.dtype:
    """A type of ``width`` bytes that a copy moves without looking at the bits."""
    import torch

    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
    return kinds[width]


def _view(
    flat: torch.Tensor, offset: int, shape: Sequence[int], strides: Sequence[int], width: int
) -> torch.Tensor:
    """A view of bytes as elements of ``width`` bytes; offset and strides in bytes."""
    import torch

    at = (flat.storage_offset() + offset) // width
    steps = [stride // width for stride in strides]
    empty = torch.empty(0, dtype=_element(width), device=flat.device)
    return empty.set_(flat.untyped_storage(), at, list(shape), steps)


def strided_views(
    target: torch.Tensor,
    target_offset: int,
    source: torch.Tensor,
    source_offset: int,
    axes: Sequence[Loop],
    itemsize: int,
) -> Pair:
    """(target, source) views of flat tensors of bytes; loops are (count, byte stride in source, in target).

    They have the widest elements that all strides and addresses allow: two-byte elements one by one reach
    a fraction of what the memory can do.
    """
    outer, run = list(axes), itemsize
    if outer and outer[-1][1:] == (itemsize, itemsize):
        run = outer.pop()[0] * itemsize
    if not outer:
        return target[target_offset:][:run], source[source_offset:][:run]
    bits = run | source_offset | target_offset | _ALIGNMENT
    for flat in (source, target):
        bits |= flat.data_ptr() | int(flat.storage_offset())
    for _, a, b in outer:
        bits |= a | b
    width = bits & -bits
    shape = [*(count for count, _, _ in outer), run // width]
    into = _view(target, target_offset, shape, [*(b for _, _, b in outer), width], width)
    out_of = _view(source, source_offset, shape, [*(a for _, a, _ in outer), width], width)
    return into, out_of


def _packed(move: Move, *, source: bool) -> list[Loop]:
    """The loops of a move with one end packed: the source's, if ``source``, else the target's."""
    step, axes = move.itemsize, []
    for count, a, b in reversed(move.axes):
        axes.append((count, step, b) if source else (count, a, step))
        step *= count
    return axes[::-1]


def merged(axes: Sequence[Loop]) -> list[Loop]:
    """Loops with neighbours joined where both sides run on."""
    result: list[Loop] = []
    for count, a, b in axes:
        if result and result[-1][1] == a * count and result[-1][2] == b * count:
            result[-1] = (result[-1][0] * count, a, b)
        else:
            result.append((count, a, b))
    return result


def local(move: Move, source: torch.Tensor, target: torch.Tensor) -> Pair:
    """The views of a move between two tensors of this rank."""
    return strided_views(target, move.target_offset, source, move.source_offset, move.axes, move.itemsize)


def packs(message: Message, sources: Sequence[torch.Tensor], buffer: torch.Tensor, at: int) -> list[Pair]:
    """Views that put a message, from its moves' source tensors, into ``buffer`` at byte ``at``."""
    found = []
    for move, source in zip(message.moves, sources, strict=True):
        axes = merged(_packed(move, source=False))
        found.append(strided_views(buffer, at, source, move.source_offset, axes, move.itemsize))
        at += aligned(move.nbytes)
    return found


def unpacks(message: Message, targets: Sequence[torch.Tensor], buffer: torch.Tensor, at: int) -> list[Pair]:
    """Views that put a message, at byte ``at`` of ``buffer``, into its moves' target tensors."""
    found = []
    for move, target in zip(message.moves, targets, strict=True):
        axes = merged(_packed(move, source=True))
        found.append(strided_views(target, move.target_offset, buffer, at, axes, move.itemsize))
        at += aligned(move.nbytes)
    return found
