"""YAML out of a checkpoint (``model.yaml``, ``model_config.yaml``) as plain data.

Built from libyaml's events rather than with ``yaml.load``: no tag can name a class, nesting costs
no recursion, and an alias is counted as if it were written out. ``${...}`` stays text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from ...errors import CorruptCheckpoint, UnsafeCheckpoint

MAX_BYTES = 10 << 20
MAX_DEPTH = 64
MAX_VALUES = 500_000
# Values that aliases stand for, over the whole file.
MAX_ALIASED = 1_000

_TAG = "tag:yaml.org,2002:"
# Plain values: saying what they are is harmless. Timestamps and the like stay text.
_SCALARS = {_TAG + kind for kind in ("bool", "float", "int", "null", "str")}
_TAGS = {None, "!", _TAG + "map", _TAG + "seq", *_SCALARS}
# OmegaConf, which NeMo reads YAML with, takes 1e-5 for a number. YAML 1.1 takes it for text.
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def loads(data: bytes, where: str, *, max_bytes: int = MAX_BYTES) -> object:
    """The one document of ``data``; ``where`` names its file in messages.

    Raises CorruptCheckpoint for what is not YAML or contradicts itself, UnsafeCheckpoint for what
    is too large, too deep, or carries a tag.
    """
    if len(data) > max_bytes:
        raise UnsafeCheckpoint(f"{where}: {len(data):,} bytes, more than the {max_bytes:,} allowed")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptCheckpoint(f"{where}: not UTF-8 text (byte {error.start:,})") from None
    builder = _Builder(where)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.YAMLError as error:
        raise CorruptCheckpoint(f"{where}: not YAML: {_explain(error)}") from None
    return builder.result()


def loads_mapping(data: bytes, where: str) -> dict[str, object]:
    """Like :func:`loads`, for a file that must hold a mapping."""
    value = loads(data, where)
    if not isinstance(value, dict):
        raise CorruptCheckpoint(f"{where}: holds a {type(value).__name__}, not a mapping")
    return value


def dumps(value: object) -> bytes:
    """``value`` (dicts, lists, numbers, text) in block style, in its own order, without aliases."""
    text: str = yaml.dump(value, Dumper=_Plain, sort_keys=False, allow_unicode=True, default_flow_style=False)
    return text.encode()


class _Plain(_DUMPER):  # type: ignore[misc]  # yaml has no types
    def ignore_aliases(self, _data: object) -> bool:
        return True


def _explain(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    mark = getattr(error, "problem_mark", None)
    return f"{problem} at line {mark.line + 1}, column {mark.column + 1}" if mark else problem


class _Open:
    """A list or mapping whose end was not seen yet."""

    def __init__(self, value: Any, anchor: str | None, before: int) -> None:
        self.value = value
        self.anchor = anchor
        self.before = before
        self.key: Any = _NO_KEY
        self.merged: list[Any] = []


_NO_KEY = object()
_MERGE = object()


class _Builder:
    """Values from events, with a stack of its own."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.stack: list[_Open] = []
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.documents: list[Any] = []
        self.count = 0
        self.aliased = 0

    def take(self, event: Any) -> None:
        match event:
            case yaml.ScalarEvent():
                self.scalar(event)
            case yaml.AliasEvent():
                self.alias(event)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self.start(event, {} if isinstance(event, yaml.MappingStartEvent) else [])
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self.end(event)

    def result(self) -> object:
        if len(self.documents) > 1:
            raise CorruptCheckpoint(f"{self.where}: holds {len(self.documents)} documents")
        return self.documents[0] if self.documents else None

    def place(self, event: Any) -> str:
        return f"{self.where}: line {event.start_mark.line + 1}"

    def check(self, event: Any) -> None:
        if event.tag not in _TAGS:
            raise UnsafeCheckpoint(f"{self.place(event)}: the tag {event.tag!r} is not allowed")
        self.add(1)

    def add(self, values: int) -> None:
        self.count += values
        if self.count > MAX_VALUES:
            raise UnsafeCheckpoint(f"{self.where}: more than {MAX_VALUES:,} values")

    def scalar(self, event: Any) -> None:
        self.check(event)
        if self.wants_key() and event.value == "<<" and event.implicit[0]:
            self.stack[-1].key = _MERGE
            return
        before = self.count - 1
        value = self.resolve(event)
        self.remember(event.anchor, value, before)
        self.attach(value, event)

    def resolve(self, event: Any) -> object:
        text: str = event.value
        tag = event.tag
        if tag in (None, "!"):
            tag = _RESOLVER.resolve(yaml.ScalarNode, text, event.implicit)
            if event.implicit[0] and _FLOAT.fullmatch(text):
                tag = _TAG + "float"
        try:
            return _CONSTRUCT.get(tag, str)(text)
        except (ValueError, KeyError, IndexError, OverflowError):
            raise CorruptCheckpoint(
                f"{self.place(event)}: {text[:40]!r} is not of type {tag.removeprefix(_TAG)}"
            ) from None

    def alias(self, event: Any) -> None:
        if event.anchor not in self.anchors:
            # also an alias inside its own anchor, a value that would contain itself
            raise CorruptCheckpoint(
                f"{self.place(event)}: the alias {event.anchor!r} stands for nothing complete"
            )
        value, size = self.anchors[event.anchor]
        self.aliased += size
        if self.aliased > MAX_ALIASED:
            raise UnsafeCheckpoint(f"{self.where}: its aliases stand for more than {MAX_ALIASED:,} values")
        self.add(size)
        self.attach(value, event)

    def start(self, event: Any, value: object) -> None:
        self.check(event)
        if len(self.stack) >= MAX_DEPTH:
            raise UnsafeCheckpoint(f"{self.where}: nested deeper than {MAX_DEPTH} levels")
        if self.wants_key():
            raise CorruptCheckpoint(f"{self.place(event)}: a key that is not plain text")
        self.stack.append(_Open(value, event.anchor, self.count - 1))

    def end(self, event: Any) -> None:
        done = self.stack.pop()
        for key, value in _merged(done.merged):
            done.value.setdefault(key, value)
        self.remember(done.anchor, done.value, done.before)
        self.attach(done.value, event)

    def remember(self, anchor: str | None, value: object, before: int) -> None:
        if anchor is not None:
            self.anchors[anchor] = (value, self.count - before)

    def wants_key(self) -> bool:
        return bool(self.stack) and isinstance(self.stack[-1].value, dict) and self.stack[-1].key is _NO_KEY

    def attach(self, value: Any, event: Any) -> None:
        if not self.stack:
            self.documents.append(value)
            return
        top = self.stack[-1]
        if isinstance(top.value, list):
            top.value.append(value)
        elif top.key is _NO_KEY:
            self.key(top, value, event)
        elif top.key is _MERGE:
            self.merge(top, value, event)
        else:
            top.value[top.key] = value
            top.key = _NO_KEY

    def key(self, top: _Open, key: Any, event: Any) -> None:
        if isinstance(key, (dict, list)):
            raise CorruptCheckpoint(f"{self.place(event)}: a key that is not plain text")
        if key in top.value:
            raise CorruptCheckpoint(f"{self.place(event)}: the key {key!r} appears twice")
        top.key = key

    def merge(self, top: _Open, value: Any, event: Any) -> None:
        """``<<: *defaults``: keys that the mapping itself does not have."""
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, dict) for part in parts):
            raise CorruptCheckpoint(f"{self.place(event)}: '<<' with what is not a mapping")
        top.merged.extend(parts)
        top.key = _NO_KEY


def _merged(parts: list[dict[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    for part in parts:
        yield from part.items()


_RESOLVER: Any = yaml.resolver.Resolver()


def _construct(kind: str) -> Callable[[str], object]:
    construct = getattr(yaml.constructor.SafeConstructor(), f"construct_yaml_{kind}")

    def scalar(text: str) -> object:
        return construct(yaml.ScalarNode(_TAG + kind, text))

    return scalar


_CONSTRUCT: dict[str, Callable[[str], object]] = {
    _TAG + kind: _construct(kind) for kind in ("bool", "float", "int", "null")
}
