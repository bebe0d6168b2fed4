"""A checkpoint format: the contract of a plug-in, and what it may be told.

Formats are registered in modules that import nothing heavy: whoever asks for their names, options or whether
they know a path gets no reader and no writer with them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from ..stores.output import OutputDirectory
    from ..tensors.layout import Layout
    from .base import Checkpoint, Model, Side
    from .options import Option, When
    from .sink import Sink

#: options by their names, as they were given; a format takes its own with :meth:`Option.of`
Options = Mapping[str, Any]


class Format(ABC):
    """A kind of folder or file (entry point group ``nemoconv.converters``)."""

    name: ClassVar[str]
    title: ClassVar[str]
    side: ClassVar[Side]
    #: other names that people have for it
    aliases: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[bool] = True
    #: writes any tensors under the source's own names: no mapping table takes part
    plain: ClassVar[bool] = False
    #: pipeline stages may hold different numbers of layers, or several runs of them
    uneven_stages: ClassVar[bool] = False
    #: what its reader and its writer may be told
    options: ClassVar[tuple[Option, ...]] = ()
    #: what ``recognizes`` looks for, for the message when nothing fits
    looks_for: ClassVar[str]

    @abstractmethod
    def recognizes(self, path: Path) -> bool:
        """Whether ``path`` looks like this format, from names alone."""

    @abstractmethod
    def open(self, path: Path, options: Options) -> Checkpoint:
        """Open it, reading headers only. ``options`` are those of its own that are for reading."""

    def output(self, target: str | Path, *, overwrite: bool = False) -> OutputDirectory:
        """Where a checkpoint of this format is staged: a directory, unless the format is one file."""
        from ..stores.output import OutputDirectory

        return OutputDirectory(target, overwrite=overwrite)

    def create(self, output: OutputDirectory, model: Model, layout: Layout, options: Options) -> Sink:
        """A writer of this format into ``output``, cut by ``layout``; ``options`` are its own for writing.

        ``model.sizes`` has the padded vocabulary of this layout.
        """
        raise UsageError(f"{self.name} cannot be written")

    def rewrite(
        self, source: Checkpoint, output: OutputDirectory, model: Model, layout: Layout, options: Options
    ) -> Sink | None:
        """A writer of ``source``, which is of this format, in another layout, with everything else as it is;
        None for a format that has no parallel layout. ``options`` may say ``drop_optimizer``."""
        return None

    def options_for(self, when: When) -> Iterator[Option]:
        """Its options for reading or for writing."""
        return (option for option in self.options if option.when == when)
