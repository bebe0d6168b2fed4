"""Experts of megatron-core's first grouped GEMM (``GroupedMLP``): all of a layer's in two matrices.

``weight1`` [hidden_size, num_moe_experts * rows] and ``weight2`` [num_moe_experts * columns, hidden_size] are
what the kernel reads as [num_moe_experts, hidden_size, rows] and [num_moe_experts, columns, hidden_size]: an
expert is a run of bytes, and in it every matrix is turned. Only the state dicts of ranks have them, since
torch_dist keeps these experts as it keeps all others. Source: megatron/core/transformer/moe/experts.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from ...errors import CorruptCheckpoint
from ...tensors.stored import Extent, StoredTensor, contiguous_strides

_GROUPED: Final = re.compile(r"(.+\.mlp\.)experts\.weight([12])")
_MAX_EXPERTS: Final = 1 << 16


def is_grouped(key: str) -> bool:
    """Whether a key of a state dict holds the experts of a layer all together."""
    return _GROUPED.fullmatch(key) is not None


def split_grouped(tensors: Mapping[str, StoredTensor], where: str) -> dict[str, StoredTensor]:
    """The tensors of a rank, those of such experts one by one, under the names of sequential experts.

    Raises CorruptCheckpoint where the router beside them contradicts their shapes.
    """
    split: dict[str, StoredTensor] = {}
    for key, tensor in tensors.items():
        found = _GROUPED.fullmatch(key)
        if found is None:
            split[key] = tensor
            continue
        router = tensors.get(found[1] + "router.weight")
        split.update(_experts(found[1], int(found[2]), tensor, router, where))
    return split


def _experts(
    prefix: str, number: int, tensor: StoredTensor, router: StoredTensor | None, where: str
) -> Iterator[tuple[str, StoredTensor]]:
    if router is None or len(router.shape) != 2 or len(tensor.shape) != 2:
        raise CorruptCheckpoint(f"{where}: {tensor.name} has no router beside it that counts its experts")
    (count, hidden), (held, inner) = router.shape, tensor.shape[:: 1 if number == 1 else -1]
    if held != hidden or not 0 < count <= _MAX_EXPERTS or inner % count:
        raise CorruptCheckpoint(
            f"{where}: {tensor.name} has shape {list(tensor.shape)}, which is not of {count} experts of "
            f"hidden size {hidden}"
        )
    size = tensor.dtype.itemsize
    strides = contiguous_strides(tensor.shape, size)
    if [extent.strides for extent in tensor.extents] != [strides]:
        raise CorruptCheckpoint(f"{where}: {tensor.name} does not lie in one run, as its kernel needs it")
    (whole,) = tensor.extents
    rows = inner // count
    # stored [hidden, rows] or [columns, hidden], named [rows, hidden] or [hidden, columns]
    shape, width = ((rows, hidden), rows) if number == 1 else ((hidden, rows), hidden)
    for expert in range(count):
        name = f"{prefix}experts.local_experts.{expert}.linear_fc{number}.weight"
        offset = whole.offset + expert * rows * hidden * size
        extent = Extent(whole.file, offset, (0, 0), shape, (size, width * size))
        yield name, StoredTensor(name, tensor.dtype, shape, (extent,))
