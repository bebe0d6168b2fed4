"""How many cores this process may use: those it is bound to, and no more than its control group pays for."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/")


def usable_cores(root: Path = _ROOT) -> int:
    """Cores for our threads. In a container the machine's number would start more than get a turn.

    ``root`` is where ``proc`` and ``sys`` are mounted.
    """
    # macOS has no sched_getaffinity
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(root)
    return count if quota is None else max(1, min(count, quota))


def _quota(root: Path) -> int | None:
    """The least number of whole cores that a control group above this process is given; None: all."""
    found = []
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            folder = root / "sys/fs/cgroup"
            if controllers:  # version 1 has a tree for each controller
                if "cpu" not in controllers.split(","):
                    continue
                folder /= "cpu"
            # a container may see its own group as the root of the tree
            place = Path(name.lstrip("/"))
            for group in (place, *place.parents):
                found += [
                    quota for quota in (_version_2(folder / group), _version_1(folder / group)) if quota
                ]
    return min(found, default=None)


def _version_2(group: Path) -> int | None:
    with suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return None if quota == "max" else -(-int(quota) // int(period))
    return None


def _version_1(group: Path) -> int | None:
    with suppress(OSError, ValueError):
        quota = int((group / "cpu.cfs_quota_us").read_text())
        return None if quota <= 0 else -(-quota // int((group / "cpu.cfs_period_us").read_text()))
    return None
