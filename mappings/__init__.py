"""One frozen table per architecture, and the registry that finds the table of a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..entry_points import BUILT_IN, entries
from ..errors import NemoconvError, UnsupportedArchitecture
from .nemo2.modules import NEMO_MODULES
from .refused import NO_COUNTERPART

if TYPE_CHECKING:
    from ..formats.text.fiddle import Symbol
    from .table import Table


def architectures() -> list[str]:
    """Names of all registered architectures (Hugging Face ``model_type``)."""
    return sorted(entries("mappings"))


def load_table(architecture: str) -> Table:
    """The table of an architecture. Raises UnsupportedArchitecture."""
    found = entries("mappings").get(architecture)
    if found is None and architecture in NO_COUNTERPART:
        raise UnsupportedArchitecture(
            f"the architecture {architecture!r} is not supported: {NO_COUNTERPART[architecture]}"
        )
    if found is None:
        raise UnsupportedArchitecture(
            f"no mapping table for the architecture {architecture!r}",
            hint=f"supported: {', '.join(architectures())}",
        )
    table: Table = found.load()
    return table


def table_for(config: Mapping[str, Any], where: str) -> Table:
    """The table of a config.json. Raises UnsupportedArchitecture, naming what it says it is.

    A class with a table of its own, beside that of its ``model_type``, is registered as ``type:class``.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise UnsupportedArchitecture(f"{where}: config.json has no model_type")
    classes = config.get("architectures")
    named = [f"{kind}:{name}" for name in classes] if isinstance(classes, list) else []
    ours = [name for name in named if name in entries("mappings")]
    table = load_table(ours[0] if ours else kind)
    classes = classes or [table.hf_class]
    if not isinstance(classes, list) or not {table.hf_class, *table.other_classes}.intersection(classes):
        raise UnsupportedArchitecture(
            f"{where}: is a {classes!r}; of model_type {kind!r} only {table.hf_class} is supported"
        )
    return table


def table_for_nemo(
    config_class: Symbol, given: Mapping[str, Any], where: str, architecture: Any = None
) -> Table:
    """The table of a NeMo 2 config with these fields set. Raises UnsupportedArchitecture.

    Where several architectures share it (GLM and ChatGLM), ``architecture`` says which it was once.
    """
    found: list[Table] = []
    own = NEMO_MODULES.get(config_class.module, ())
    for name in architectures():
        if name not in own and entries("mappings")[name].origin == BUILT_IN:
            continue
        try:
            table = load_table(name)
        except NemoconvError:  # a broken plug-in stops nobody else
            continue
        if table.nemo.fits(config_class, given):
            found.append(table)
    for table in found:
        if table.architecture == architecture:
            return table
    if found:
        known = config_class.name
        return max(found, key=lambda table: (known in table.nemo.defaults, len(table.nemo.marks)))
    raise UnsupportedArchitecture(
        f"{where}: no mapping table for NeMo's {config_class}",
        hint=f"supported: {', '.join(architectures())}",
    )
