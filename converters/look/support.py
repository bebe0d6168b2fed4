"""What this installation can convert."""

from __future__ import annotations

from typing import Any

from ...entry_points import entries
from ...errors import NemoconvError
from ...mappings import load_table
from ..options import DTYPE, EXACT, LAYOUT, RUN, Option
from ..registry import formats


def matrix() -> dict[str, list[dict[str, Any]]]:
    """Formats and architectures with their origin; a broken plug-in is listed with its problem."""
    formats = []
    for entry in entries("converters").values():
        try:
            loaded = entry.load()
        except NemoconvError as error:
            formats.append(_broken(entry.name, entry.origin, error, title=str(error), directions="broken"))
            continue
        directions = "read, write" if loaded.writes else "read"
        formats.append(
            {"name": entry.name, "title": loaded.title, "directions": directions, "origin": entry.origin}
        )
    architectures = []
    for entry in sorted(entries("mappings").values(), key=lambda entry: entry.name):
        try:
            table = load_table(entry.name)
        except NemoconvError as error:
            architectures.append(_broken(entry.name, entry.origin, error, hf_class="broken", verified=[]))
            continue
        other = entry.name != table.architecture  # a second model_type with the same table
        verified = [f"the table of {table.architecture}"] if other else list(table.verified)
        architectures.append(
            {
                "name": entry.name,
                "hf_class": table.hf_class,
                "nemo_class": f"{table.nemo.module}.{table.nemo.model}",
                "verified": verified,
                "origin": entry.origin,
            }
        )
    return {"formats": formats, "architectures": architectures}


def options_markdown() -> str:
    """The options of conversions as the tables of docs/options.md."""
    parts = []
    for title, chosen in (("Layout", LAYOUT), ("Weights", (DTYPE, EXACT)), ("Run", RUN)):
        parts += ["", f"## {title}", "", _HEAD, *map(_row, chosen)]
    for each in formats():
        if each.options:
            ways = [(each.options_for("read"), "read"), (each.options_for("write"), "written")]
            rows = [_row(option, when) for way, when in ways for option in way]
            parts += ["", f"## Format `{each.name}`", "", f"{each.title}.", "", _HEAD, *rows]
    return "\n".join(parts[1:])


_HEAD = "| option | in Python | example | meaning |\n| --- | --- | --- | --- |"


def _row(option: Option, when: str = "") -> str:
    example = f"`{option.example}`" if option.example else ""
    said = [f"When it is {when}."] if when else []
    said += [option.help] + ([f"Default: {option.default}."] if option.default is not None else [])
    return f"| `{option.flags}` | `{option.name}` | {example} | {' '.join(said)} |"


def markdown() -> str:
    """The architectures as the README's table."""
    rows = ["| `model_type` | class | both directions verified by |", "| --- | --- | --- |"]
    rows += [
        f"| {row['name']} | {row['hf_class']} | {', '.join(row['verified'])} |"
        for row in matrix()["architectures"]
        if row["origin"] == "nemoconv"
    ]
    return "\n".join(rows)


def _broken(name: str, origin: str, error: NemoconvError, **rest: Any) -> dict[str, Any]:
    return {"name": name, "origin": origin, "problem": str(error), **rest}
