"""Change how a model is cut while it is in memory, between running processes.

    from nemoconv.live import Layout, reshard_state_dict

    shard = reshard_state_dict(shard, source=Layout(2), target=Layout(1, 2), config=config)

Importing this package imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..tensors.layout import Layout
    from .placement import Placement, placements
    from .plan import LivePlan, plan_reshard
    from .reshard import LiveReshard, reshard_state_dict

_LAZY = {
    "Layout": "tensors.layout",
    "LivePlan": "live.plan",
    "LiveReshard": "live.reshard",
    "Placement": "live.placement",
    "placements": "live.placement",
    "plan_reshard": "live.plan",
    "reshard_state_dict": "live.reshard",
}

__all__ = [
    "Layout",
    "LivePlan",
    "LiveReshard",
    "Placement",
    "placements",
    "plan_reshard",
    "reshard_state_dict",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'nemoconv.live' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"nemoconv.{_LAZY[name]}"), name)
