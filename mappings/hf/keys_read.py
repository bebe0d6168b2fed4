"""Which keys of config.json the reference code of a model reads, so that other keys can change nothing.

``keys_read.json`` is read off transformers' source by ``scripts/read_transformers_keys.py``: for each
``model_type`` the keys that its config class, its model and what all models share (rope, masks, caches,
loading) read, and the defaults that they take. A type without a list (a third party's, or code that came with
the model) keeps the strict rule: every key that no rule owns is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Final

Value = Any  # what JSON holds

#: read, but for training alone, or for how something is computed and not for what
NOT_THE_RESULT: Final = frozenset({"cache_implementation", "ep_size", "gradient_checkpointing"})
#: dropouts, which do nothing but in training
_DROPOUT: Final = re.compile(
    r"(\A|_)(dropout|dropout_(p|prob|rate)|pdrop|drop_rate|drop_path_rate|layerdrop)\Z"
)
#: names computed for what changes no result: which tensors a model hands out beside its result
#: (utils/output_capturing.py), and a warning about ids outside the vocabulary (validate_token_ids)
_HANDED_OUT: Final = frozenset({"output_*", "*_token_id"})
#: never carried along: names of code, of files and of places, whoever reads them
_NEVER: Final = frozenset(
    """
    auto_map auto_class custom_pipelines custom_generate trust_remote_code name_or_path transformers_weights
    attn_implementation experts_implementation quantization_config adapter_kwargs extra_files
    extra_config_files
    """.split()
)


@dataclass(frozen=True, slots=True)
class KeysRead:
    """What the code of one model type reads of its config."""

    keys: frozenset[str]
    patterns: tuple[str, ...]
    defaults: Mapping[str, Value]

    def reads(self, key: str) -> bool:
        """Whether the code may read the key; in doubt it does."""
        return key in self.keys or any(fnmatchcase(key, pattern) for pattern in self.patterns)

    def harmless(self, key: str, value: Value) -> bool:
        """Whether a key with this value says nothing that the code would not take without it."""
        if key in NOT_THE_RESULT or _DROPOUT.search(key) or not self.reads(key):
            return True
        return key in self.defaults and _same(self.defaults[key], value)


@dataclass(slots=True)
class Judged:
    """Keys that no rule owns: never read, read but at their default (or without effect), and in doubt."""

    unread: list[str] = field(default_factory=list)
    default: list[str] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)


@cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_bytes())
    return data


def version() -> str:
    """The transformers release that the lists were read off."""
    return str(_data()["transformers"])


def model(model_type: str) -> dict[str, Any] | None:
    """What is kept of a model type of transformers: ``reads``, ``defaults``, ``tasks``, ``built_on``, ``of``;
    nothing of one whose code takes its config as a whole; None for a type that transformers has not."""
    found: dict[str, Any] | None = _data()["models"].get(model_type)
    return found if found is not None else {} if model_type in _data()["whole"].split() else None


@cache
def keys_read(model_type: str) -> KeysRead | None:
    """The list of a model type, None where there is none."""
    own = _data()["models"].get(model_type)
    if own is None:
        return None
    shared = _data()["shared"]
    names = {*own["reads"].split(), *shared["reads"].split()}
    patterns = tuple(sorted(name for name in names - _HANDED_OUT if "*" in name))
    generation = set(_data()["generation"].split())  # taken out of the config before the model has it
    keys = {name for name in names - generation if "*" not in name}
    return KeysRead(frozenset(keys), patterns, {**shared["defaults"], **own["defaults"]})


def judge(values: Mapping[str, Value], keys: Iterable[str], *kinds: str | None) -> Judged:
    """Sort keys that no rule owns by what the code of these model types does with them.

    ``kinds``: the config's own type and, for a config inside another, the outer one's. Where one of them has
    no list, or the config says that code came with the model, all keys are in doubt.
    """
    keys = list(keys)
    if not keys:  # and nothing has to be looked up
        return Judged()
    lists = [keys_read(kind) if isinstance(kind, str) else None for kind in kinds]
    known = [each for each in lists if each is not None]
    strict = len(known) < len(lists) or values.get("auto_map") is not None
    judged = Judged()
    for key in keys:
        if strict or key in _NEVER:
            judged.doubtful.append(key)
        elif not any(each.reads(key) for each in known):
            judged.unread.append(key)
        elif all(each.harmless(key, values[key]) for each in known):
            judged.default.append(key)
        else:
            judged.doubtful.append(key)
    return judged


def _same(default: Value, value: Value) -> bool:
    """Equal, where True is not 1."""
    return bool(default == value) and isinstance(default, bool) == isinstance(value, bool)
