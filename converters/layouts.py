"""The layout that is asked for: sizes, a file, or what the source has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ..errors import UsageError
from ..formats.text import plain_yaml
from ..resharding.layout_file import parse_layout
from ..tensors.layout import Layout, even
from .options import LAYOUT

_SUFFIX: Final = re.compile(r"-tp\d+-pp\d+(-vpp\d+)?(-ep\d+)?(-etp\d+)?(-uneven)?$")
_SIZES: Final = tuple(option for option in LAYOUT if option.kind == "number")


def asked_sizes(options: Mapping[str, Any]) -> dict[str, int]:
    """The parallel sizes among ``options``. Raises UsageError for what is no size."""
    found = {option.name: option.check(options.get(option.name)) for option in _SIZES}
    return {name: size for name, size in found.items() if size is not None}


def settle_layout(base: Layout, sizes: Mapping[str, Any], said: Layout | str | Path | None) -> Layout:
    """The layout asked for: sizes, then the file, then what the source has.

    How layers are dealt unevenly is the source's only while the number of stages stays.
    """
    if isinstance(said, Layout):
        return replace(said, **sizes)
    where, value = "layout", {}
    if said is not None:
        where = str(said)
        try:
            value = plain_yaml.loads_mapping(Path(said).read_bytes(), where)
        except OSError as error:
            raise UsageError(f"{where}: cannot be read ({error.strerror})") from None
    asked: dict[str, Any] = {**value, **sizes}
    pipeline = asked.get("pipeline_parallel_size") or base.pipeline_parallel_size
    virtual = asked.get("virtual_pipeline_parallel_size") or base.virtual_pipeline_parallel_size
    if pipeline == 1 and "virtual_pipeline_parallel_size" not in asked:
        virtual = 1
    if (pipeline, virtual) != (base.pipeline_parallel_size, base.virtual_pipeline_parallel_size):
        base = replace(base, virtual_pipeline_parallel_size=1, **even())
        if asked.get("stages") is None:
            asked["virtual_pipeline_parallel_size"] = virtual
    return parse_layout(asked, where, base)


def default_target(
    source: str | Path, layout: Layout, layers: str | None = None, stage: int | None = None
) -> Path:
    """A sibling of the source named after the layout: ``model-tp2-pp1``."""
    path = Path(source).resolve()
    suffix = path.suffix if path.is_file() else ""
    stem = _SUFFIX.sub("", path.name.removesuffix(suffix))
    parts = [f"tp{layout.tensor_parallel_size}", f"pp{layout.pipeline_parallel_size}"]
    if layout.virtual_pipeline_parallel_size > 1:
        parts.append(f"vpp{layout.virtual_pipeline_parallel_size}")
    if layout.expert_parallel_size > 1:
        parts.append(f"ep{layout.expert_parallel_size}")
    if layout.expert_tensor_parallel_size is not None:
        parts.append(f"etp{layout.expert_tensor_parallel_size}")
    even = Layout(
        layout.tensor_parallel_size,
        layout.pipeline_parallel_size,
        layout.expert_parallel_size,
        layout.virtual_pipeline_parallel_size,
        layout.expert_tensor_parallel_size,
    )
    if layout != even:
        parts.append("uneven")
    if layers is not None:
        parts.insert(0, "layers" + re.sub(r"[^\d,-]", "", layers))
    if stage is not None:
        parts.insert(0, f"stage{stage}")
    return path.parent / ("-".join([stem, *parts]) + suffix)
