"""The committed digests: how they are kept, read, written and compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "golden.json"
#: what a case made: step -> {"files": {name: digest}, "tensors": {name: digest}} or {"refused": message}
Made = Mapping[str, Mapping[str, Any]]
_SHOWN = 8
#: the key of the set that another is like
_LIKE = "="


def load() -> dict[str, dict[str, Any]]:
    """The committed outputs by case."""
    held = json.loads(FILE.read_text())
    sets = _resolved(held.get("tensors", {}))
    found = {}
    for case, made in held.get("cases", {}).items():
        files = _resolved({step: output["files"] for step, output in made.items() if "files" in output})
        found[case] = {
            step: {"files": files[step], "tensors": sets[output["tensors"]]} if step in files else output
            for step, output in made.items()
        }
    return found


def dump(cases: Mapping[str, Made]) -> None:
    """Write the file: a line for an output, so that a diff shows which changed.

    To keep it small, the files of an output are told as what they have unlike those of an earlier output of the
    case. So are sets of tensors, each kept once, of all cases: models share most of their names, and with the
    names their random bytes.
    """
    sets: dict[str, Mapping[str, str]] = {}
    blocks = []
    for case, made in cases.items():
        files = {step: output["files"] for step, output in made.items() if "files" in output}
        told = dict(_unlike(files, "/"))
        lines = []
        for step, output in made.items():
            kept = output
            if step in told:
                key = hashlib.sha256(_line(output["tensors"]).encode()).hexdigest()[:12]
                kept = {"files": told[step], "tensors": key}
                sets[key] = output["tensors"]
            lines.append(f"   {json.dumps(step)}: {_line(kept)}")
        blocks.append(f"  {json.dumps(case)}: {{\n" + ",\n".join(lines) + "}")
    written = ",\n".join(f"  {json.dumps(key)}: {_line(entry)}" for key, entry in _unlike(sets, "."))
    FILE.write_text('{\n "cases": {\n' + ",\n".join(blocks) + '},\n "tensors": {\n' + written + "}}\n")


def _unlike(sets: Mapping[str, Mapping[str, str]], separator: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each set as its differences from the earlier one of which they are least; None: a name it has not."""
    earlier: dict[str, Mapping[str, str]] = {}
    for key, entry in sets.items():
        like: dict[str, str] = {}
        best: Mapping[str, str | None] = entry
        for other, held in earlier.items():
            gone = dict.fromkeys(name for name in held if name not in entry)
            unlike = {name: digest for name, digest in entry.items() if held.get(name) != digest}
            if len(unlike) + len(gone) < len(best):
                like, best = {_LIKE: other}, {**unlike, **gone}
        yield key, {**like, **_tree(best, separator)}
        earlier[key] = entry


def _resolved(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """The opposite of :func:`_unlike`."""
    found: dict[str, dict[str, str]] = {}
    for key, entry in sets.items():
        own = _flat({name: value for name, value in entry.items() if name != _LIKE})
        whole = {**found.get(entry.get(_LIKE, ""), {}), **own}
        found[key] = {name: digest for name, digest in sorted(whole.items()) if digest is not None}
    return found


def _tree(names: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """Digests by name, with what names have in common told once: ``a.b`` as {"a.": {"b": ...}}."""
    tree: dict[str, Any] = {}
    for name, digest in names.items():
        *folders, leaf = name.split(separator)
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder + separator, {})
        inner[leaf] = digest
    return tree


def _flat(tree: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """The opposite of :func:`_tree`."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value, start + name) if isinstance(value, dict) else {start + name: value}
    return found


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def differences(kept: Made, made: Made) -> list[str]:
    """What is not as it was, one line a step, with the files and tensors that differ."""
    lines = []
    for step in dict.fromkeys([*kept, *made]):
        old, new = kept.get(step), made.get(step)
        if old != new:
            lines.append(f"{step!r}: " + "\n    ".join(_about(old, new)))
    return lines


def _about(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> Iterator[str]:
    if old is None or new is None:
        yield "is new" if old is None else "is no longer made"
        return
    if "refused" in old or "refused" in new:
        yield f"was {_told(old)}, is {_told(new)}"
        return
    if old["tensors"] == new["tensors"]:
        yield f"logical tensors: equal, all {len(new['tensors'])} of them"
    else:
        yield f"logical tensors: DIFFER: {_changes(old['tensors'], new['tensors'])}"
    if old["files"] != new["files"]:
        yield f"files: {_changes(old['files'], new['files'])}"
    else:
        yield f"files: equal, all {len(new['files'])} of them"


def _told(output: Mapping[str, Any]) -> str:
    return f"refused ({output['refused']})" if "refused" in output else "written"


def _changes(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Which keys changed, went and came."""
    groups = {
        "changed": [name for name in old if name in new and old[name] != new[name]],
        "gone": [name for name in old if name not in new],
        "new": [name for name in new if name not in old],
    }
    return "; ".join(
        f"{len(names)} of {len(old)} {what}: {', '.join(names[:_SHOWN])}{', ...' * (len(names) > _SHOWN)}"
        for what, names in groups.items()
        if names
    )
