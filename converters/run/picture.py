"""A picture of a planned change of layout: who holds what, and which bytes move where.

One self-contained SVG without scripts, or the same in an HTML page. All text is escaped: names of files
come out of checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from math import prod
from pathlib import Path

from ...errors import OutputError, UsageError, printable
from ...resharding.plan import Plan
from ...tensors.boxes import intersect
from ...tensors.ranks import RankRow
from .plan import Conversion

#: more files than this are drawn as one row or column, "others"
MAX_FILES = 48
MAX_RANKS = 256
_ROW, _LEFT, _CELL = 22, 230, 14
_GRID_WIDTH = 900
_COLORS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#bbbbbb")


def write_picture(path: str | Path, conversion: Conversion) -> None:
    """Write the picture of a planned conversion; ``path`` ends in .svg or .html.

    Raises UsageError for another ending, OutputError for a file that is there or cannot be written.
    """
    kind = Path(path).suffix.lower()
    if kind not in (".svg", ".html"):
        raise UsageError(f"{path}: a picture is an .svg or an .html file")
    picture = draw(conversion)
    if kind == ".html":
        title = escape(f"{conversion.report.source} as {conversion.report.layout}")
        picture = (
            f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>\n'
            f"<body>\n{picture}</body></html>\n"
        )
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(picture)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from None


def moved_bytes(plan: Plan) -> dict[tuple[str, str], int]:
    """Bytes by (source file, target file), as the target's type counts them; padding comes from no file."""
    moved: dict[tuple[str, str], int] = {}
    for job in plan.jobs:
        for target in job.targets:
            for source in job.sources:
                common = intersect(source.start, source.shape, target.start, target.shape)
                if common:
                    key = source.file.name, target.payload.file.name
                    moved[key] = moved.get(key, 0) + prod(common[1]) * job.target_dtype.itemsize
    return moved


def draw(conversion: Conversion) -> str:
    """The SVG."""
    report = conversion.report
    rows, layers = conversion.ranks, conversion.num_layers
    parts = [_text(8, 24, f"{report.source} ({report.source_format}) as {report.layout}", size=16)]
    y = 44
    if rows:
        parts += [_text(8, y + 14, "Who holds what: ranks x layers", size=13)]
        parts += _grid(rows[:MAX_RANKS], layers, y + 26)
        y += 26 + _ROW * (min(len(rows), MAX_RANKS) + 1)
        if len(rows) > MAX_RANKS:
            parts.append(_text(8, y, f"and {len(rows) - MAX_RANKS:,} more ranks"))
        y += 24
    parts += [_text(8, y + 14, "Which bytes move where: source files x target files", size=13)]
    matrix, width, height = _matrix(moved_bytes(conversion.plan), y + 26)
    parts += matrix
    wide = max(_LEFT + _GRID_WIDTH + 200, width)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{height}" '
        f'viewBox="0 0 {wide} {height}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{wide}" height="{height}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start") -> str:
    shown = escape(printable(text, 120))
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}">{shown}</text>'


def _box(x: float, y: float, width: float, height: float, fill: str, title: str, opacity: float = 1) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" '
        f'fill-opacity="{opacity:.2f}" stroke="#ffffff"><title>{escape(printable(title))}</title></rect>'
    )


def _grid(rows: Sequence[RankRow], layers: int, top: float) -> Iterator[str]:
    """A row for each rank; a box for each run of layers, at both ends embedding and output."""
    cell = min(_CELL, _GRID_WIDTH / (layers + 2))
    for layer in range(0, layers, max(1, layers // 16)):
        yield _text(_LEFT + (layer + 1) * cell, top - 4, str(layer), size=10)
    for number, row in enumerate(rows):
        y = top + number * _ROW
        name = f"rank {row.rank} (tp {row.tensor_parallel_rank}, pp {row.pipeline_parallel_rank}"
        name += f", ep {row.expert_parallel_rank})" if row.experts is not None else ")"
        yield _text(_LEFT - 8, y + 15, name, anchor="end")
        color = _COLORS[row.pipeline_parallel_rank % len(_COLORS)]
        shade = 1 - 0.5 * (row.tensor_parallel_rank % 2)
        experts = f", experts {row.experts.start}-{row.experts.stop - 1}" if row.experts else ""
        ends = [(-1, "embedding")] * row.has_embedding + [(layers, "output layer")] * row.has_output
        for at, what in ends:
            yield _box(_LEFT + (at + 1) * cell, y, cell, _ROW - 4, "#555555", f"{name}: {what}", shade)
        for run in filter(len, row.runs):
            title = f"{name}: layers {run.start}-{run.stop - 1}{experts}"
            yield _box(_LEFT + (run.start + 1) * cell, y, len(run) * cell, _ROW - 4, color, title, shade)
        yield _text(_LEFT + (layers + 3) * cell, y + 15, f"{row.nbytes / 1e6:,.1f} MB on disk")


def _matrix(moved: Mapping[tuple[str, str], int], top: float) -> tuple[list[str], float, float]:
    """A table of bytes, darker where more move; (parts, width, height)."""
    sources, targets = _names(moved, 0), _names(moved, 1)
    cells: dict[tuple[str, str], int] = {}
    for (source, target), nbytes in moved.items():
        key = (source if source in sources else "others", target if target in targets else "others")
        cells[key] = cells.get(key, 0) + nbytes
    most = max(cells.values(), default=1)
    width, parts = 96, []
    for column, target in enumerate(targets):
        parts.append(_text(_LEFT + column * width + width / 2, top + 14, _short(target), anchor="middle"))
    for number, source in enumerate(sources):
        y = top + 22 + number * _ROW
        parts.append(_text(_LEFT - 8, y + 15, _short(source), anchor="end"))
        for column, target in enumerate(targets):
            nbytes = cells.get((source, target), 0)
            if nbytes:
                x, title = _LEFT + column * width, f"{nbytes:,} bytes of {source} go to {target}"
                parts.append(_box(x, y, width - 2, _ROW - 2, "#4477aa", title, 0.15 + 0.6 * nbytes / most))
                parts.append(_text(x + width / 2, y + 15, f"{nbytes / 1e6:,.1f} MB", anchor="middle"))
    return parts, _LEFT + width * len(targets) + 20, top + 40 + _ROW * len(sources)


def _names(moved: Mapping[tuple[str, str], int], side: int) -> list[str]:
    names = sorted({key[side] for key in moved}, key=_natural)
    return names if len(names) <= MAX_FILES else [*names[: MAX_FILES - 1], "others"]


def _natural(name: str) -> tuple[object, ...]:
    """Numbers in names by their value: rank 10 after rank 9."""
    digits = "".join(c if c.isdigit() else " " for c in name).split()
    return (tuple(map(int, digits)), name)


def _short(name: str) -> str:
    return name if len(name) <= 30 else "..." + name[-27:]
