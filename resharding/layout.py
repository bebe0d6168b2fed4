"""Parallel layouts: how many ways a model is cut, and which rank holds what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nemoconv.errors import LayoutError, UsageError


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


@dataclass(frozen=True, slots=True)
class Layout:
    """Parallel sizes. Ranks count tensor-parallel fastest, as megatron-core's ``parallel_state`` does."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    expert_parallel_size: int = 1

    def __post_init__(self) -> None:
        for name in ("tensor_parallel_size", "pipeline_parallel_size", "expert_parallel_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} is not a positive number")

    @property
    def world_size(self) -> int:
        return self.tensor_parallel_size * self.expert_parallel_size * self.pipeline_parallel_size

    def rank(
        self, tensor_parallel_rank: int, pipeline_parallel_rank: int, expert_parallel_rank: int = 0
    ) -> int:
        """The global rank: tensor parallel fastest, then expert parallel (whose ranks hold copies of
        everything that is no expert), then pipeline stages."""
        outer = pipeline_parallel_rank * self.expert_parallel_size + expert_parallel_rank
        return outer * self.tensor_parallel_size + tensor_parallel_rank

    def expert_rank(self, expert: int, num_experts: int) -> int:
        """The expert-parallel rank that holds an expert: equal runs of experts."""
        return expert * self.expert_parallel_size // num_experts

    def check_experts(self, num_experts: int) -> None:
        """Raise LayoutError unless ``expert_parallel_size`` divides ``num_experts``."""
        if num_experts % self.expert_parallel_size:
            possible = ", ".join(map(str, divisors(num_experts)))
            raise LayoutError(
                f"cannot cut {num_experts} experts into expert_parallel_size={self.expert_parallel_size}",
                hint=f"use one of: {possible}",
            )

    def stage(self, layer: int, num_layers: int) -> int:
        """The pipeline stage of a layer when all stages hold equally many."""
        return layer * self.pipeline_parallel_size // num_layers

    def check(self, num_layers: int) -> None:
        """Raise LayoutError unless ``pipeline_parallel_size`` divides ``num_layers``."""
        if num_layers % self.pipeline_parallel_size:
            possible = ", ".join(map(str, divisors(num_layers)))
            raise LayoutError(
                f"cannot cut {num_layers} layers into pipeline_parallel_size={self.pipeline_parallel_size}",
                hint=f"use one of: {possible}",
            )

    def pieces(self, size: int, name: str, what: str) -> Iterator[tuple[int, int]]:
        """(first, length) on the axis ``name`` of each tensor-parallel rank."""
        count = self.tensor_parallel_size
        if size % count:
            possible = ", ".join(map(str, divisors(size)[:32]))
            raise LayoutError(
                f"cannot cut {what} into tensor_parallel_size={count}: {name}={size}",
                hint=f"tensor parallel sizes that divide it: {possible}",
            )
        for rank in range(count):
            yield rank * (size // count), size // count

    def __str__(self) -> str:
        experts = f" ep{self.expert_parallel_size}" if self.expert_parallel_size > 1 else ""
        return f"tp{self.tensor_parallel_size} pp{self.pipeline_parallel_size}{experts}"
