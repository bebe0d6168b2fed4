"""Strided copies between local tensors, and the messages and rounds in which they travel."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

from ..tensors.boxes import Shape
from ..tensors.strided import Loop, loops
from .placement import Local, PlacedBox


class Move(NamedTuple):
    """A strided copy: loops are (count, byte stride in the source, byte stride in the target)."""

    source: Local
    target: Local
    source_offset: int
    target_offset: int
    axes: tuple[Loop, ...]
    itemsize: int
    nbytes: int

    @property
    def source_is_run(self) -> bool:
        """Whether the source's bytes lie in the order in which they travel, without gaps."""
        return _is_run([(count, step) for count, step, _ in self.axes], self.itemsize)

    @property
    def target_is_run(self) -> bool:
        return _is_run([(count, step) for count, _, step in self.axes], self.itemsize)


def _is_run(axes: list[tuple[int, int]], itemsize: int) -> bool:
    expected = itemsize
    for count, step in reversed(axes):
        if step != expected:
            return False
        expected *= count
    return True


@dataclass(slots=True)
class Message:
    """Moves between this rank and ``peer`` that travel together. ``direct``: this end needs no staging."""

    peer: int
    nbytes: int
    direct: bool
    moves: list[Move] = field(default_factory=list)


@dataclass(slots=True)
class Round:
    """What this rank does between two waits."""

    sends: list[Message] = field(default_factory=list)
    receives: list[Message] = field(default_factory=list)
    local: list[Move] = field(default_factory=list)

    @property
    def send_nbytes(self) -> int:
        """Bytes of the staging buffer for what is sent."""
        return sum(aligned(message.nbytes) for message in self.sends if not message.direct)

    @property
    def receive_nbytes(self) -> int:
        return sum(aligned(message.nbytes) for message in self.receives if not message.direct)


def aligned(nbytes: int) -> int:
    """Messages begin at multiples of 512 bytes, so that copies may use wide elements."""
    return -(-nbytes // 512) * 512


@dataclass(slots=True)
class Schedule:
    """The rounds of one rank. Every rank has as many, some of them empty.

    ``kept`` are local tensors that are the same before and after on this rank: (source, target).
    """

    rounds: list[Round]
    kept: list[tuple[Local, Local]] = field(default_factory=list)

    @property
    def sent_nbytes(self) -> int:
        return sum(message.nbytes for round_ in self.rounds for message in round_.sends)

    @property
    def received_nbytes(self) -> int:
        return sum(message.nbytes for round_ in self.rounds for message in round_.receives)

    @property
    def local_nbytes(self) -> int:
        return sum(move.nbytes for round_ in self.rounds for move in round_.local)


def move_between(source: PlacedBox, target: PlacedBox, low: Shape, shape: Shape, itemsize: int) -> Move:
    axes = loops(
        shape,
        tuple(step * itemsize for step in source.strides),
        tuple(step * itemsize for step in target.strides),
    )
    return Move(
        source.local,
        target.local,
        source.at(low) * itemsize,
        target.at(low) * itemsize,
        tuple(axes),
        itemsize,
        prod(shape) * itemsize,
    )


def is_whole(move: Move) -> bool:
    """Whether a move makes one local tensor of another just like it."""
    same = move.source.shape == move.target.shape and move.source_offset == move.target_offset == 0
    whole = move.nbytes == prod(move.source.shape) * move.itemsize
    return same and whole and move.source_is_run and move.target_is_run


def split(move: Move, limit: int) -> list[Move]:
    """The move cut along its outer loops into moves of at most ``limit`` bytes each."""
    if move.nbytes <= limit:
        return [move]
    count, a, b = move.axes[0]
    inner = move.nbytes // count
    step = max(1, limit // inner)
    parts = []
    for first in range(0, count, step):
        n = min(step, count - first)
        axes = ((n, a, b), *move.axes[1:]) if n > 1 else move.axes[1:]
        part = move._replace(
            source_offset=move.source_offset + first * a,
            target_offset=move.target_offset + first * b,
            axes=axes,
            nbytes=n * inner,
        )
        parts += split(part, limit)
    return parts
