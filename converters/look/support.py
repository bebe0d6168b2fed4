"""What this installation can convert."""

from __future__ import annotations

from typing import Any

from ...entry_points import entries
from ...errors import NemoconvError
from ...mappings import load_table


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


def _broken(name: str, origin: str, error: NemoconvError, **rest: Any) -> dict[str, Any]:
    return {"name": name, "origin": origin, "problem": str(error), **rest}
