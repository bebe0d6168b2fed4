"""Registries of converters and mapping tables: what is built in, and what entry points add.

An entry is loaded when it is asked for, so one broken plug-in stops nobody else. Only installed
packages are ever imported, never anything that a checkpoint names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from .built_in import ARCHITECTURES
from .errors import NemoconvError, UsageError

#: the origin of what this package itself registers
BUILT_IN = "nemoconv"


@dataclass(frozen=True, slots=True)
class Registration:
    """Something registered under a name: where it is from and where its object lies."""

    name: str
    origin: str
    target: str

    def load(self) -> Any:
        """Import and return the object. Raises NemoconvError naming the plug-in that fails."""
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except Exception as error:
            raise NemoconvError(
                f"the plug-in {self.name!r} of package {self.origin!r} cannot be loaded: "
                f"{type(error).__name__}: {error}",
                hint=f"repair or uninstall {self.origin}",
            ) from error


@cache
def entries(group: str) -> Mapping[str, Registration]:
    """Everything registered in ``nemoconv.<group>``, built in first.

    Raises UsageError when two packages claim one name.
    """
    built_in = {"converters": _FORMATS, "mappings": ARCHITECTURES}[group]
    found = {name: Registration(name, BUILT_IN, target) for name, target in built_in.items()}
    from importlib.metadata import entry_points

    for point in entry_points(group=f"nemoconv.{group}"):
        origin = point.dist.name if point.dist else "unknown"
        if point.name in found and found[point.name].target != point.value:
            raise UsageError(
                f"{group[:-1]} {point.name!r} is claimed by {found[point.name].origin!r} and {origin!r}",
                hint="uninstall one of them",
            )
        found[point.name] = Registration(point.name, origin, point.value)
    return found


_FORMATS: Mapping[str, str] = {
    "hf": "nemoconv.converters.hf.format:HFFormat",
    "nemo2": "nemoconv.converters.nemo2.format:NeMo2Format",
    "nemo": "nemoconv.converters.nemo1.format:NeMo1Format",
    "megatron": "nemoconv.converters.megatron.format:MegatronFormat",
    "safetensors": "nemoconv.converters.safetensors:SafetensorsFormat",
    "onnx": "nemoconv.converters.onnx.format:OnnxFormat",
    "peft": "nemoconv.converters.adapters.format:PeftFormat",
}
