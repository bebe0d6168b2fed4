"""The order in which tensors change hands when sources are given up on the way, so that memory stays level.

A tensor is made whole and given up whole: what a rank makes before it can give up as much is memory that it
needs beside the larger of its two sides. Every rank works out the order for all of them, from the plan alone.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from .moves import is_whole, move_between
from .plan import LivePlan, Transfer

#: a tensor on a rank, of the source ("s") or the target
_Node = tuple[str, int, tuple[int, str]]


@dataclass(slots=True)
class Group:
    """Transfers that share tensors, and the bytes of tensors that each rank makes and gives up for them."""

    transfers: list[Transfer] = field(default_factory=list)
    made: Counter[int] = field(default_factory=Counter)
    freed: Counter[int] = field(default_factory=Counter)


def groups(plan: LivePlan, itemsizes: Mapping[str, int], *, keep: bool) -> list[Group]:
    """All transfers with something to move. ``keep``: a tensor that stays whole on its rank costs nothing."""
    found: dict[int, Group] = {}
    owner: dict[_Node, int] = {}
    merged: dict[int, int] = {}

    def root(number: int) -> int:
        while number in merged:
            number = merged[number]
        return number

    for number, transfer in enumerate(plan.transfers):
        if not transfer.overlaps:
            continue
        group = found[number] = Group([transfer])
        itemsize = itemsizes[transfer.name]
        kept = _kept(transfer, itemsize) if keep else set()
        for side, pieces, total in (
            ("s", transfer.sources, group.freed),
            ("t", transfer.targets, group.made),
        ):
            for piece in pieces:
                for rank in piece.ranks:
                    node = side, rank, piece.local.key
                    if node not in owner:
                        owner[node] = number
                        total[rank] += 0 if node in kept else prod(piece.local.shape) * itemsize
                    elif root(owner[node]) != root(number):
                        merged[root(number)] = root(owner[node])
    for number in sorted(merged):
        into = found[root(number)]
        other = found.pop(number)
        into.transfers += other.transfers
        into.made.update(other.made)
        into.freed.update(other.freed)
    return list(found.values())


def _kept(transfer: Transfer, itemsize: int) -> set[_Node]:
    """The tensors that stay whole on their rank."""
    found: set[_Node] = set()
    for i, j, low, shape in transfer.overlaps:
        source, target = transfer.sources[i], transfer.targets[j]
        if source.local.shape != target.local.shape or prod(shape) != prod(source.local.shape):
            continue
        both = set(source.ranks) & set(target.ranks)
        if both and is_whole(move_between(source, target, low, shape, itemsize)):
            found |= {("s", rank, source.local.key) for rank in both}
            found |= {("t", rank, target.local.key) for rank in both}
    return found


def ordered(found: Sequence[Group], slack: int) -> list[Group]:
    """The groups so that, if each followed the one before, no rank would need much more than ``slack`` bytes
    beyond the larger of its sides. Groups of like size between the same ranks keep their order, and some of
    them go together."""
    over = _surplus(found)
    waiting: dict[tuple[object, ...], deque[Group]] = {}
    for group in found:
        size = max(group.made.values(), default=0).bit_length()
        waiting.setdefault((tuple(group.made), tuple(group.freed), size), deque()).append(group)

    def cost(key: tuple[object, ...]) -> tuple[int, int]:
        group = waiting[key][0]
        most = max((over[rank] + nbytes for rank, nbytes in group.made.items()), default=0)
        then = (over[rank] + nbytes - group.freed[rank] for rank, nbytes in group.made.items())
        return max(most, slack), max(then, default=0)

    result: list[Group] = []
    while waiting:
        key = min(waiting, key=cost)
        taken = 0
        while waiting[key] and taken <= slack // 4:
            group = waiting[key].popleft()
            result.append(group)
            taken += max(group.made.values(), default=0)
            for rank in group.made.keys() | group.freed.keys():
                over[rank] += group.made[rank] - group.freed[rank]
        if not waiting[key]:
            del waiting[key]
    return result


def _surplus(found: Iterable[Group]) -> dict[int, int]:
    """What each rank holds at first, less the larger of its sides."""
    made, freed = Counter[int](), Counter[int]()
    for group in found:
        made.update(group.made)
        freed.update(group.freed)
    return {rank: min(0, freed[rank] - made[rank]) for rank in made.keys() | freed.keys()}


class Levels:
    """How much memory every rank holds in every round, beyond the larger of its two sides.

    A rank may hold ``slack`` bytes, or as much as the largest group makes there, which it has to anyway.
    """

    def __init__(self, found: Sequence[Group], slack: int) -> None:
        self._over = {rank: [nbytes] for rank, nbytes in _surplus(found).items()}
        self._slack = dict.fromkeys(self._over, slack)
        for group in found:
            for rank, nbytes in group.made.items():
                self._slack[rank] = max(self._slack[rank], nbytes)

    def start(self, group: Group, first: int, last: int) -> int:
        """The first round, from ``first`` on, in which all ranks have room for what they make; if none has,
        the one with the most room. By two rounds after ``last``, all is given up that was to be till then.
        """
        end = max(first, last + 2)
        ranks = [(self._until(rank, end), nbytes - self._slack[rank]) for rank, nbytes in group.made.items()]
        most = [-(1 << 62)] * len(ranks)
        best, least = end, 1 << 62
        for number in range(end, first - 1, -1):
            for at, (levels, beyond) in enumerate(ranks):
                most[at] = max(most[at], levels[number] + beyond)
            worst = max(0, max(most, default=0))
            if worst <= least:
                best, least = number, worst
        return best

    def add(self, group: Group, first: int, last: int) -> None:
        """The group's tensors are made for round ``first`` and given up after round ``last``, when the next
        round has already begun."""
        for rank, nbytes in group.made.items():
            levels = self._until(rank, first)
            for number in range(first, len(levels)):
                levels[number] += nbytes
        for rank, nbytes in group.freed.items():
            levels = self._until(rank, last + 2)
            for number in range(last + 2, len(levels)):
                levels[number] -= nbytes

    def _until(self, rank: int, number: int) -> list[int]:
        levels = self._over[rank]
        levels.extend(levels[-1:] * (number + 1 - len(levels)))
        return levels
