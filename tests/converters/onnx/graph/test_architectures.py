"""What docs/onnx.md says of architectures is what there is."""

from __future__ import annotations

import re
from pathlib import Path

from nemoconv.converters.onnx.graph.architectures import Decoder, known
from nemoconv.converters.onnx.names.roles import roles_of
from nemoconv.mappings import architectures, load_table

PAGE = (Path(__file__).parents[4] / "docs" / "onnx.md").read_text()
ROWS = re.findall(r"^\| ([a-z][\w:-]*) \| (.*) \| (.*) \|$", PAGE, re.M)


def listed(column: int, *words: str) -> set[str]:
    """Names of the rows of the table whose column has one of the words."""
    return {row[0] for row in ROWS if any(word in row[column] for word in words)}


def test_the_table_lists_every_graph() -> None:
    graphs = known()
    assert listed(1, "std", "one", "several") == set(graphs)
    generating = {name for name, kind in graphs.items() if kind.generates}
    assert listed(1, "std") == generating
    chunked = {name for name, kind in graphs.items() if isinstance(kind, Decoder) and kind.blocks.chunked}
    assert listed(1, "genai") == generating - chunked


def test_the_table_lists_what_is_found_by_place() -> None:
    assert listed(2, "yes") == {name for name in architectures() if roles_of(load_table(name))}


def test_exporters_were_tried_with_what_is_found_by_place() -> None:
    for exporter in ("onnxruntime-genai's builder", "optimum"):
        (tried,) = re.findall(rf"^\| {exporter} \| (.*) \|$", PAGE, re.M)
        names = set(re.findall(r"\w+", re.sub(r"\(.*?\)", "", tried)))
        assert names <= listed(2, "yes"), exporter
