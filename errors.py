"""The error family: one class for each exit code of the command line, each with a one-line message.

A message says what is wrong and where (file, tensor, offset); ``hint`` says what to do about it.
Text that comes out of a checkpoint is hostile until shown otherwise, so every message is passed
through :func:`printable` before anyone sees it.
"""

from __future__ import annotations


def printable(text: str, limit: int = 2000) -> str:
    """``text`` on one line, with control and unpaired surrogate characters escaped, cut at ``limit``."""
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return clean if len(clean) <= limit else clean[: limit - 3] + "..."


def some(names: object, limit: int = 10) -> str:
    """Up to ``limit`` of ``names`` joined by commas, then how many more there are."""
    listed = [str(name) for name in names]  # type: ignore[attr-defined]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


class NemoconvError(Exception):
    """Whatever this package raises on purpose.

    ``hint`` (what to do) is shown after the message; ``exit_code`` is the status of the command.
    """

    exit_code = 70

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = printable(message)
        self.hint = printable(hint)
        super().__init__(f"{self.message}; {self.hint}" if hint else self.message)

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class UsageError(NemoconvError, ValueError):
    """Arguments that contradict each other or lie outside their range."""

    exit_code = 2


class CorruptCheckpoint(NemoconvError, ValueError):
    """Input that is incomplete, truncated, contradicts itself or fails a checksum."""

    exit_code = 3


class UnsafeCheckpoint(NemoconvError, ValueError):
    """Input that asks for something no checkpoint needs: code, paths outside itself, bombs."""

    exit_code = 4


class UnsupportedError(NemoconvError, ValueError):
    """Sound input that this version cannot convert without changing what it means."""

    exit_code = 5


class UnsupportedFormat(UnsupportedError):
    """Not a checkpoint format that any converter recognizes, or one that cannot be written."""


class UnsupportedArchitecture(UnsupportedError):
    """No mapping table for this model."""


class UnsupportedConfig(UnsupportedError):
    """A config key or value that changes the mathematics and has no counterpart on the other side."""


class MappingError(UnsupportedError):
    """Tensors without a rule, or rules without their tensors."""


class LayoutError(UnsupportedError):
    """Parallel sizes that do not divide the model."""


class OutputError(NemoconvError, OSError):
    """The output exists already, cannot be written, or does not fit."""

    exit_code = 6


class Unreachable(NemoconvError, OSError):
    """A hub or server that cannot be reached, or that does not let this user in."""

    exit_code = 7
