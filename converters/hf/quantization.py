"""Quantized Hugging Face weights: which tensors are codes and scales, by what config.json says of them.

Sources: transformers/integrations (``finegrained_fp8.py``, ``fbgemm_fp8.py``, ``mxfp4.py``) and
compressed-tensors (``compressors/quantized_compressors``) for names and arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from ...errors import CorruptCheckpoint, UnsupportedConfig, some
from ...mappings.hf.fields import Value
from ...tensors.dtypes import BY_NAME, DType
from ...tensors.stored import StoredTensor

KEY: Final = "quantization_config"
#: scales of activations: they belong to the quantized computation, not to the weights
_ACTIVATION_SCALES: Final = ("input_scale", "input_scale_ub", "activation_scale")
_FP8: Final = ("float8_e4m3fn", "float8_e5m2")
#: types that scales come in
SCALE_TYPES: Final = ("float32", "bfloat16", "float16", "float8_e8m0fnu", "uint8")
#: what quantized weights are decoded to, unless another type is asked for
DEFAULT_TYPE: Final = BY_NAME["bfloat16"]

Tensors = dict[str, StoredTensor]


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the weights of a checkpoint are quantized.

    ``scale`` is the suffix of a weight's name that gives its scales; ``block`` the rows and columns that
    share one, None where the shape of the scales tells: one for all, or one a row.
    """

    kind: str
    scale: str = ""
    block: tuple[int, int] | None = None

    def describe(self) -> str:
        return f"{self.kind} in blocks of {self.block[0]} x {self.block[1]}" if self.block else self.kind


def find(config: Mapping[str, Value], where: str) -> Quantization | None:
    """What config.json says, None when it says nothing. Raises UnsupportedConfig, naming the kind, for
    quantizations that are not understood."""
    said = config.get(KEY)
    if said is None:
        return None
    kind = said.get("quant_method") if isinstance(said, dict) else None
    reader = _KINDS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise UnsupportedConfig(
            f"{where}: {KEY} is set: the weights are quantized by {kind!r}, which is not supported",
            hint=f"convert the unquantized model; supported: {some(sorted(_KINDS))}",
        )
    return reader(said, where)


def _fine_grained_fp8(said: Mapping[str, Value], where: str) -> Quantization:
    if said.get("fmt") not in (None, "e4m3", "e5m2"):
        raise UnsupportedConfig(f"{where}: {KEY}.fmt={said['fmt']!r} is neither 'e4m3' nor 'e5m2'")
    size = said.get("weight_block_size")
    return Quantization("fp8", "_scale_inv", None if size is None else _block(size, where))


def _compressed(said: Mapping[str, Value], where: str) -> Quantization:
    blocks: set[tuple[int, int] | None] = set()
    groups = said.get("config_groups")
    wrong = [f"{key}={said[key]!r}" for key in ("kv_cache_scheme", "transform_config") if said.get(key)]
    if said.get("format") != "float-quantized" or not isinstance(groups, dict):
        wrong.append(f"format={said.get('format')!r}")
    else:
        for group in groups.values():
            weights = group.get("weights") if isinstance(group, dict) else None
            told = weights if isinstance(weights, dict) else {}
            strategy, size = told.get("strategy"), told.get("block_structure")
            plain = told.get("num_bits") == 8 and told.get("type") == "float" and told.get("symmetric", True)
            if not plain or strategy not in ("tensor", "channel", "block") or told.get("actorder"):
                wrong.append(f"weights={told!r}")
            blocks.add(_block(size, where) if strategy == "block" else None)
    if wrong or len(blocks) != 1:
        raise UnsupportedConfig(
            f"{where}: {KEY} of 'compressed-tensors' with {some(wrong) or 'several kinds of groups'} is not "
            "supported, only symmetric FP8 weights (format 'float-quantized')",
            hint="convert the unquantized model",
        )
    return Quantization("compressed-tensors FP8", "_scale", blocks.pop())


def _block(size: Value, where: str) -> tuple[int, int]:
    if not isinstance(size, list) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
        raise UnsupportedConfig(f"{where}: {KEY} has the block size {size!r}, not two positive numbers")
    return size[0], size[1]


_KINDS: Final[Mapping[str, Callable[[Mapping[str, Value], str], Quantization]]] = {
    "fp8": _fine_grained_fp8,
    "fbgemm_fp8": lambda _said, _where: Quantization("fbgemm_fp8", "_scale"),
    "compressed-tensors": _compressed,
    "mxfp4": lambda _said, _where: Quantization("mxfp4"),
}


@dataclass(frozen=True, slots=True)
class Decoded:
    """Tensors under their plain names; how many of them were codes, and how many scales of activations were
    left out."""

    tensors: Tensors
    count: int
    unused: int
    dtype: DType

    def notes(self, how: Quantization) -> list[str]:
        said = [f"{self.count:,} tensors quantized by {how.describe()} are decoded to {self.dtype}"]
        return [*said, f"{self.unused:,} scales of activations not converted"] if self.unused else said


def decode(tensors: Tensors, how: Quantization, where: str, dtype: DType | None = None) -> Decoded:
    """The tensors with quantized ones decoded, to bfloat16, or where another ``dtype`` is asked for to
    float32, from which it is reached in one more rounding.

    Raises CorruptCheckpoint for codes without scales, or scales that do not fit them.
    """
    dtype = DEFAULT_TYPE if dtype in (None, DEFAULT_TYPE) else BY_NAME["float32"]
    found = dict(tensors)
    plain = _mxfp4(found, where, dtype) if how.kind == "mxfp4" else _fp8(found, how, where, dtype)
    clash = sorted(plain.keys() & found.keys())
    if clash:
        raise CorruptCheckpoint(f"{where}: both quantized and plain: {some(clash)}")
    found |= plain
    dropped = [f"{name.removesuffix('weight')}{scale}" for name in plain for scale in _ACTIVATION_SCALES]
    unused = sum(found.pop(name, None) is not None for name in dropped)
    return Decoded(found, len(plain), unused, dtype)


def _fp8(tensors: Tensors, how: Quantization, where: str, dtype: DType) -> Tensors:
    from ...resharding.decode.quantized import (  # numpy, which few checkpoints need here
        BlockScaledFP8,
        decoded,
    )

    result: Tensors = {}
    for name in [name for name, tensor in tensors.items() if tensor.dtype.name in _FP8]:
        codes, scales = tensors.pop(name), tensors.pop(name + how.scale, None)
        if scales is None:
            raise CorruptCheckpoint(
                f"{where}: {name} is {codes.dtype}, but there is no {name + how.scale}",
                hint="without its scales nobody knows the weight; finish the download",
            )
        _check_scales(scales, where)
        block = how.block or _block_of(codes, scales, where)
        result[name] = decoded(name, BlockScaledFP8(codes, scales, block), dtype)
    return result


def _block_of(codes: StoredTensor, scales: StoredTensor, where: str) -> tuple[int, int]:
    """All rows and columns for one scale, one row for a scale a row."""
    if len(codes.shape) == 2:
        rows, columns = codes.shape
        if scales.shape in ((), (1,), (1, 1)):
            return rows, columns
        if scales.shape in ((rows,), (rows, 1)):
            return 1, columns
    raise CorruptCheckpoint(
        f"{where}: {codes.name} has shape {list(codes.shape)}, its scales {list(scales.shape)}: neither one "
        "for all nor one a row"
    )


def _mxfp4(tensors: Tensors, where: str, dtype: DType) -> Tensors:
    """``*_blocks`` [E, out, in / 32, 16] and ``*_scales`` are the transpose of what a plain file holds,
    [E, in, out]: transformers transposes after decoding."""
    from ...resharding.decode.quantized import MXFP4, decoded

    result: Tensors = {}
    for name in [name for name in tensors if name.endswith("_blocks")]:
        plain = name.removesuffix("_blocks")
        codes, scales = tensors.pop(name), tensors.pop(plain + "_scales", None)
        if scales is None:
            raise CorruptCheckpoint(f"{where}: there is {name}, but no {plain}_scales")
        if codes.dtype.name != "uint8" or scales.dtype.itemsize != 1:
            raise CorruptCheckpoint(
                f"{where}: {name} is {codes.dtype}, its scales {scales.dtype}, not both bytes"
            )
        result[plain] = decoded(plain, MXFP4(codes, scales), dtype, transposed=True)
    return result


def _check_scales(scales: StoredTensor, where: str) -> None:
    if scales.dtype.name not in SCALE_TYPES:
        raise CorruptCheckpoint(
            f"{where}: {scales.name} is {scales.dtype}, and scales are {some(SCALE_TYPES)}"
        )
