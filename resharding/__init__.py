"""The engine: boxes of tensors, parallel layouts, plans of byte moves and their execution.

    from nemoconv.resharding import Layout, reshard_state_dict

    shard = reshard_state_dict(shard, source=Layout(2), target=Layout(1, 2), config=config)

Importing this package imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemoconv.resharding.live import placements, reshard_state_dict
    from nemoconv.resharding.live_placement import Placement
    from nemoconv.resharding.live_plan import LivePlan, plan_reshard
    from nemoconv.resharding.live_reshard import LiveReshard
    from nemoconv.tensors.layout import Layout

_LAZY = {
    "Layout": "layout",
    "LivePlan": "live_plan",
    "LiveReshard": "live_reshard",
    "Placement": "live_placement",
    "placements": "live",
    "plan_reshard": "live_plan",
    "reshard_state_dict": "live",
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
        raise AttributeError(f"module 'nemoconv.resharding' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"nemoconv.resharding.{_LAZY[name]}"), name)
