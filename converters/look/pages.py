"""The tables of ``docs/`` that are made of what is registered.

    python -m nemoconv.converters.look.pages      # in a clone: writes them anew

In a page, a table stands between ``<!-- made: NAME -->`` and ``<!-- end -->``, where NAME is a key of
:data:`TABLES`; what is around it is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from ...entry_points import BUILT_IN, entries
from ...mappings import described, load_table
from ...mappings.families.speech import SpeechTable
from ...mappings.nemo2.fields import ArchivesOnly
from ..options import DTYPE, EXACT, LAYOUT, RUN, Option
from ..registry import formats
from .support import matrix

DOCS: Final = Path(__file__).parents[2] / "docs"
_MADE: Final = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_OPTION_HEAD: Final = ("option", "in Python", "example", "meaning")


def format_rows() -> str:
    """Formats: what they are called on the command line, and whether they are read and written."""
    rows = []
    for each in formats():
        rewritten = "" if each.writes else "in another layout only"
        aliases = ", ".join(f"`{alias}`" for alias in each.aliases)
        reads = "no" if each.plain else "yes"
        rows.append((f"`{each.name}`", each.title, reads, rewritten or "yes", aliases))
    return _table(("format", "what it is", "read", "written", "also called"), rows)


def architecture_rows() -> str:
    """Architectures: their classes, which formats hold them, and what proves the conversion."""
    from ..onnx.graph.architectures import known

    graphs = known()
    rows = []
    for row in matrix()["architectures"]:
        if row["origin"] != BUILT_IN:
            continue
        name, architecture = row["name"], described(row["name"])
        table = load_table(name)
        nemo2 = nemo1 = ""
        if isinstance(table, SpeechTable):
            nemo1 = table.nemo.model
        else:
            nemo2 = "" if isinstance(table.nemo, ArchivesOnly) else table.nemo.model
            nemo1 = "yes" if architecture is not None and architecture.nemo1 else ""
        graph = "yes" if name in graphs else ""
        rows.append((name, row["hf_class"], nemo2, nemo1, graph, ", ".join(row["verified"])))
    head = ("`model_type`", "class", "NeMo 2 class", "`.nemo`", "ONNX", "both directions verified by")
    return _table(head, rows)


def graph_rows() -> str:
    """ONNX: which flavours of graph are written, and whether weights of others' graphs are told by place."""
    from ..onnx.graph.architectures import Decoder, SpeechModel, known
    from ..onnx.names.roles import roles_of

    rows = []
    for name, graph in sorted(known().items()):
        flavours = "std" if isinstance(graph, Decoder) and graph.blocks.chunked else "std, genai"
        generates = isinstance(graph, Decoder) and graph.generates
        written = "several graphs" if isinstance(graph, SpeechModel) else flavours if generates else "one"
        told = "yes" if roles_of(load_table(name)) else "if all names were kept"
        if entries("mappings")[name].origin == BUILT_IN:
            rows.append((name, written, "no" if isinstance(graph, SpeechModel) else told))
    return _table(("`model_type`", "to ONNX", "from the graphs of other exporters"), rows)


def option_rows() -> str:
    """Options of conversions, by what they belong to."""
    parts = []
    for title, chosen in (("Layout", LAYOUT), ("Weights", (DTYPE, EXACT)), ("Run", RUN)):
        parts += ["", f"## {title}", "", _table(_OPTION_HEAD, map(_row, chosen))]
    for each in formats():
        if each.options:
            ways = [(each.options_for("read"), "read"), (each.options_for("write"), "written")]
            rows = [_row(option, when) for way, when in ways for option in way]
            parts += ["", f"## Format `{each.name}`", "", f"{each.title}.", "", _table(_OPTION_HEAD, rows)]
    return "\n".join(parts[1:])


TABLES: Final[Mapping[str, Callable[[], str]]] = {
    "architectures": architecture_rows,
    "formats": format_rows,
    "graphs": graph_rows,
    "options": option_rows,
}


def renewed(page: str) -> str:
    """The text of a page with its tables as they are now. Raises KeyError for a name that no table has."""
    return _MADE.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", page)


def pages() -> Iterator[Path]:
    """The pages that have such tables."""
    return (page for page in sorted(DOCS.glob("*.md")) if _MADE.search(page.read_text()))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = [tuple(head), *map(tuple, rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join((lines[0], "| " + " | ".join("---" for _ in cells[0]) + " |", *lines[1:]))


def _row(option: Option, when: str = "") -> tuple[str, ...]:
    example = f"`{option.example}`" if option.example else ""
    said = [f"When it is {when}."] if when else []
    said += [option.help] + ([f"Default: {option.default}."] if option.default is not None else [])
    return f"`{option.flags}`", f"`{option.name}`", example, " ".join(said)


if __name__ == "__main__":
    for path in pages():
        path.write_text(renewed(path.read_text()))
        print(path)
