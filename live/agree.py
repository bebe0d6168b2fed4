"""Agreement between ranks: whatever is wrong on one of them is raised on all, before anything is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import MappingError, UnsupportedError, some
from .placement import Local
from .plan import LivePlan

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

#: a rank's state when it enters a step, the larger the worse
READY, CHANGED, WRONG = 0, 1, 2

Key = tuple[int, str]


class Memory(NamedTuple):
    """Where ranks of the same host find this one's tensors: (handle of an allocation, offset in it).

    ``problem``: why they cannot be found.
    """

    host: str
    places: dict[Key, tuple[bytes, int]]
    problem: str = ""


@dataclass(slots=True)
class Offer:
    """What a rank says of itself: what is wrong, and the element types of what it gives and fills.

    Types have torch's names. ``memory``: where ranks read one another's.
    """

    digest: int
    problems: list[str] = field(default_factory=list)
    given: dict[Key, str] = field(default_factory=dict)
    filled: dict[Key, str] = field(default_factory=dict)
    memory: Memory | None = None

    def packed(self) -> tuple[Any, ...]:
        return self.digest, self.problems, _pack(self.given), _pack(self.filled), self.memory

    @classmethod
    def of(cls, packed: tuple[Any, ...]) -> Offer:
        digest, problems, given, filled, memory = packed
        return cls(digest, problems, _unpack(given), _unpack(filled), memory)


def _pack(types: Mapping[Key, str]) -> dict[str, list[Key]]:
    found: dict[str, list[Key]] = {}
    for key, name in types.items():
        found.setdefault(name, []).append(key)
    return found


def _unpack(packed: Mapping[str, list[Key]]) -> dict[Key, str]:
    return {key: name for name, keys in packed.items() for key in keys}


def agree(
    offer: Offer, *, changed: bool, device: torch.device, group: ProcessGroup | None
) -> list[Offer] | None:
    """Exchange where all ranks stand. One small all-reduce when nothing is new.

    Returns None when all are as they were, else the offers of all ranks. Raises MappingError on every
    rank when something is wrong on one, or when the ranks follow different plans.
    """
    import torch
    import torch.distributed as dist

    state = WRONG if offer.problems else CHANGED if changed else READY
    said = torch.tensor([state, offer.digest, -offer.digest], dtype=torch.int64, device=device)
    dist.all_reduce(said, dist.ReduceOp.MAX, group=group)
    worst, most, least = said.tolist()
    if worst == READY and most == -least:
        return None
    answers: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(answers, offer.packed(), group=group)
    offers = [Offer.of(answer) for answer in answers]
    problems = [f"rank {rank}: {what}" for rank, other in enumerate(offers) for what in other.problems]
    if problems:
        raise MappingError(some(problems))
    if most != -least:
        ours = [rank for rank, other in enumerate(offers) if other.digest != offers[0].digest]
        raise MappingError(
            f"ranks {some(ours)} reshard by another plan than rank 0",
            hint="pass the same layouts, table, config and ranks everywhere",
        )
    return offers


def agree_on_memory(problems: Sequence[str]) -> None:
    """Raise UnsupportedError where some rank, by number, has a problem with others' memory."""
    said = [f"rank {rank}: {problem}" for rank, problem in enumerate(problems) if problem]
    if said:
        raise UnsupportedError(some(said), hint='use transport="p2p"')


def agree_on_success(problem: str, *, device: torch.device, group: ProcessGroup | None) -> None:
    """Raise UnsupportedError on all ranks if one of them has a problem. One small all-reduce if none has."""
    import torch
    import torch.distributed as dist

    said = torch.tensor([bool(problem)], dtype=torch.int64, device=device)
    dist.all_reduce(said, dist.ReduceOp.MAX, group=group)
    if said.item():
        problems: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(problems, problem, group=group)
        agree_on_memory(problems)


def settle_types(plan: LivePlan, offers: list[Offer]) -> dict[str, str]:
    """The element type of every transfer, the same for all who give and fill it.

    Raises MappingError, on all ranks alike, where they differ.
    """
    found: dict[str, str] = {}
    for transfer in plan.transfers:
        types: dict[str, tuple[int, Local]] = {}
        for piece in transfer.sources:
            for rank in piece.ranks:
                types.setdefault(offers[rank].given[piece.local.key], (rank, piece.local))
        for piece in transfer.targets:
            for rank in piece.ranks:
                name = offers[rank].filled.get(piece.local.key)
                if name is not None:
                    types.setdefault(name, (rank, piece.local))
        if len(types) > 1:
            raise MappingError(f"{transfer.name}: {_differing(types.items())}")
        # without a source (zeros where the other side has nothing) it is what most are
        found[transfer.name] = next(iter(types), "")
    known = Counter(filter(None, found.values())).most_common(1)
    usual = known[0][0] if known else "bfloat16"
    return {name: kind or usual for name, kind in found.items()}


def _differing(types: Iterable[tuple[str, tuple[int, Local]]]) -> str:
    return ", ".join(f"{local.name} on rank {rank} is {name}" for name, (rank, local) in types)
