"""Who sends which bytes to whom, in which round: the same decisions on every rank, from the plan alone.

A move is a strided copy between two local tensors. What travels between two ranks goes in messages: a
large move by itself, small ones together. Bytes of a message are the elements of its moves in the C
order of their boxes, so an end whose bytes lie in that order already needs no staging buffer. Rounds
bound what is staged: all ranks go through the same rounds, in each of which a rank stages at most a
quarter of two buckets for sending and as much for receiving, twice, as two rounds overlap; half of that
where sources are released.

Sources are given up on the way in an order that keeps memory level. A tensor is made whole and given up
whole: what a rank makes before it can give up as much is memory that it needs beside the larger of its two
sides. Every rank works out the order for all of them, from the plan alone.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

from ..tensors.boxes import Shape
from .moves import Message, Move, Round, Schedule, aligned, is_whole, move_between, split
from .placement import Local, PlacedBox
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


#: moves up to this size share a message
SMALL_NBYTES = 1 << 20
#: a rank's bytes in one round, staged or not, per direction, as a multiple of a bucket
_WIRE_BUCKETS = 4
#: staged messages of one round at least, so that a rank may hear from several others
_MESSAGES = 4


class _Loads:
    """How full the rounds of one rank are in one direction."""

    __slots__ = ("_staged", "_staged_limit", "_wire", "_wire_limit", "first")

    def __init__(self, staged_limit: int, wire_limit: int) -> None:
        self._staged: list[int] = []
        self._wire: list[int] = []
        self._staged_limit, self._wire_limit = staged_limit, wire_limit
        #: every round before this one is full
        self.first = 0

    def fits(self, number: int, staged: int, wire: int) -> bool:
        """Whether a message fits a round; into an empty one every message does."""
        if number >= len(self._wire) or not self._wire[number]:
            return True
        fits = self._staged[number] + staged <= self._staged_limit
        return fits and self._wire[number] + wire <= self._wire_limit

    def add(self, number: int, staged: int, wire: int) -> None:
        while len(self._wire) <= number:
            self._staged.append(0)
            self._wire.append(0)
        self._staged[number] += staged
        self._wire[number] += wire
        while self.first < len(self._wire) and self._wire[self.first] >= self._wire_limit // 2:
            self.first += 1


class _Pair:
    """Small moves that wait to travel together from one rank to another."""

    __slots__ = ("moves", "nbytes")

    def __init__(self) -> None:
        self.moves: list[Move] = []
        self.nbytes = 0


def schedule(
    plan: LivePlan,
    rank: int,
    itemsizes: Mapping[str, int],
    *,
    bucket_nbytes: int,
    direct: bool = True,
    release: bool = False,
    keep: bool = False,
    staging: bool = True,
) -> Schedule:
    """The part of ``rank`` in a plan whose transfers have elements of these sizes (in bytes).

    ``direct=False`` stages every message, as an all-to-all needs it. ``release``: sources are given up on
    the way, so what makes targets waits until there is room for them. ``keep``: what stays whole on its
    rank is handed over instead of copied.
    ``staging=False``: every move is a message of one round, for ranks that read each other's memory.
    """
    options = _Options(direct, release, keep, staging)
    return _Scheduler(plan, rank, bucket_nbytes, options).run(itemsizes)


class _Options(NamedTuple):
    """Arguments of :func:`schedule`."""

    direct: bool
    release: bool
    keep: bool
    staging: bool


class _Scheduler:
    def __init__(self, plan: LivePlan, rank: int, bucket_nbytes: int, options: _Options) -> None:
        self.plan, self.rank = plan, rank
        self.direct, self.release, self.keep, self.staging = options
        self.bucket_nbytes = bucket_nbytes
        # where sources go, half of two buckets is room for targets that come before as much has gone
        self.staged_limit = bucket_nbytes // 4 if options.release else bucket_nbytes // 2
        self.wire_limit = bucket_nbytes if options.release else _WIRE_BUCKETS * bucket_nbytes
        self.message_limit = max(512, self.staged_limit // _MESSAGES)
        self.sending, self.receiving = (
            [_Loads(self.staged_limit, self.wire_limit) for _ in range(plan.world_size)] for _ in range(2)
        )
        self.sent = [0] * plan.world_size
        self.pairs: dict[tuple[int, int], _Pair] = {}
        self.rounds: list[Round] = [Round()]
        self.locals: list[tuple[Move, int]] = []
        self.first_round: dict[tuple[str, tuple[int, str]], int] = {}
        self.kept: list[tuple[Local, Local]] = []
        self.last = 0
        #: of the group that is being placed: the first round it may use, and the last that it does
        self.floor = self.group_last = 0
        self.together = True

    def run(self, itemsizes: Mapping[str, int]) -> Schedule:
        if self.release:
            self._run_level(itemsizes)
        for transfer in () if self.release else self.plan.transfers:
            self._transfer(transfer, itemsizes)
        for source, target in self.pairs:
            self._flush(source, target)
        self._place_locals()
        self._extend(self.last)
        return Schedule(self.rounds, self.kept)

    def _transfer(self, transfer: Transfer, itemsizes: Mapping[str, int]) -> None:
        itemsize = itemsizes[transfer.name]
        for i, j, low, shape in transfer.overlaps:
            self._overlap(transfer.sources[i], transfer.targets[j], low, shape, itemsize)

    def _run_level(self, itemsizes: Mapping[str, int]) -> None:
        """All transfers, each where memory has room for it."""
        found = groups(self.plan, itemsizes, keep=self.keep)
        room = 2 * self.bucket_nbytes - 4 * self.staged_limit
        levels = Levels(found, room)
        for group in ordered(found, room):
            busy = max((self.receiving[rank].first for rank in group.made), default=0)
            self.floor = self.group_last = levels.start(group, busy, self.last)
            sizes = [prod(o[3]) * itemsizes[t.name] for t in group.transfers for o in t.overlaps]
            self.together = max(sizes) <= SMALL_NBYTES  # else a small move would hold up a large tensor
            for transfer in group.transfers:
                self._transfer(transfer, itemsizes)
            levels.add(group, self.floor, self.group_last)
            self.last = max(self.last, self.floor)

    def _overlap(self, source: PlacedBox, target: PlacedBox, low: Shape, shape: Shape, itemsize: int) -> None:
        nbytes = prod(shape) * itemsize
        move: Move | None = None
        for receiver in target.ranks:
            if receiver in source.ranks:
                if receiver == self.rank:
                    move = move or move_between(source, target, low, shape, itemsize)
                    self._stay(source, target, move)
                continue
            sender = min(source.ranks, key=self.sent.__getitem__)
            self.sent[sender] += nbytes
            if move is None:
                move = move_between(source, target, low, shape, itemsize)
            self._send(sender, receiver, move)

    def _stay(self, source: PlacedBox, target: PlacedBox, move: Move) -> None:
        if self.keep and is_whole(move):
            self.kept.append((source.local, target.local))
            return
        self.locals.append((move, self.floor))

    def _send(self, source: int, target: int, move: Move) -> None:
        if not self.staging:
            if source == self.rank:
                self.rounds[0].sends.append(Message(target, move.nbytes, True, [move]))
            if target == self.rank:
                self.rounds[0].receives.append(Message(source, move.nbytes, True, [move]))
            return
        if move.nbytes > SMALL_NBYTES or not self.together:
            self._alone(source, target, move)
            return
        pair = self.pairs.setdefault((source, target), _Pair())
        pair.moves.append(move)
        pair.nbytes += aligned(move.nbytes)
        if pair.nbytes + SMALL_NBYTES > min(self.message_limit, 16 * SMALL_NBYTES):
            self._flush(source, target)

    def _flush(self, source: int, target: int) -> None:
        pair = self.pairs[source, target]
        if len(pair.moves) == 1:
            self._alone(source, target, pair.moves[0])
        elif pair.moves:
            self._message(source, target, pair.moves, pair.nbytes)
        pair.moves, pair.nbytes = [], 0

    def _alone(self, source: int, target: int, move: Move) -> None:
        """Send a move by itself, in pieces that fit a round."""
        unstaged = self.direct and move.source_is_run and move.target_is_run
        for part in split(move, self.wire_limit // _MESSAGES if unstaged else self.message_limit):
            self._message(source, target, [part], part.nbytes)

    def _message(self, source: int, target: int, moves: list[Move], nbytes: int) -> None:
        alone = self.direct and len(moves) == 1
        sends_direct, takes_direct = alone and moves[0].source_is_run, alone and moves[0].target_is_run
        out, into = self.sending[source], self.receiving[target]
        staged_out = 0 if sends_direct else aligned(nbytes)
        staged_in = 0 if takes_direct else aligned(nbytes)
        number = max(out.first, into.first, self.floor)
        while not (out.fits(number, staged_out, nbytes) and into.fits(number, staged_in, nbytes)):
            number += 1
        out.add(number, staged_out, nbytes)
        into.add(number, staged_in, nbytes)
        self.last = max(self.last, number)
        self.group_last = max(self.group_last, number)
        if source == self.rank:
            self._extend(number)
            self.rounds[number].sends.append(Message(target, nbytes, sends_direct, moves))
            for move in moves:
                self.first_round.setdefault(("source", move.source.key), number)
        if target == self.rank:
            self._extend(number)
            self.rounds[number].receives.append(Message(source, nbytes, takes_direct, moves))
            for move in moves:
                self.first_round.setdefault(("target", move.target.key), number)

    def _extend(self, number: int) -> None:
        while len(self.rounds) <= number:
            self.rounds.append(Round())

    def _place_locals(self) -> None:
        total = sum(move.nbytes for move, _ in self.locals)
        share = total / max(1, self.last)  # nothing in the last round: nobody waits for it there
        done = 0
        for move, about in self.locals:
            if self.release:
                leaving = self.first_round.get(("source", move.source.key), about)
                number = self.first_round.get(("target", move.target.key), leaving)
            else:
                number = int(done / share) if share else 0
                done += move.nbytes
            self._extend(number)
            self.rounds[number].local.append(move)
            self.last = max(self.last, number)
