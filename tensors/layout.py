"""Parallel layouts: how many ways a model is cut, and which rank holds what.

The words are megatron-core's. Its rank order counts tensor parallel fastest, then what is left of data
parallel, then pipeline stages (megatron/core/parallel_state.py). Which layers a stage holds follows
``get_num_layers_to_build`` and ``get_transformer_layer_offset`` (megatron/core/transformer/) of 0.16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import accumulate
from math import lcm
from typing import Any

from ..errors import LayoutError, UsageError


@cache
def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


@dataclass(frozen=True, slots=True)
class Layout:
    """Parallel sizes, and how the layers are dealt to pipeline stages.

    With ``virtual_pipeline_parallel_size`` v, every pipeline rank holds v runs of layers, and the runs
    of all ranks take turns: "stages" below are these pp * v runs in model order.

    ``expert_tensor_parallel_size`` cuts routed experts instead of ``tensor_parallel_size``; None means
    the same. Of the ways to deal layers unevenly, only one may be used: ``stages``, the number of
    decoder layers of every stage (0 is allowed); the layers of the first or last pipeline rank, where
    the others share the rest equally; or counting the embedding or the loss as a layer.
    """

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    expert_parallel_size: int = 1
    virtual_pipeline_parallel_size: int = 1
    expert_tensor_parallel_size: int | None = None
    num_layers_in_first_pipeline_stage: int | None = None
    num_layers_in_last_pipeline_stage: int | None = None
    account_for_embedding_in_pipeline_split: bool = False
    account_for_loss_in_pipeline_split: bool = False
    stages: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for what no model could be cut by."""
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UsageError(f"{name}={value!r} is not a positive number")
        if self.expert_tensor_parallel_size == self.tensor_parallel_size:
            object.__setattr__(self, "expert_tensor_parallel_size", None)  # one way to say one thing
        if self.virtual_pipeline_parallel_size > 1 and self.pipeline_parallel_size == 1:
            raise UsageError(
                f"virtual_pipeline_parallel_size={self.virtual_pipeline_parallel_size} needs more than one "
                "pipeline stage",
                hint="give pipeline_parallel_size (--pp) as well",
            )
        counted = self.account_for_embedding_in_pipeline_split or self.account_for_loss_in_pipeline_split
        ends = (self.num_layers_in_first_pipeline_stage, self.num_layers_in_last_pipeline_stage)
        if (self.stages is not None) + counted + (ends != (None, None)) > 1:
            raise UsageError(
                "stages, layers in the first or last pipeline stage, and embedding or loss counted as "
                "layers exclude each other",
                hint="say it all with stages",
            )
        if self.stages is not None and len(self.stages) != self.num_stages:
            raise UsageError(
                f"{len(self.stages)} stages are given for pipeline_parallel_size="
                f"{self.pipeline_parallel_size} times virtual_pipeline_parallel_size="
                f"{self.virtual_pipeline_parallel_size}"
            )

    @property
    def num_stages(self) -> int:
        """Runs of layers in model order: pipeline ranks times virtual stages."""
        return self.pipeline_parallel_size * self.virtual_pipeline_parallel_size

    @property
    def tensor_parallel_size_of_experts(self) -> int:
        return self.expert_tensor_parallel_size or self.tensor_parallel_size

    @property
    def stage_size(self) -> int:
        """Ranks of one pipeline stage: the fewest that both dense and expert cuts divide."""
        experts = self.tensor_parallel_size_of_experts * self.expert_parallel_size
        return lcm(self.tensor_parallel_size, experts)

    @property
    def world_size(self) -> int:
        return self.stage_size * self.pipeline_parallel_size

    def rank(
        self, tensor_parallel_rank: int, pipeline_parallel_rank: int, expert_parallel_rank: int = 0
    ) -> int:
        """The global rank: tensor parallel fastest (the experts' own size where an expert-parallel rank
        is given), then expert parallel, whose ranks hold copies of everything that is no expert, then
        pipeline stages."""
        within = expert_parallel_rank * self.tensor_parallel_size_of_experts + tensor_parallel_rank
        return pipeline_parallel_rank * self.stage_size + within

    def expert_rank(self, expert: int, num_experts: int) -> int:
        """The expert-parallel rank that holds an expert: equal runs of experts."""
        return expert * self.expert_parallel_size // num_experts

    def check_experts(self, num_experts: int) -> None:
        """Raise LayoutError unless ``expert_parallel_size`` divides ``num_experts``."""
        if num_experts <= 1 < self.expert_parallel_size:
            raise LayoutError(
                f"expert_parallel_size={self.expert_parallel_size}, but the model has no experts",
                hint="leave out --ep",
            )
        if num_experts % self.expert_parallel_size:
            possible = ", ".join(map(str, divisors(num_experts)))
            raise LayoutError(
                f"cannot cut {num_experts} experts into expert_parallel_size={self.expert_parallel_size}",
                hint=f"use one of: {possible}",
            )

    def stage(self, layer: int, num_layers: int) -> int:
        """The pipeline rank of a layer; -1 is what comes before the first layer (the embedding), and
        ``num_layers`` what comes after the last (final norm, output layer)."""
        return self.run(layer, num_layers) % self.pipeline_parallel_size

    def virtual_stage(self, layer: int, num_layers: int) -> int:
        """Which of its pipeline rank's runs of layers a layer belongs to; numbers as in :meth:`stage`."""
        return self.run(layer, num_layers) // self.pipeline_parallel_size

    def run(self, layer: int, num_layers: int) -> int:
        """The stage, of all in model order, that holds a layer; numbers as in :meth:`stage`."""
        if layer < 0:
            return 0
        if layer >= num_layers:
            return self.num_stages - 1
        return _stage_of(self, num_layers)[layer]

    def layers(self, num_layers: int) -> tuple[range, ...]:
        """The decoder layers of every stage in model order.

        Raises LayoutError, with the sizes that would do, where they cannot be dealt so.
        """
        return _layers(self, num_layers)

    def check(self, num_layers: int) -> None:
        """Raise LayoutError unless ``num_layers`` can be dealt to the stages."""
        self.layers(num_layers)

    @property
    def is_even(self) -> bool:
        """Whether nothing is said of stages that hold different numbers of layers."""
        return self == replace(self, **even())

    def dealt(self, num_layers: int) -> Layout:
        """This layout, or where its even stages do not divide ``num_layers``, the uneven one that Megatron
        has for it: the embedding and the loss take the place of a layer each, or of one of them, where that
        comes out even (Llama 3.1 405B: 126 layers on 16 stages); else the stages between the first and the
        last are equal, and these two share what is left (DeepSeek-V3: 3, 14 times 4, and 2 of 61 layers).

        NeMo's own recipes for these models say the same. A layout that cannot be dealt is returned as it is.
        """
        size = self.pipeline_parallel_size
        if not self.is_even or num_layers % self.num_stages == 0 or num_layers < size:
            return self
        for embedding, loss in ((True, True), (False, True), (True, False)):
            if (num_layers + embedding + loss) % self.num_stages == 0:
                return replace(
                    self,
                    account_for_embedding_in_pipeline_split=embedding,
                    account_for_loss_in_pipeline_split=loss,
                )
        for middle in (-(-num_layers // size), num_layers // size):
            left = num_layers - middle * (size - 2)
            first, last = left - left // 2, left // 2
            if last < 1:
                continue
            given = replace(
                self, num_layers_in_first_pipeline_stage=first, num_layers_in_last_pipeline_stage=last
            )
            with suppress(LayoutError):  # virtual stages may not divide them
                given.check(num_layers)
                return given
        return self

    def pieces(
        self, size: int, name: str, what: str, *, of_experts: bool = False, tied_sizes: Sequence[int] = ()
    ) -> Iterator[tuple[int, int]]:
        """(first, length) on the axis ``name`` of each tensor-parallel rank.

        Raises LayoutError with the sizes that would do; ``tied_sizes`` are some that are no cut of this axis.
        """
        count = self.tensor_parallel_size_of_experts if of_experts else self.tensor_parallel_size
        if size % count:
            own = of_experts and self.expert_tensor_parallel_size is not None
            kind = "expert_tensor_parallel_size" if own else "tensor_parallel_size"
            possible = ", ".join(map(str, divisors(size)[:32]))
            raise LayoutError(
                f"cannot cut {what} into {kind}={count}: {name}={size}",
                hint=f"tensor parallel sizes that divide it: {possible}"
                + (f"; that share its heads: {', '.join(map(str, tied_sizes))}" if tied_sizes else ""),
            )
        for rank in range(count):
            yield rank * (size // count), size // count

    def __str__(self) -> str:
        sizes = {
            "tp": self.tensor_parallel_size,
            "pp": self.pipeline_parallel_size,
            "vpp": self.virtual_pipeline_parallel_size,
            "ep": self.expert_parallel_size,
            "etp": self.expert_tensor_parallel_size or 1,
        }
        said = [f"{name}{size}" for name, size in sizes.items() if size > 1 or name in ("tp", "pp")]
        if self.expert_tensor_parallel_size == 1:
            said.append("etp1")
        if self.stages is not None:
            said.append("stages " + "-".join(map(str, self.stages)))
        return " ".join(said + self._ends())

    def _ends(self) -> list[str]:
        """How the ends of the pipeline differ, in words."""
        first, last = self.num_layers_in_first_pipeline_stage, self.num_layers_in_last_pipeline_stage
        counted = (self.account_for_embedding_in_pipeline_split, self.account_for_loss_in_pipeline_split)
        said = [f"first {first}"] if first is not None else []
        said += [f"last {last}"] if last is not None else []
        names = ("embedding", "loss")
        return said + [f"{name} counted" for name, on in zip(names, counted, strict=True) if on]


_POSITIVE = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "expert_parallel_size",
    "virtual_pipeline_parallel_size",
    "expert_tensor_parallel_size",
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
)


def even() -> dict[str, Any]:
    """The settings of layouts that deal layers unevenly, saying that one does not."""
    plain = Layout()
    return {f.name: getattr(plain, f.name) for f in fields(Layout) if not f.name.endswith("_size")}


@cache
def _layers(layout: Layout, num_layers: int) -> tuple[range, ...]:
    counts = _counts(layout, num_layers)
    ends = list(accumulate(counts))
    return tuple(range(end - count, end) for end, count in zip(ends, counts, strict=True))


@cache
def _stage_of(layout: Layout, num_layers: int) -> list[int]:
    return [stage for stage, layers in enumerate(_layers(layout, num_layers)) for _ in layers]


def _counts(layout: Layout, num_layers: int) -> list[int]:
    """Decoder layers of every stage in model order."""
    if layout.stages is not None:
        if sum(layout.stages) != num_layers:
            raise LayoutError(
                f"the stages hold {sum(layout.stages)} layers, the model has num_layers={num_layers}"
            )
        return list(layout.stages)
    if layout.account_for_embedding_in_pipeline_split or layout.account_for_loss_in_pipeline_split:
        return _with_ends_counted(layout, num_layers)
    ends = layout.num_layers_in_first_pipeline_stage, layout.num_layers_in_last_pipeline_stage
    if ends != (None, None):
        return _with_given_ends(layout, num_layers, *ends)
    size, virtual = layout.pipeline_parallel_size, layout.virtual_pipeline_parallel_size
    if num_layers % size:
        possible = ", ".join(map(str, divisors(num_layers)))
        raise LayoutError(
            f"cannot cut {num_layers} layers into pipeline_parallel_size={size}",
            hint=f"use one of: {possible}",
        )
    _check_virtual(num_layers // size, virtual, "each pipeline rank")
    return [num_layers // layout.num_stages] * layout.num_stages


def _check_virtual(layers: int, virtual: int, where: str) -> None:
    if layers % virtual:
        raise LayoutError(
            f"cannot cut the {layers} layers of {where} into virtual_pipeline_parallel_size={virtual}",
            hint=f"use one of: {', '.join(map(str, divisors(layers)))}",
        )


def _with_ends_counted(layout: Layout, num_layers: int) -> list[int]:
    """The embedding, the loss or both take the place of a layer."""
    first = layout.account_for_embedding_in_pipeline_split
    last = layout.account_for_loss_in_pipeline_split
    total = num_layers + first + last
    if total % layout.num_stages:
        counted = " and ".join(["the embedding"] * first + ["the loss"] * last)
        raise LayoutError(
            f"cannot cut {num_layers} layers and {counted}, {total} in all, into {layout.num_stages} stages",
            hint=f"numbers of stages that divide it: {', '.join(map(str, divisors(total)))}",
        )
    counts = [total // layout.num_stages] * layout.num_stages
    counts[0] -= first
    counts[-1] -= last
    if min(counts) < 0:
        raise LayoutError("embedding and loss are counted as layers of the one stage, which holds only one")
    return counts


def _with_given_ends(layout: Layout, num_layers: int, first: int | None, last: int | None) -> list[int]:
    """The first or last pipeline rank's layers are given; the others share the rest equally."""
    size, virtual = layout.pipeline_parallel_size, layout.virtual_pipeline_parallel_size
    if size == 1:
        raise LayoutError("layers of the first or last pipeline stage are given, but there is one stage")
    rest = num_layers - (first or 0) - (last or 0)
    middle = size - (first is not None) - (last is not None)
    if rest < 0 or (rest > 0) != (middle > 0) or (middle and rest % middle):
        fitting = ", ".join(map(str, divisors(rest))) if rest > 0 else "none"
        raise LayoutError(
            f"{rest} of {num_layers} layers are left for the {middle} other pipeline stages",
            hint=f"numbers of stages that share {rest} layers: {fitting}",
        )
    if not middle and virtual > 1:  # where megatron-core divides by zero
        raise LayoutError(
            "layers of the first and last of two pipeline stages are given, which megatron-core cannot "
            "deal to virtual stages",
            hint="say it with stages",
        )
    held = [rest // middle] * size if middle else [0] * size
    held[0] = held[0] if first is None else first
    held[-1] = held[-1] if last is None else last
    for rank, layers in enumerate(held):
        _check_virtual(layers, virtual, f"pipeline rank {rank}")
    return [layers // virtual for layers in held] * virtual
