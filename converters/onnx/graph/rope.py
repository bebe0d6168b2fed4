"""Rotary position embeddings: the angles of a model config, as numbers.

Source: transformers/modeling_rope_utils.py, whose order of single-precision operations is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy

from ....errors import UnsupportedConfig
from ....mappings.hf.fields import Value

Floats = numpy.ndarray[Any, numpy.dtype[numpy.float32]]


@dataclass(frozen=True, slots=True)
class Frequencies:
    """``inverse`` [dimensions / 2] are radians per token; cosines and sines are multiplied by ``factor``."""

    inverse: Floats
    factor: float = 1.0

    @property
    def dimensions(self) -> int:
        """How many elements of a head are rotated."""
        return 2 * len(self.inverse)


def frequencies(
    config: Mapping[str, Value], *, local: bool = False, dimensions: int | None = None
) -> Frequencies:
    """Those of a model config; ``local``: of the layers with a window, where these have their own base;
    ``dimensions``: of so many elements of a head, where the config's share of a head does not say it.

    Raises UnsupportedConfig for a scaling that cannot be said in a graph.
    """
    base = config["rotary_base_local"] if local else config["rotary_base"]
    if dimensions is None:
        dimensions = int(config["kv_channels"] * config.get("rotary_percent", 1.0))
    scaling = None if local else config.get("rope_scaling")
    if dimensions % 2 or not dimensions:
        raise UnsupportedConfig(f"{dimensions} elements of a head cannot be rotated in pairs")
    powers = numpy.arange(0, dimensions, 2, dtype=numpy.float32) / numpy.float32(dimensions)
    wavelengths = numpy.power(numpy.float32(base), powers)
    if scaling is None:
        return Frequencies(numpy.float32(1) / wavelengths)
    kind = scaling["rope_type"]
    if kind not in _SCALINGS:
        raise UnsupportedConfig(
            f"config.json: rope_type {kind!r} has no ONNX graph, only default, {', '.join(_SCALINGS)}",
            hint="what it computes depends on the length of each text" if kind == "dynamic" else "",
        )
    return _SCALINGS[kind](wavelengths, scaling, config)


def _linear(wavelengths: Floats, scaling: Mapping[str, Value], _config: Mapping[str, Value]) -> Frequencies:
    return Frequencies(numpy.float32(1) / wavelengths / numpy.float32(scaling["factor"]))


def _llama3(wavelengths: Floats, scaling: Mapping[str, Value], _config: Mapping[str, Value]) -> Frequencies:
    """Long waves slower by ``factor``, short ones as they are, those between mixed."""
    one, factor = numpy.float32(1), numpy.float32(scaling["factor"])
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling["original_max_position_embeddings"]
    inverse = one / wavelengths
    length = numpy.float32(2 * math.pi) / inverse
    slowed = numpy.where(length > context / low, inverse / factor, inverse)
    smooth = (numpy.float32(context) / length - numpy.float32(low)) / numpy.float32(high - low)
    mixed = (one - smooth) * slowed / factor + smooth * slowed
    between = ~(length < context / high) & ~(length > context / low)
    return Frequencies(numpy.where(between, mixed, slowed).astype(numpy.float32))


def _yarn(wavelengths: Floats, scaling: Mapping[str, Value], config: Mapping[str, Value]) -> Frequencies:
    """Frequencies that turn fast stay, slow ones are divided by ``factor``, with a ramp between."""
    dimensions, base = 2 * len(wavelengths), config["rotary_base"]
    factor = scaling["factor"]
    context = scaling.get("original_max_position_embeddings") or config["seq_length"]

    def dimension(rotations: float) -> float:
        """Where in a head a wave turns so often within the original context."""
        found: float = dimensions * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(base))
        return found

    low, high = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dimensions - 1)
    width = high - low or 0.001
    ramp = (numpy.arange(len(wavelengths), dtype=numpy.float32) - numpy.float32(low)) / numpy.float32(width)
    kept = numpy.float32(1) - numpy.clip(ramp, 0, 1)
    slowed = numpy.float32(1) / (numpy.float32(factor) * wavelengths)
    inverse = slowed * (numpy.float32(1) - kept) + numpy.float32(1) / wavelengths * kept
    return Frequencies(inverse.astype(numpy.float32), _yarn_factor(scaling))


def _yarn_factor(scaling: Mapping[str, Value]) -> float:
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    factor, one, all_dimensions = scaling["factor"], scaling.get("mscale"), scaling.get("mscale_all_dim")
    if one and all_dimensions:
        return yarn_scale(factor, one) / yarn_scale(factor, all_dimensions)
    return yarn_scale(factor, 1.0)


def yarn_scale(factor: float, weight: float) -> float:
    """By what YaRN makes attention sharper for a context that is ``factor`` times as long."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


_SCALINGS: Final[Mapping[str, Callable[..., Frequencies]]] = {
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
