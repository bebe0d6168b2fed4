"""The index of built-in architectures, made of the files in ``mappings/models``: so that starting, or reading
one NeMo config, imports the few that it needs and not all.

    python -m nemoconv.mappings.indexing      # writes built_in.py anew

A file's architectures are those of its own ``model_type``; what it imports from others is theirs.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Final

from . import models
from .architecture import Architecture
from .nemo2.fields import ArchivesOnly, NemoClasses

FILE: Final = Path(__file__).parents[1] / "built_in.py"
_LONGEST: Final = 110
_HEAD: Final = '''"""Where the built-in architectures lie. Made by nemoconv.mappings.indexing: do not edit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
'''


def found() -> Iterator[tuple[str, str, Architecture]]:
    """(model type, target as of an entry point, architecture) of all that lie in ``mappings/models``.

    Raises ValueError for two architectures of one name, and for a file without one of its name.
    """
    seen: dict[str, str] = {}
    for file in sorted(info.name for info in pkgutil.iter_modules(models.__path__)):
        module = import_module(f"{models.__name__}.{file}")
        own = [
            (attribute, value)
            for attribute, value in vars(module).items()
            if isinstance(value, Architecture) and _file(value) == file
        ]
        if not own:
            raise ValueError(f"{module.__name__}: has no Architecture whose model_type is {file!r}")
        for attribute, architecture in own:
            for name in architecture.model_types:
                target = f"{module.__name__}:{attribute}"
                if seen.setdefault(name, target) != target:
                    raise ValueError(f"{name!r} is both {seen[name]} and {target}")
                yield name, target, architecture


def _file(architecture: Architecture) -> str:
    return architecture.name.partition(":")[0].replace("-", "_")


def text() -> str:
    """The index as a module."""
    targets: dict[str, str] = {}
    modules: dict[str, list[str]] = {}
    families: dict[str, list[tuple[bool, str]]] = {}
    for name, target, architecture in sorted(found(), key=lambda each: each[0]):
        targets[name] = target
        for module in sorted(_modules(architecture.table.nemo)):
            modules.setdefault(module, []).append(name)
        if architecture.nemo1:
            order = bool(architecture.nemo1.read_as), name
            families.setdefault(architecture.nemo1.family, []).append(order)
    first = {family: [name for _, name in sorted(names)] for family, names in sorted(families.items())}
    return "\n".join(
        (
            _HEAD,
            "#: by model_type: module and attribute",
            _dictionary("ARCHITECTURES", "Mapping[str, str]", targets),
            "#: by the module of NeMo 2's config classes: the architectures that have classes there",
            _dictionary("NEMO_MODULES", "Mapping[str, tuple[str, ...]]", dict(sorted(modules.items()))),
            "#: by the family of NeMo 1's model classes: what it can be, the first of those that fit",
            _dictionary("NEMO_1", "Mapping[str, tuple[str, ...]]", first),
            "",
        )
    )


def _modules(nemo: NemoClasses) -> set[str]:
    return set() if isinstance(nemo, ArchivesOnly) else {nemo.module, *nemo.modules} - {""}


def _dictionary(name: str, kind: str, held: dict[str, str] | dict[str, list[str]]) -> str:
    lines = [f"{name}: Final[{kind}] = {{"]
    for key, value in held.items():
        line = f'    "{key}": ' + (f'"{value}"' if isinstance(value, str) else _tuple(value)) + ","
        long = isinstance(value, str) and len(line) > _LONGEST
        lines.append(f'    "{key}": (\n        "{value}"\n    ),' if long else line)
    return "\n".join((*lines, "}"))


def _tuple(names: list[str]) -> str:
    if len(names) == 1:
        return f'("{names[0]}",)'
    return "(\n" + "".join(f'        "{name}",\n' for name in names) + "    )"


if __name__ == "__main__":
    FILE.write_text(text())
    print(f"{FILE}: {sum(1 for _ in found())} architectures")
