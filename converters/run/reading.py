"""What a report says of how a bound checkpoint's tensors are put together, and whether ranks agree."""

from __future__ import annotations

from ...errors import CorruptCheckpoint, some
from ...tensors.stored import StoredTensor
from ..bind import Bound


def notes(bound: Bound) -> list[str]:
    """What is taken off tensors, and which replicas on other ranks than the first are not taken."""
    said = []
    if bound.shifted:
        said.append(
            f"the weights of {len(bound.shifted)} norms are kept with 1 added, for layers that do not "
            "add it; it is taken off again, in float32"
        )
    differing = sorted({copy.name for copy, first in bound.replicas() if _difference(copy, first)})
    if differing:  # NeMo's own tools take the first rank's, too
        said.append(
            f"{len(differing)} tensors that ranks should share differ between them; those of "
            f"tensor-parallel rank 0 are taken: {some(differing, 3)}"
        )
    return said


def check_replicas(bound: Bound) -> None:
    """Raise CorruptCheckpoint where ranks differ in a tensor that they should share."""
    for copy, first in bound.replicas():
        if difference := _difference(copy, first):
            raise CorruptCheckpoint(
                f"{bound.checkpoint.path}: ranks hold {copy.name} differently: {difference}"
            )


def _difference(a: StoredTensor, b: StoredTensor) -> str | None:
    from ...resharding.equal import first_difference

    if a.shape != b.shape or a.dtype != b.dtype:
        return "their shapes or dtypes differ"
    return first_difference(a, b)
