"""Some layers of a model as a model of its own: which, and whether their numbers mean anything."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from ..errors import UnsupportedConfig, UsageError
from ..mappings.hf.fields import ConfigRule
from .base import Model

_RANGE = re.compile(r"\s*(\d{1,6})(?:\s*-\s*(\d{1,6}))?\s*")
#: words in the names of settings that count layers: every n-th layer is another
_COUNTING: Final = ("pattern", "freq", "interval", "skip")


def parse_layers(text: str) -> tuple[int, ...]:
    """``"0-3,8"`` as the layers 0, 1, 2, 3 and 8. Raises UsageError for anything but layers in order."""
    chosen: list[int] = []
    for part in text.split(","):
        found = _RANGE.fullmatch(part)
        if found is None:
            raise UsageError(f"{part[:40]!r} is no layer", hint="give layers as 0-7, or as 0-3,8")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first or (chosen and first <= chosen[-1]):
            raise UsageError(f"layers {text[:60]!r} are not in order")
        chosen += range(first, last + 1)
    return tuple(chosen)


def check_alike(model: Model, chosen: Sequence[int], where: str) -> None:
    """Raise UsageError unless the model has the layers, UnsupportedConfig unless all its layers are alike:
    a layer that becomes another number must stay the same layer."""
    count = model.config["num_layers"]
    if not chosen or max(chosen) >= count:
        raise UsageError(f"{where}: has layers 0-{count - 1}, so not {max(chosen, default='none')}")
    differs = _tells_layers_apart(model)
    if differs is not None:
        raise UnsupportedConfig(
            f"{where}: {differs} tells layers apart by their numbers, so that none can be taken out",
            hint="only models whose layers are all alike can be cut short",
        )


def _single(rules: Iterable[ConfigRule]) -> Iterator[ConfigRule]:
    """The rules of single keys, those of a decoder's own config in config.json among them."""
    for rule in rules:
        if getattr(rule, "field", "") is None:
            yield from _single(getattr(rule, "rules", ()))
        else:
            yield rule


def _tells_layers_apart(model: Model) -> str | None:
    """The setting by which a layer's number decides what it does; None where all are alike."""
    config, count = model.config, model.config["num_layers"]
    if not model.table.stacked(config) or model.table.kinds is not None:
        return "the kind of each layer"
    if "encoder_num_layers" in config:
        return "encoder_num_layers, of a stack of its own,"
    for rule in _single(model.table.fields):
        set_here = [field for field in rule.fields if config.get(field) is not None]
        if "layer_types" in rule.hf_keys and set_here:
            return sorted(set_here)[0]
    for key, value in config.items():
        if isinstance(value, (list, tuple)) and len(value) == count and len(set(map(str, value))) > 1:
            return key
        if any(word in key for word in _COUNTING) and type(value) is int and value > 1:
            return key
    return None
