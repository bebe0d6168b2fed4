"""Who holds what: every rank of a layout with its layers and experts, as rows of a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from .layout import Layout

#: how many layers a line of one character each may have
_WIDEST = 128


@dataclass(frozen=True, slots=True)
class RankRow:
    """What one rank holds in memory; ``nbytes`` is what its own files on disk have.

    Ranks that hold copies (all but the first expert-parallel rank, for what is no expert) have less on
    disk than in memory. ``runs`` are its layers, one range for each virtual stage.
    """

    rank: int
    tensor_parallel_rank: int
    pipeline_parallel_rank: int
    expert_parallel_rank: int
    runs: tuple[range, ...]
    experts: range | None
    has_embedding: bool
    has_output: bool
    nbytes: int = 0

    @property
    def layers(self) -> str:
        """``"0-3, 8-11"``."""
        return ", ".join(map(span, filter(len, self.runs))) or "none"


def span(numbers: range) -> str:
    """``range(4, 8)`` as ``"4-7"``."""
    return f"{numbers.start}-{numbers.stop - 1}" if len(numbers) > 1 else str(numbers.start)


def spans(numbers: Iterable[int]) -> list[str]:
    """``[0, 1, 2, 5]`` as ``["0-2", "5"]``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [span(range(run[0], run[-1] + 1)) for run in runs]


def rank_rows(
    layout: Layout, num_layers: int, num_experts: int = 0, nbytes: Mapping[int, int] | None = None
) -> list[RankRow]:
    """A row for each rank. Raises LayoutError where the layout does not divide the model."""
    runs = layout.layers(num_layers)
    size, virtual = layout.pipeline_parallel_size, layout.virtual_pipeline_parallel_size
    tensor, of_experts = layout.tensor_parallel_size, layout.tensor_parallel_size_of_experts
    each = num_experts // layout.expert_parallel_size
    rows = []
    for rank in range(layout.world_size):
        stage, within = divmod(rank, layout.stage_size)
        expert = within // of_experts % layout.expert_parallel_size
        rows.append(
            RankRow(
                rank,
                within % tensor,
                stage,
                expert,
                tuple(runs[v * size + stage] for v in range(virtual)),
                range(expert * each, (expert + 1) * each) if num_experts else None,
                stage == 0,
                stage == size - 1,
                (nbytes or {}).get(rank, 0),
            )
        )
    return rows


def table_lines(rows: Iterable[RankRow], num_layers: int) -> Iterator[str]:
    """Ranks x layers in text: ``E`` the embedding, ``#`` a layer held, ``.`` one that is not, ``L`` the
    output layer. Ranks that hold the same layers and experts share a line."""
    groups: dict[tuple[object, ...], list[RankRow]] = {}
    for row in rows:
        groups.setdefault((row.runs, row.experts, row.has_embedding, row.has_output), []).append(row)
    lines = [("ranks", "layers", "experts" if any(g[0].experts for g in groups.values()) else "", "on disk")]
    lines += [
        (
            _ranks([row.rank for row in group]),
            _cells(group[0], num_layers),
            span(group[0].experts) if group[0].experts else "",
            f"{sum(row.nbytes for row in group) / 1e6:,.1f} MB",
        )
        for group in groups.values()
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    for line in lines:
        cells = [text.ljust(width) for text, width in zip(line[:3], widths, strict=False) if width]
        yield "  " + "  ".join([*cells, line[3].rjust(widths[3])])


def _cells(row: RankRow, num_layers: int) -> str:
    if num_layers > _WIDEST:
        return row.layers
    held = {layer for run in row.runs for layer in run}
    cells = "".join("#" if layer in held else "." for layer in range(num_layers))
    return f"{'E' if row.has_embedding else ' '}{cells}{'L' if row.has_output else ' '} {row.layers}"


def _ranks(ranks: list[int]) -> str:
    """``[0, 1, 2, 5]`` as ``"0-2, 5"``, shortened where there are many runs."""
    said = spans(ranks)
    return ", ".join(said if len(said) <= 4 else [*said[:3], "...", said[-1]])
