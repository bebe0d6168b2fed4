"""Keys of config.json that no rule owns: which of them travel with a model, and what a report says of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...formats.text.special_floats import tagged
from .fields import INERT, PRIVATE, Value
from .keys_read import judge, version


def carried(hf: Mapping[str, Value], keys: Iterable[str], kind: str | None = None) -> dict[str, Value]:
    """Those of ``keys`` that travel with the model: known to be inert, or harmless to the code of its type.

    ``kind`` is that type where ``hf`` is no whole config. Infinities and NaN are spelled as transformers
    spells them in JSON.
    """
    keys = [key for key in keys if key in hf]
    judged = judge(hf, _others(keys), kind or hf.get("model_type"))
    chosen = INERT.union(judged.unread, judged.default)
    return {key: tagged(hf[key]) for key in keys if key in chosen}


def notes(
    hf: Mapping[str, Value], keys: Iterable[str], inner: Mapping[str, Mapping[str, Value]] | None = None
) -> list[str]:
    """What a report says of keys that are carried along and not known to be inert in every model. ``inner``
    are those of configs inside this one."""
    kind = hf.get("model_type")
    judged = judge(hf, _others(keys), kind)
    found = []
    if judged.unread:
        found.append(
            f"config.json: {', '.join(judged.unread)}: never read by the code of {kind!r} in transformers "
            f"{version()}; carried along"
        )
    if judged.default:
        found.append(
            f"config.json: {', '.join(judged.default)}: at the default of {kind!r} or without effect on what "
            "it computes; carried along"
        )
    for part, values in (inner or {}).items():
        if others := _others(values):
            found.append(f"config.json: {part}: {', '.join(others)}: without effect there; carried along")
    return found


def _others(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if key not in INERT and key not in PRIVATE]
