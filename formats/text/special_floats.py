"""Infinities and NaN in JSON, which does not have them.

Python writes them bare (``Infinity``), transformers 5 as ``{"__float__": "Infinity"}``: both are read, the
second is written, since it is JSON.
"""

from __future__ import annotations

import math
from typing import Any, Final

_TAG: Final = "__float__"
_NAMES: Final = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def untagged(value: Any) -> Any:
    """``value`` with each ``{"__float__": name}`` as the float that it means."""
    if isinstance(value, dict):
        name = value.get(_TAG)
        if len(value) == 1 and isinstance(name, str) and name in _NAMES:
            return _NAMES[name]
        return {key: untagged(inner) for key, inner in value.items()}
    return [untagged(inner) for inner in value] if isinstance(value, list) else value


def tagged(value: Any) -> Any:
    """``value`` with each float that JSON does not have as ``{"__float__": name}``."""
    if isinstance(value, float) and not math.isfinite(value):
        return {_TAG: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, dict):
        return {key: tagged(inner) for key, inner in value.items()}
    return [tagged(inner) for inner in value] if isinstance(value, list) else value
