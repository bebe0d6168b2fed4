"""Whether a norm's weight can be had back exactly from what an exporter stored: the weight plus 1.

In general it cannot: float32 rounds the sum. But a weight that was bfloat16 or float16 has few bits, and
often only one number of that type gives the stored sum. Then that number is the weight.
"""

from __future__ import annotations

from typing import Any

import numpy

from nemoconv.formats.dtypes import DType
from nemoconv.formats.tensors import StoredTensor

#: bytes of a norm's weight that are looked at
_MOST = 1 << 22
_BITS = {"bfloat16": numpy.uint16, "float16": numpy.uint16}


def is_exact(stored: StoredTensor, original: DType | None) -> bool:
    """Whether exactly one tensor of type ``original`` gives ``stored`` (float32) when 1 is added to it.

    The sum may have been made in float32 only: where all of ``stored`` are numbers of type ``original``, it
    may have been rounded to that, and nothing is proved.
    """
    (extent,) = stored.extents
    if original is None or original.name not in _BITS or stored.dtype.name != "float32":
        return False
    if not 0 < stored.nbytes <= _MOST or len(stored.shape) != 1:
        return False
    held = numpy.empty(stored.nbytes, numpy.uint8)
    extent.file.pread_into(held.data, extent.offset)
    sums = held.view(numpy.float32)
    kind = original.numpy()
    if not numpy.isfinite(sums).all() or (_rounded(sums, kind) == sums).all():
        return False
    found = (sums.astype(numpy.float64) - 1).astype(kind)
    bits = found.view(_BITS[original.name])
    beside = (_sum((bits + numpy.uint16(step)).view(kind)) for step in (1, 0xFFFF))
    return bool((_sum(found) == sums).all() and all((other != sums).all() for other in beside))


def _rounded(values: numpy.ndarray[Any, Any], kind: Any) -> numpy.ndarray[Any, Any]:
    return values.astype(kind).astype(numpy.float32)


def _sum(weights: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    return weights.astype(numpy.float32) + numpy.float32(1)
