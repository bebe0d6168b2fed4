"""Layouts in a file: YAML with megatron-core's words, and its notation for stages.

docs/layout.md describes both. Source of the notation: ``PipelineParallelLayerLayout`` of
megatron/core/transformer/pipeline_parallel_layer_layout.py, 0.16.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..errors import LayoutError, UsageError
from ..formats.text import plain_yaml
from ..tensors.layout import Layout

MAX_LAYERS = 1 << 14
_SIZES = tuple(f.name for f in fields(Layout) if f.name.endswith(("_size", "_stage")))
_FLAGS = tuple(f.name for f in fields(Layout) if f.name.startswith("account_for_"))
_RANGE = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")
_GROUP = re.compile(r"\(([^()]+)\)\*(\d+)")
_ONE = re.compile(r"([EtLm|])\*(\d+)")


def read_layout(path: str | Path, base: Layout | None = None) -> Layout:
    """The layout that a YAML file describes; what it leaves out is as in ``base``.

    Raises UsageError for a file that is not there or says what no layout can be.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    return parse_layout(plain_yaml.loads(data, str(path)), str(path), base)


def parse_layout(value: object, where: str, base: Layout | None = None) -> Layout:
    """The layout of a mapping such as ``{"pipeline_parallel_size": 2, "stages": [3, 5]}``.

    Raises UsageError that names ``where`` and the key.
    """
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: not a mapping of layout settings")
    known = (*_SIZES, *_FLAGS, "stages")
    for key in value:
        if key not in known:
            raise UsageError(f"{where}: unknown key {str(key)[:60]!r}", hint=f"known: {', '.join(known)}")
    said: dict[str, Any] = {}
    for key in _SIZES:
        if value.get(key) is not None:
            said[key] = _number(value[key], f"{where}: {key}")
    for key in _FLAGS:
        if key in value:
            if not isinstance(value[key], bool):
                raise UsageError(f"{where}: {key} is neither true nor false")
            said[key] = value[key]
    base = base or Layout()
    if said.keys() & set(_UNEVEN) or value.get("stages") is not None:
        base = replace(base, **_EVEN)
    if value.get("stages") is None:
        return _replaced(base, said, where)
    counts = _stages(value["stages"], f"{where}: stages")
    # without a word on it, every stage is a rank's
    pipeline = said.get("pipeline_parallel_size") or len(counts) // said.get(
        "virtual_pipeline_parallel_size", 1
    )
    if not pipeline or len(counts) % pipeline:
        raise UsageError(
            f"{where}: {len(counts)} stages cannot be dealt to pipeline_parallel_size={pipeline} ranks",
            hint="give as many stages as ranks, or a multiple of them for virtual stages",
        )
    said.setdefault("virtual_pipeline_parallel_size", len(counts) // pipeline)
    said |= {"pipeline_parallel_size": pipeline, "stages": tuple(counts)}
    return _replaced(base, said, where)


def _replaced(base: Layout, said: Mapping[str, Any], where: str) -> Layout:
    try:
        return replace(base, **said)
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", hint=error.hint) from None


_UNEVEN = ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage", *_FLAGS)
_EVEN: Mapping[str, Any] = {
    "stages": None,
    "num_layers_in_first_pipeline_stage": None,
    "num_layers_in_last_pipeline_stage": None,
    "account_for_embedding_in_pipeline_split": False,
    "account_for_loss_in_pipeline_split": False,
}


def _number(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1 << 20:
        raise UsageError(f"{where} is {str(value)[:40]!r}, not a positive number")
    return value


def _stages(value: object, where: str) -> list[int]:
    """Layers of each stage, from counts, ranges of layers, or Megatron's notation."""
    if isinstance(value, str):
        return parse_notation(value, where)
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where} is neither a list nor text")
    counts: list[int] = []
    for position, item in enumerate(value):
        if isinstance(item, int) and not isinstance(item, bool) and 0 <= item <= MAX_LAYERS:
            counts.append(item)
            continue
        found = _RANGE.fullmatch(item.strip()) if isinstance(item, str) else None
        if found is None:
            raise UsageError(
                f"{where}: stage {position} is {str(item)[:40]!r}",
                hint='give each stage as a number of layers, or as the layers it holds, such as "4-7"',
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if first != sum(counts) or not first <= last <= MAX_LAYERS:
            raise UsageError(
                f"{where}: stage {position} holds layers {first}-{last}, but layer {sum(counts)} is next",
                hint="stages hold runs of layers in the order of the model",
            )
        counts.append(last - first + 1)
    return counts


def parse_notation(text: str, where: str = "stages") -> list[int]:
    """Decoder layers of each stage of ``"Ett|(tt|)*3,tL"``: E embedding, t layer, L loss, | next stage.

    Raises UsageError for another notation, LayoutError for a multi-token-prediction layer (m).
    """
    text = "".join(text.split()).replace(",", "")
    for pattern in (_GROUP, _ONE):
        unrolled = 0
        for found in pattern.finditer(text):
            unrolled += len(found[1]) * int(found[2][:9])
        if unrolled > 8 * MAX_LAYERS:
            raise UsageError(f"{where}: stands for more than {MAX_LAYERS:,} layers")
        text = pattern.sub(lambda found: found[1] * int(found[2]), text)
    unknown = set(text) - set("EtLm|")
    if unknown:
        raise UsageError(
            f"{where}: {min(unknown)!r} in the stages is unknown",
            hint="E is the embedding, t a layer, L the loss, | the next stage; (tt|)*3 repeats",
        )
    if "m" in text:
        raise LayoutError(f"{where}: layers that predict more tokens (m) are not converted")
    stages = text.split("|")
    flat = "".join(stages)
    if not flat.startswith("E") or not flat.endswith("L") or flat.count("E") + flat.count("L") != 2:
        raise UsageError(f"{where}: the stages do not begin with E and end with L, each once")
    if not stages[0].startswith("E") or not stages[-1].endswith("L"):
        raise UsageError(f"{where}: the embedding (E) is in the first stage, the loss (L) in the last")
    return [stage.count("t") for stage in stages]


def notation(layout: Layout, num_layers: int) -> str:
    """Megatron's notation of the stages; the inverse of :func:`parse_notation`."""
    stages = ["t" * len(layers) for layers in layout.layers(num_layers)]
    stages[0] = "E" + stages[0]
    stages[-1] += "L"
    return "|".join(stages)
