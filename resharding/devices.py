"""Where a plan is carried out: on the host's processor or on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    from .execute import Limits
    from .plan import Plan
    from .worker import CastReport

Execute = Callable[["Plan", "Limits", Callable[[int], None]], "CastReport"]


def check_device(device: str) -> None:
    """Raise UsageError unless this machine has the device: "cpu" or "cuda"."""
    if device == "cpu":
        return
    if device != "cuda":
        raise UsageError(f"unknown device {device!r}", hint="cpu or cuda")
    from ..extras import import_extra

    if not import_extra("torch", "--device cuda").cuda.is_available():
        raise UsageError("there is no CUDA device", hint="leave out --device cuda")


def executor(device: str) -> Execute:
    """What carries out a plan on a device; all of them write the same bytes."""
    if device == "cuda":
        from . import execute_cuda

        return execute_cuda.execute
    from . import execute

    return execute.execute
