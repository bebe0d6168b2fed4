"""NeMo 2's ``io.json``, a graph serialized by Fiddle 0.3.1, as plain data.

A loader of such a file imports and calls whatever the file names. Here a name stays a name: a
``Symbol`` is two strings and a ``Node`` is a symbol with arguments, so nothing is ever imported.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any, TypeAlias

from ...errors import CorruptCheckpoint, UnsafeCheckpoint
from . import plain_json

# The largest files seen hold a few hundred objects.
MAX_OBJECTS = 100_000
MAX_VALUES = 1_000_000
MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Symbol:
    """The name of a class, function or constant, never the thing itself."""

    module: str
    name: str

    @classmethod
    def parse(cls, dotted: str) -> Symbol:
        """``torch.bfloat16`` -> ``Symbol("torch", "bfloat16")``."""
        module, _, name = dotted.rpartition(".")
        return cls(module, name)

    def __str__(self) -> str:
        return f"{self.module}.{self.name}" if self.module else self.name


CONFIG = Symbol("fiddle._src.config", "Config")
PARTIAL = Symbol("fiddle._src.partial", "Partial")
_METADATA = Symbol("fiddle._src.config", "BuildableTraverserMetadata")
_DICT = Symbol("builtins", "dict")
_TUPLE = Symbol("builtins", "tuple")
_LIST = Symbol("builtins", "list")
_SEQUENCES = (_TUPLE, Symbol("builtins", "set"), Symbol("builtins", "frozenset"))
_DEFAULTDICT = Symbol("collections", "defaultdict")

Value: TypeAlias = (
    "bool | int | float | str | Symbol | Node | dict[str, Value] | list[Value] | tuple[Value, ...] | None"
)


@dataclass(frozen=True, slots=True)
class Node:
    """A call that the file asks for: ``symbol`` with the arguments that were set.

    ``kind`` says how it was written: Fiddle's Config or Partial, or the class itself (NeMo does so
    for objects such as LoRA). None stands for a type that is not known here: its items are kept
    under their labels, and it cannot be written again.
    """

    symbol: Symbol
    args: dict[str, Value]
    kind: Symbol | None = CONFIG


def parse(data: bytes, where: str) -> Node:
    """The root of an ``io.json``. Raises CorruptCheckpoint or UnsafeCheckpoint."""
    document = plain_json.loads_object(data, where, allow_nonfinite=True)
    objects, root = document.get("objects"), document.get("root")
    if not isinstance(objects, dict) or not isinstance(root, dict):
        raise CorruptCheckpoint(f"{where}: no 'root' and 'objects', so not a Fiddle file")
    if len(objects) > MAX_OBJECTS:
        raise UnsafeCheckpoint(f"{where}: {len(objects):,} objects, more than {MAX_OBJECTS:,}")
    value = _Parser(objects, where).value(root, 0)
    if not isinstance(value, Node):
        raise CorruptCheckpoint(f"{where}: the root is not a configuration")
    return value


def emit(root: Node) -> bytes:
    """``root`` as Fiddle writes it: every value carries its path, which NeMo's loader looks up."""
    writer = _Writer()
    document = {
        "root": writer.value(root, "<root>"),
        "objects": writer.objects,
        "refcounts": dict(writer.references),
        "version": "0.0.1",
    }
    return json.dumps(document).encode()


class _Parser:
    """Follows references, each object once."""

    def __init__(self, objects: dict[str, Any], where: str) -> None:
        self.objects = objects
        self.where = where
        self.done: dict[str, Value] = {}
        self.sizes: dict[str, int] = {}
        self.open: set[str] = set()
        self.count = 0  # values so far, as if every shared object were written out

    def fail(self, message: str) -> CorruptCheckpoint:
        return CorruptCheckpoint(f"{self.where}: {message}")

    def value(self, raw: object, depth: int) -> Value:
        self.add(1)
        if depth > MAX_DEPTH:
            raise UnsafeCheckpoint(f"{self.where}: objects nested deeper than {MAX_DEPTH} levels")
        if isinstance(raw, list):
            return [self.value(item, depth + 1) for item in raw]
        if not isinstance(raw, dict):
            return raw  # type: ignore[return-value]  # JSON has nothing else
        match raw.get("type"):
            case "leaf":
                return self.leaf(raw)
            case "pyref":
                return self.symbol(raw)
            case "ref":
                return self.reference(raw, depth)
            case dict() as kind if kind.get("type") == "pyref":
                return self.container(self.symbol(kind), raw, depth)
        raise self.fail(f"an object of unknown type {raw.get('type')!r}")

    def add(self, values: int) -> None:
        """Count, so that objects that share their parts cannot blow up whoever walks them."""
        self.count += values
        if self.count > MAX_VALUES:
            raise UnsafeCheckpoint(f"{self.where}: stands for more than {MAX_VALUES:,} values")

    def leaf(self, raw: dict[str, Any]) -> Value:
        value = raw.get("value")
        if isinstance(value, (dict, list)):
            raise self.fail("a leaf that is not a number, text, true, false or null")
        return value

    def symbol(self, raw: dict[str, Any]) -> Symbol:
        module, name = raw.get("module"), raw.get("name")
        if not (isinstance(module, str) and isinstance(name, str) and module and name):
            raise self.fail("a pyref without module and name")
        return Symbol(module, name)

    def reference(self, raw: dict[str, Any], depth: int) -> Value:
        key = raw.get("key")
        if not isinstance(key, str) or key not in self.objects:
            raise self.fail(f"refers to an object {key!r} that is not there")
        if key in self.open:
            raise self.fail(f"the object {key!r} contains itself")
        if key in self.done:
            self.add(self.sizes[key])
            return self.done[key]
        self.open.add(key)
        before = self.count
        self.done[key] = self.value(self.objects[key], depth + 1)
        self.sizes[key] = self.count - before
        self.open.discard(key)
        return self.done[key]

    def container(self, kind: Symbol, raw: dict[str, Any], depth: int) -> Value:
        items = raw.get("items")
        if not isinstance(items, list) or not all(_is_item(item) for item in items):
            raise self.fail(f"the items of a {kind} are not pairs")
        metadata = raw.get("metadata")
        if kind in (_DICT, _DEFAULTDICT):
            return self.mapping(kind, items, self.value(metadata, depth + 1), depth)
        values = [self.value(item[1], depth + 1) for item in items]
        if kind in _SEQUENCES:
            return tuple(values)
        if kind == _LIST:
            return values
        if (buildable := self.buildable(metadata, depth)) is not None:
            return self.node(kind, buildable, values)
        if kind in (CONFIG, PARTIAL):
            raise self.fail(f"a {kind.name} without its metadata")
        return Node(kind, _labelled(items, values), None)

    def mapping(self, kind: Symbol, items: list[Any], metadata: Value, depth: int) -> dict[str, Value]:
        """The metadata of a dict are its keys; of a defaultdict, its factory and its keys."""
        keys: Value = metadata
        if kind == _DEFAULTDICT:
            keys = metadata[1] if isinstance(metadata, (tuple, list)) and len(metadata) == 2 else ()
        if not isinstance(keys, (tuple, list)) or len(keys) != len(items):
            raise self.fail("a dict whose keys and values differ in number")
        found: dict[str, Value] = {}
        for key, item in zip(keys, items, strict=True):
            if isinstance(key, (Node, dict, list)):
                raise self.fail("a dict whose key is not plain")
            self.set(found, str(key), self.value(item[1], depth + 1))
        return found

    def buildable(self, raw: object, depth: int) -> dict[str, Value] | None:
        """The parts of Fiddle's metadata that say what is called with which arguments, if any."""
        if isinstance(raw, dict) and raw.get("type") == "ref":
            raw = self.objects.get(str(raw.get("key")))
        if not isinstance(raw, dict) or not isinstance(raw.get("type"), dict):
            return None
        if self.symbol(raw["type"]) != _METADATA:
            return None
        items = raw.get("items")
        if not isinstance(items, list) or not all(_is_item(item) for item in items):
            raise self.fail("the metadata of a Config are not pairs")
        wanted = ("fn_or_cls", "argument_names")
        return {name: self.value(item[1], depth + 1) for item in items if (name := _label(item[0])) in wanted}

    def node(self, kind: Symbol, metadata: dict[str, Value], values: list[Value]) -> Node:
        target, names = metadata.get("fn_or_cls"), metadata.get("argument_names", ())
        if not isinstance(target, Symbol) or not isinstance(names, (tuple, list)):
            raise self.fail(f"the metadata of a {kind.name} do not name a class")
        if len(names) != len(values):
            raise self.fail(f"{target}: {len(values)} arguments under {len(names)} names")
        args: dict[str, Value] = {}
        for name, value in zip(names, values, strict=True):
            if not isinstance(name, (str, int)):
                raise self.fail(f"{target}: an argument whose name is not text")
            self.set(args, str(name), value)
        return Node(target, args, kind)

    def set(self, found: dict[str, Value], key: str, value: Value) -> None:
        if key in found:
            raise self.fail(f"the key {key!r} appears twice")
        found[key] = value


def _is_item(item: object) -> bool:
    return isinstance(item, list) and len(item) == 2 and isinstance(item[0], str)


_LABEL = re.compile(r"(?:Attr\(name|Key\(key)='([^']*)'\)|Index\(index=(\d+)\)")


def _label(text: str) -> str:
    """``Attr(name='dim')`` -> ``dim``."""
    found = _LABEL.fullmatch(text)
    return (found[1] or found[2] or "") if found else text


def _labelled(items: list[Any], values: list[Value]) -> dict[str, Value]:
    labels = [_label(item[0]) for item in items]
    if len(set(labels)) != len(labels):
        labels = [str(position) for position in range(len(labels))]
    return dict(zip(labels, values, strict=True))


class _Writer:
    """Writes parts before wholes and names objects as Fiddle does, so equal input, equal bytes."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.references: Counter[str] = Counter()
        self.names: Counter[str] = Counter()
        # Fiddle lists every path of one class or dtype wherever it appears: the lists are shared.
        self.paths: defaultdict[Symbol, list[str]] = defaultdict(list)

    def value(self, value: Value, path: str) -> Any:
        if isinstance(value, Symbol):
            self.paths[value].append(path)
            return {**_pyref(value), "paths": self.paths[value]}
        if isinstance(value, Node):
            return self.node(value, path)
        if isinstance(value, dict):
            return self.mapping(value, path)
        if isinstance(value, tuple):
            return self.sequence(_TUPLE, value, path)
        if isinstance(value, list):
            return self.sequence(_LIST, value, path)
        return {"type": "leaf", "value": value, "paths": [path]}

    def node(self, node: Node, path: str) -> Any:
        if node.kind is None:
            raise ValueError(f"{path}: a {node.symbol} cannot be written")
        items = [
            [f"Attr(name={name!r})", self.value(value, f"{path}.{name}")] for name, value in node.args.items()
        ]
        metadata = self.buildable(node)
        parts = {"items": items, "metadata": metadata, "paths": [path]}
        return self.add(node.symbol.name, {"type": _pyref(node.kind), **parts})

    def buildable(self, node: Node) -> Any:
        """What Fiddle needs to call the class: its name and those of the arguments."""
        items = [
            ["Attr(name='fn_or_cls')", _pyref(node.symbol)],
            ["Attr(name='argument_names')", self.names_of(node.args)],
            ["Attr(name='argument_tags')", self.add("dict", _empty_dict())],
            ["Attr(name='argument_history')", self.add("dict", _empty_dict())],
        ]
        kind = _pyref(_METADATA)
        return self.add(_METADATA.name, {"type": kind, "items": items, "metadata": kind})

    def mapping(self, value: dict[str, Value], path: str) -> Any:
        items = [[f"Key(key={key!r})", self.value(item, f"{path}[{key!r}]")] for key, item in value.items()]
        parts = {"items": items, "metadata": self.names_of(value), "paths": [path]}
        return self.add("dict", {"type": _pyref(_DICT), **parts})

    def sequence(self, kind: Symbol, value: list[Value] | tuple[Value, ...], path: str) -> Any:
        items = [[f"Index(index={i})", self.value(item, f"{path}[{i}]")] for i, item in enumerate(value)]
        written = {"type": _pyref(kind), "items": items, "metadata": None, "paths": [path]}
        # Fiddle never makes an object of the empty tuple, of which Python has only one.
        return written if value == () else self.add(kind.name, written)

    def names_of(self, args: dict[str, Value]) -> Any:
        items = [[f"Index(index={i})", name] for i, name in enumerate(args)]
        written = {"type": _pyref(_TUPLE), "items": items, "metadata": None}
        return self.add("tuple", written) if args else written

    def add(self, name: str, written: dict[str, Any]) -> dict[str, str]:
        base = re.sub(r"(?<=[^_A-Z])(?=[A-Z])", "_", name.rpartition(".")[2]).lower()
        self.names[base] += 1
        key = f"{base}_{self.names[base]}"
        self.objects[key] = written
        self.references[key] += 1
        return {"type": "ref", "key": key}


def _pyref(symbol: Symbol) -> dict[str, str]:
    return {"type": "pyref", "module": symbol.module, "name": symbol.name}


def _empty_dict() -> dict[str, Any]:
    empty: dict[str, Any] = {"type": _pyref(_TUPLE), "items": [], "metadata": None}
    return {"type": _pyref(_DICT), "items": [], "metadata": empty}
