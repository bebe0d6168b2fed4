"""What docs/onnx.md says of architectures is what there is."""

from __future__ import annotations

import re
from pathlib import Path

from nemoconv.converters.onnx.graph import architectures
from nemoconv.converters.onnx.names.roles import ROLES
from nemoconv.mappings import load_table

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
    known = {**architectures.DECODERS, **architectures.ENCODERS, **architectures.SPEECH}
    types = {name.partition(":")[0] for name in known}
    assert listed(1, "std", "one", "several") == types
    generating = {name for name, kind in architectures.DECODERS.items() if kind.generates}
    assert listed(1, "std") == generating
    chunked = {name for name, kind in architectures.DECODERS.items() if kind.chunked}
    assert listed(1, "genai") == generating - chunked


def test_the_table_lists_what_is_found_by_place() -> None:
    assert listed(2, "torch") == {name.partition(":")[0] for name in ROLES}
    for name in ROLES:
        assert load_table(name).architecture == name
