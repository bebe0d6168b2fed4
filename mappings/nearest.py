"""Why a model type of transformers has no table, where no reason of its own is written down: what it is built
on there, the nearest of those that have a table, and what it reads beyond that one."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from typing import Any, Final

from ..errors import some
from .hf import keys_read

#: tasks of models that are told by their tensors and texts alone
_TEXT: Final = frozenset({"causal_lm", "masked_lm", "seq_to_seq_causal_lm"})
#: how tasks of other models begin, though those may have a decoder by itself, too
_OTHER: Final = ("audio", "ctc", "image", "multimodal", "object", "rnnt", "speech", "tdt", "text_to", "video")
#: beside those, what a task is in words; others are called as transformers calls them
_WORDS: Final = {"image_text_to_text": "images and text", "multimodal_lm": "more than text"}


def why_not(architecture: str, have: Collection[str]) -> str | None:
    """What keeps a model type that transformers has from being converted; None for one that it has not.

    ``have``: the model types that have a table.
    """
    known = keys_read.model(architecture)
    if known is None:
        return None
    tasks = known.get("tasks", "").split()
    others = [task for task in tasks if task.startswith(_OTHER)]
    if others or not _TEXT & set(tasks):
        return _of_another_kind(known, others or tasks)
    near = nearest(architecture, have)
    if near is None:
        return _on_its_own(architecture, tasks)
    more = keys_beyond(architecture, near)
    beyond = (
        f"reads {some(more, 6)} beyond it" if more else "differs from it in its layers and not in its keys"
    )
    return f"its code in transformers is built on that of {near!r}, the nearest with a table, and {beyond}"


def closest_names(architecture: str, have: Collection[str]) -> list[str]:
    """Names that may have been meant."""
    return get_close_matches(architecture, sorted(have), 1, 0.8)


def nearest(architecture: str, have: Collection[str]) -> str | None:
    """The model type with a table on whose code this one's is built, directly or by way of others."""
    homes: dict[str, str] = {}
    for kind in sorted(have):
        homes.setdefault((keys_read.model(kind) or {}).get("of", kind), kind)
    queue, seen = [architecture], set[str]()
    while queue:
        kind = queue.pop(0)
        built_on = (keys_read.model(kind) or {}).get("built_on", "").split()
        for folder in built_on:
            if folder in homes:
                return homes[folder]
        seen.add(kind)
        queue += [folder for folder in built_on if folder not in seen]
    return None


def keys_beyond(architecture: str, other: str) -> list[str]:
    """Keys that the code of one model type reads and that of the other does not."""
    own, theirs = (keys_read.keys_read(kind) for kind in (architecture, other))
    declared = (keys_read.model(architecture) or {}).get("defaults", {})
    reads = set((keys_read.model(architecture) or {}).get("reads", "").split())
    return sorted(key for key in reads & set(declared) if own and theirs and not theirs.reads(key))


def _of_another_kind(known: dict[str, Any], tasks: list[str]) -> str:
    if not known:
        return "it is put together from other models, for which no table here is made"
    if not tasks:
        return f"it is a part of {known['of']}" if "of" in known else "it has no output by which to know it"
    task = _WORDS.get(tasks[0], tasks[0].replace("_", " "))
    return f"it is a model for {task}: no table here says what NeMo would call its parts"


def _on_its_own(architecture: str, tasks: list[str]) -> str:
    own = (keys_read.model(architecture) or {}).get("reads", "").split()
    declared = (keys_read.model(architecture) or {}).get("defaults", {})
    keys = sorted(key for key in own if key in declared)
    what = "an encoder and a decoder" if "seq_to_seq_causal_lm" in tasks else "layers"
    return (
        f"it has {what} of its own, built on no model that has a table here; a table would have to say what "
        f"{some(keys, 6)} mean in Megatron"
        if keys
        else f"it has {what} of its own, built on no model that has a table here"
    )
