"""A table made for one checkpoint: every tensor as it is, under its own name.

For models that have no counterpart elsewhere, and for moves between containers of the same names. It lets
the engine move, cast, check and verify them like any other model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from .families.speech import ArchiveOnly
from .hf.fields import Value
from .table import Part, Rule, Table


class IdentityTable(Table):
    """The table of a checkpoint whose tensors stay as they are. ``architecture`` is NeMo's class."""

    __slots__ = ()


def identity_table(target: str, tensors: Iterable[tuple[str, tuple[int, ...]]]) -> IdentityTable:
    """The table of tensors with these names and shapes, of a model of class ``target``."""
    rules, sizes = [], {"layers": 1, "vocab": 1, "true_vocab": 1}
    for name, shape in tensors:
        factors = {f"axis{position}_{length}": length for position, length in enumerate(shape)}
        sizes |= factors
        # names come out of the checkpoint: their braces are no holes
        plain = name.replace("{", "{{").replace("}", "}}")
        rules.append(Rule(plain, " ".join(factors), (Part(plain, " ".join(factors)),)))
    module, _, model = target.rpartition(".")
    return IdentityTable(
        architecture=model or "unknown",
        hf_class="",
        fields=(),
        rules=tuple(rules),
        nemo=ArchiveOnly(module, model, "", {}),
        sizes=partial(_sizes, sizes),
    )


def _sizes(sizes: Mapping[str, int], _config: Mapping[str, Value]) -> dict[str, int]:
    return dict(sizes)
