"""What docs/onnx.md says of architectures is what there is."""

from __future__ import annotations

import re
from pathlib import Path

from nemoconv.converters.onnx.graph.architectures import Decoder, known
from nemoconv.converters.onnx.names.roles import roles_of
from nemoconv.mappings import architectures, load_table

ROWS = re.findall(
    r"^\| ([a-z].*) \| (.*) \| (.*) \|$", (Path(__file__).parents[4] / "docs" / "onnx.md").read_text(), re.M
)


def listed(column: int, *words: str) -> set[str]:
    """model_types of the rows of the table whose column has one of the words."""
    found = set()
    for row in ROWS:
        if any(word in row[column] for word in words):
            found |= set(re.sub(r" \(.*?\)", "", row[0]).split(", "))
    return found


def test_the_table_lists_every_graph() -> None:
    graphs = known()
    types = {name.partition(":")[0] for name in graphs}
    assert listed(1, "std", "one", "several") == types
    generating = {name for name, kind in graphs.items() if kind.generates}
    assert listed(1, "std") == generating
    chunked = {name for name, kind in graphs.items() if isinstance(kind, Decoder) and kind.blocks.chunked}
    assert listed(1, "genai") == generating - chunked


def test_the_table_lists_what_is_found_by_place() -> None:
    found = {name.partition(":")[0] for name in architectures() if roles_of(load_table(name))}
    assert listed(2, "torch") == found
