"""A checkpoint to be: what a format gives to be filled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..resharding.plan import Payload
from ..tensors.layout import Layout
from .base import Checkpoint, Request, Side
from .bind import Bound


class Sink(ABC):
    """A checkpoint to be: first every place is reserved, then payloads are filled, then it is finished."""

    side: ClassVar[Side]
    layout: Layout = Layout()

    #: tensors reserved so far, as this format counts them
    tensor_count: int = 0

    #: the writer takes along whatever the source holds besides weights: a change of layout, not of format
    keeps_everything: ClassVar[bool] = False

    #: what a table says Megatron stores under two names is written under both
    stores_again: ClassVar[bool] = True

    def begin(self, bound: Bound) -> None:  # noqa: B027 - most need no word of it
        """Told, before anything is reserved, which of the source's tensors belong to which rule."""

    def companions(self) -> Mapping[str, tuple[Checkpoint, Sink]]:
        """What of the source's companions is written, too: where each set is read, and the writer that
        gives it a place."""
        return {}

    def file_of(self, rank: int) -> str | None:
        """The file that holds what a rank will read, where each has its own."""
        return None

    def files_of(self, rank: int) -> Sequence[str]:
        """All files that hold what a rank will read, where each has its own."""
        name = self.file_of(rank)
        return [] if name is None else [name]

    def notes(self) -> Sequence[str]:
        """What a report should say of how this is written."""
        return ()

    @abstractmethod
    def reserve(self, requests: Sequence[Request]) -> Sequence[Payload]:
        """A place in a file for each request. Nothing is written."""

    @abstractmethod
    def finish(self) -> None:
        """Write what frames the payloads, whose checksums are known now; what makes it loadable last."""
