"""One frozen table per architecture, and the registry that finds the table of a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..built_in import NEMO_1, NEMO_MODULES
from ..entry_points import BUILT_IN, entries
from ..errors import NemoconvError, UnsupportedArchitecture
from .refused import NO_COUNTERPART

if TYPE_CHECKING:
    from ..formats.text.fiddle import Symbol
    from .architecture import Architecture
    from .table import Table


def architectures() -> list[str]:
    """Names of all registered architectures (Hugging Face ``model_type``)."""
    return sorted(entries("mappings"))


def load_table(architecture: str) -> Table:
    """The table of an architecture. Raises UnsupportedArchitecture."""
    found = _load(architecture)
    table: Table = found if (known := _as_described(found)) is None else known.table
    return table


def described(architecture: str) -> Architecture | None:
    """The description of an architecture; None for one that is registered as a bare table.

    Raises UnsupportedArchitecture.
    """
    return _as_described(_load(architecture))


def nemo1_architectures(family: str) -> tuple[str, ...]:
    """The architectures that NeMo 1's model classes of a family can be told to be, third parties' last."""
    others = (name for name, entry in entries("mappings").items() if entry.origin != BUILT_IN)
    found = list(NEMO_1.get(family, ()))
    for name in others:
        try:
            known = described(name)
        except NemoconvError:  # a broken plug-in stops nobody else
            continue
        if known and known.nemo1 and known.nemo1.family == family:
            found.append(name)
    return tuple(found)


def _as_described(found: Any) -> Architecture | None:
    from .architecture import Architecture

    return found if isinstance(found, Architecture) else None


def _load(architecture: str) -> Any:
    found = entries("mappings").get(architecture)
    if found is None and architecture in NO_COUNTERPART:
        raise UnsupportedArchitecture(
            f"the architecture {architecture!r} is not supported: {NO_COUNTERPART[architecture]}"
        )
    if found is None:
        raise UnsupportedArchitecture(
            f"no mapping table for the architecture {architecture!r}", hint=_hint(architecture)
        )
    return found.load()


def _hint(architecture: str) -> str:
    """Why it has none, what was perhaps meant, or what there is."""
    from .nearest import closest_names, why_not

    names = architectures()
    reason = why_not(architecture, names)
    if reason is not None:
        return reason
    meant = closest_names(architecture, names)
    return f"did you mean {meant[0]!r}?" if meant else f"supported: {', '.join(names)}"


def table_for(config: Mapping[str, Any], where: str) -> Table:
    """The table of a config.json. Raises UnsupportedArchitecture, naming what it says it is.

    A class with a table of its own, beside that of its ``model_type``, is registered as ``type:class``.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise UnsupportedArchitecture(f"{where}: config.json has no model_type")
    classes = config.get("architectures")
    if classes and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise UnsupportedArchitecture(f"{where}: architectures={classes!r} is no list of names of classes")
    named = [f"{kind}:{name}" for name in classes or ()]
    ours = [name for name in named if name in entries("mappings")]
    table = load_table(ours[0] if ours else kind)
    classes = classes or [table.hf_class]
    if not any(is_class_of(table, name) for name in classes):
        raise UnsupportedArchitecture(
            f"{where}: is a {classes!r}; of model_type {kind!r} only {table.hf_class} is supported"
        )
    return table


def is_class_of(table: Table, name: object) -> bool:
    """Whether a class that config.json names is the table's, in whatever case its letters were then
    (``LLaMAForCausalLM``), or what that class is without its output layer."""
    names = {each.lower() for each in (table.hf_class, *table.other_classes, *base_classes(table))}
    return isinstance(name, str) and name.lower() in names


def base_classes(table: Table) -> tuple[str, ...]:
    """What a language model's class without the output layer may be called: all there is where it is tied."""
    name = table.hf_class.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    return () if name == table.hf_class else (name + "Model", name + "TextModel")


def table_for_nemo(
    config_class: Symbol, given: Mapping[str, Any], where: str, architecture: Any = None
) -> Table:
    """The table of a NeMo 2 config with these fields set: of those with such a class the one with the fewest
    complaints. Where several share it (GLM and ChatGLM), ``architecture`` says which it was once.

    Raises UnsupportedArchitecture.
    """
    from .choosing import choose

    candidates: list[Table] = []
    own = NEMO_MODULES.get(config_class.module, ())
    for name in architectures():
        if name not in own and entries("mappings")[name].origin == BUILT_IN:
            continue
        try:
            candidates.append(load_table(name))
        except NemoconvError:  # a broken plug-in stops nobody else
            continue
    if found := choose(candidates, config_class, given, architecture):
        return found
    raise UnsupportedArchitecture(
        f"{where}: no mapping table for NeMo's {config_class}",
        hint=f"supported: {', '.join(architectures())}",
    )
