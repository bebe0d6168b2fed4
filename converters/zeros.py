"""Tensors that Megatron has and Hugging Face leaves out, because the config says that they are zero."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import CorruptCheckpoint
from . import manifest
from .step import Binding, Step


class Zeros(Step):
    """What is left out must hold zeros."""

    def check(self, bound: Binding, *, rewrites: bool) -> Iterator[str]:
        from ..resharding.equal import first_nonzero

        kept = rewrites or bound.checkpoint.side == "hf"
        for instance in bound.instances if not kept else ():
            if instance.in_hf or instance.rule.idle:
                continue
            tensor = bound.stored(bound.held_as(instance.nemo) or instance.nemo)
            place = first_nonzero(tensor)
            if place is not None:
                raise CorruptCheckpoint(
                    f"{bound.checkpoint.path}: {tensor.name} should be zero, as {manifest.NAME} says, "
                    f"but is not at {place}",
                    hint=f"if the model was trained further, remove {manifest.NAME}",
                )
        yield from ()
