"""Read off transformers which keys of a config each model reads: writes ``mappings/hf/keys_read.json``.

usage: python scripts/read_transformers_keys.py [FILE]

The source is read, nothing of a model is run. Followed are attributes of whatever is a config (``config``,
``self.config``, ``text_config``, parameters annotated with a config class, other names for one of these),
``getattr``, ``hasattr`` and subscripts; in config classes what they read of themselves and of their keyword
arguments, and names that their ``attribute_map`` makes one. Files of other models count where they are
imported. What all models share (rope, masks, caches, attention, loading) is listed once. In doubt a key
counts as read: where a name is computed, every string of the file does, and a model whose code takes its
config as a whole gets no list. A default is listed where it is a literal and all readers have the same.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

OUTPUT: Final = Path(__file__).resolve().parent.parent / "mappings" / "hf" / "keys_read.json"
#: no literal default, or several
UNKNOWN: Final = object()
#: read as it stands: without the key that fails, so it is no other way of taking a default
PLAIN: Final = object()
#: files and folders beside ``models`` that take no part in loading and running a model
ELSEWHERE: Final = (
    "trainer training_args tokenization processing_utils feature_extraction image_ video_ audio_utils "
    "vision_utils convert_slow testing_utils hyperparameter hf_argparser optimization modelcard debug_utils "
    "file_utils model_debugging dependency_ modeling_gguf pipelines cli data exporters models"
).split()
#: configs, but of something else than a model
OTHER_CONFIGS: Final = frozenset(
    """
    generation_config quantization_config quant_config load_config watermarking_config compile_config
    tp_config distributed_config kernel_config assistant_config deepspeed_config ds_config peft_config
    adapter_config hf_config_file backbone_kwargs fusion_config continuous_batching_config cb_config
    """.split()
)
#: methods of a config that give a config
GIVES_CONFIG: Final = frozenset(
    "get_text_config get_mtp_config get_decoder_config deepcopy copy from_dict".split()
)
#: annotated classes that end in Config and configure something else
OTHER_CLASSES: Final = ("Generation", "Quant", "Load", "Batching", "Compile", "Watermark")
#: what takes a config as a whole
TAKES_ALL: Final = frozenset("to_dict to_diff_dict __dict__ items keys values".split())


@dataclass
class Reads:
    """Keys read, with their defaults, and whether a config was taken as a whole."""

    keys: dict[str, Any] = field(default_factory=dict)
    whole: bool = False

    def add(self, key: str, default: Any = UNKNOWN) -> None:
        if not key.startswith("__"):
            known = self.keys.setdefault(key, default)
            if known is PLAIN:
                self.keys[key] = default
            elif default is not PLAIN and not same(known, default):
                self.keys[key] = UNKNOWN

    def join(self, other: Reads) -> None:
        for key, default in other.keys.items():
            self.add(key, default)
        self.whole = self.whole or other.whole


def same(one: Any, other: Any) -> bool:
    return one is other or (UNKNOWN not in (one, other) and type(one) is type(other) and one == other)


def literal(node: ast.expr | None) -> Any:
    """The value of a literal that JSON holds, or UNKNOWN."""
    try:
        value = ast.literal_eval(node) if node is not None else UNKNOWN
    except (ValueError, TypeError, SyntaxError):
        return UNKNOWN
    return value if isinstance(value, (bool, int, float, str, list, type(None))) else UNKNOWN


def is_config_name(name: str) -> bool:
    low = name.lower()
    return (low in ("config", "cfg", "configuration", "conf") or low.endswith("_config")) and (
        low.lstrip("_") not in OTHER_CONFIGS
    )


class File:
    """One source file: its reads, the files of other models that it imports, its classes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = ast.parse(path.read_text())
        self.nodes = list(ast.walk(self.tree))
        self.classes = {node.name: node for node in self.tree.body if isinstance(node, ast.ClassDef)}
        self.aliases: set[str] = set()
        self._find_aliases()

    def imports(self) -> Iterator[tuple[Path, str]]:
        """(file, name) of what comes from config and model files."""
        for node in self.nodes:
            if not isinstance(node, ast.ImportFrom) or not node.level or not node.module:
                continue
            base = self.path.parents[node.level - 1].joinpath(*node.module.split("."))
            for name in node.names:
                yield base.with_suffix(".py"), name.name

    # what is a config

    def is_config(self, node: ast.expr) -> bool:
        match node:
            case ast.Name(id=name):
                return is_config_name(name) or name in self.aliases
            case ast.Attribute(attr=name):
                return is_config_name(name)
            case ast.Call(func=ast.Attribute(value=value, attr=name), args=args):
                return name in GIVES_CONFIG and (self.is_config(value) or any(map(self.is_config, args)))
            case ast.Call(func=ast.Call(func=ast.Name(id="type"))):
                return True
            case ast.Call(func=ast.Name(id=name), args=[first, *_]) if name in ("deepcopy", "copy"):
                return self.is_config(first)
            case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_]):
                return is_config_name(name)
            case ast.Subscript(value=value, slice=index):
                return self.is_config(value) and not isinstance(index, ast.Constant)
            case ast.IfExp(body=first, orelse=second):
                return self.is_config(first) or self.is_config(second)
            case ast.BoolOp(values=values):
                return any(map(self.is_config, values))
            case ast.NamedExpr(value=value):
                return self.is_config(value)
        return False

    def _find_aliases(self) -> None:
        """Other names of configs: assigned, looped over, annotated as one, or a parameter given one."""
        functions: dict[str, list[ast.arg]] = {}
        for node in self.nodes:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                arguments = [*node.args.posonlyargs, *node.args.args]
                functions[node.name] = [a for a in arguments if a.arg not in ("self", "cls")]
                for arg in (*arguments, *node.args.kwonlyargs):
                    said = ast.unparse(arg.annotation) if arg.annotation else ""
                    usual = "PreTrainedConfig" in said or "PretrainedConfig" in said
                    own = said.strip("'\"").removesuffix(" | None").endswith("Config")
                    if usual or (own and not any(word in said for word in OTHER_CLASSES)):
                        self.aliases.add(arg.arg)
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
                        functions[node.name] = inner.args.args[1:]
        self.aliases -= OTHER_CONFIGS | {"self", "cls"}
        before = -1
        giving = [n for n in self.nodes if isinstance(n, (ast.Assign, ast.NamedExpr, ast.For, ast.Call))]
        while before != len(self.aliases):
            before = len(self.aliases)
            for node in giving:
                match node:
                    case ast.Assign(targets=targets, value=value) if self.is_config(value):
                        self.aliases |= {t.id for t in targets if isinstance(t, ast.Name)}
                    case ast.NamedExpr(target=ast.Name(id=name), value=value) if self.is_config(value):
                        self.aliases.add(name)
                    case ast.For(target=ast.Name(id=name), iter=ast.Tuple(elts=parts) | ast.List(elts=parts)):
                        if any(map(self.is_config, parts)):
                            self.aliases.add(name)
                    case ast.Call(func=ast.Name(id=name), args=args) if name in functions:
                        for parameter, given in zip(functions[name], args, strict=False):
                            if self.is_config(given) and isinstance(given, (ast.Name, ast.Attribute)):
                                self.aliases.add(parameter.arg)
            self.aliases -= {"self", "cls", "kwargs"}

    # what is read of it

    def reads(self) -> Reads:
        found = Reads()
        for node in self.nodes:
            self._read(node, found)
        for node in self.classes.values():
            if node.name.endswith(("Config", "ConfigMixin")) and "Generation" not in node.name:
                self._read_class(node, found)
        return found

    def _read(self, node: ast.AST, found: Reads) -> None:
        match node:
            case ast.Attribute(value=value, attr=name, ctx=ast.Load()) if self.is_config(value):
                found.whole |= name in TAKES_ALL and self._in_model()
                found.add(name, PLAIN)
            case ast.AugAssign(target=ast.Attribute(value=value, attr=name)) if self.is_config(value):
                found.add(name)
            case ast.Subscript(value=value, slice=ast.Constant(value=str(name))) if self.is_config(value):
                found.add(name)
            case ast.Compare(left=ast.Constant(value=str(name)), comparators=[value]) if self.is_config(
                value
            ):
                found.add(name)
            case ast.Call(
                func=ast.Attribute(value=value, attr="get" | "pop"),
                args=[ast.Constant(value=str(name)), *rest],
            ) if self.is_config(value):
                found.add(name, literal(rest[0]) if rest else UNKNOWN)
            case ast.Call(func=ast.Name(id="getattr" | "hasattr" as how), args=[value, name, *rest]):
                if self.is_config(value) or (
                    isinstance(value, ast.Name) and value.id == "self" and self._in_configs()
                ):
                    self._read_named(name, how, rest, found)
            case ast.Call(func=ast.Name(id="vars" | "dict" | "asdict"), args=[value]) if self.is_config(
                value
            ):
                found.whole |= self._in_model()
            case ast.keyword(arg=None, value=value) if self.is_config(value) and self._in_model():
                found.whole = True

    def _read_named(self, name: ast.expr, how: str, rest: list[ast.expr], found: Reads) -> None:
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            found.add(name.value, literal(rest[0]) if how == "getattr" and rest else UNKNOWN)
            return
        for node in self.nodes:  # a computed name: it can be any string that stands here
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                found.add(node.value)
        if isinstance(name, ast.JoinedStr):
            texts = [part.value if isinstance(part, ast.Constant) else "*" for part in name.values]
            found.add("".join(map(str, texts)))

    def _read_class(self, node: ast.ClassDef, found: Reads) -> None:
        """What a config class reads of itself, and of what it is given beside its own fields."""
        for inner in ast.walk(node):
            match inner:
                case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Load()):
                    found.add(name)
                case ast.AugAssign(target=ast.Attribute(value=ast.Name(id="self"), attr=name)):
                    found.add(name)
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id=given), attr="pop" | "get" | "setdefault"),
                    args=[ast.Constant(value=str(name)), *rest],
                ) if "kwargs" in given or given.endswith("_dict"):
                    found.add(name, literal(rest[0]) if rest else UNKNOWN)
                case ast.Subscript(value=ast.Name(id=given), slice=ast.Constant(value=str(name))):
                    if "kwargs" in given or given.endswith("_dict"):
                        found.add(name)
                case ast.Compare(left=ast.Constant(value=str(name)), comparators=[ast.Name(id=given)]):
                    if "kwargs" in given or given.endswith("_dict"):
                        found.add(name)
        for inner in node.body:
            if isinstance(inner, ast.FunctionDef):
                found.add(inner.name)
                self._read_parameters(inner, found)

    @staticmethod
    def _read_parameters(function: ast.FunctionDef, found: Reads) -> None:
        """Parameters that are used for more than to be kept under their own names."""
        names = {arg.arg for arg in (*function.args.args, *function.args.kwonlyargs)} - {"self", "cls"}
        kept: set[int] = set()
        for node in ast.walk(function):
            match node:
                case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=name)]) if (
                    name in names
                ):
                    kept |= {id(inner) for inner in ast.walk(node) if getattr(inner, "id", None) == name}
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and node.id in names and id(node) not in kept:
                found.add(node.id)

    def _in_configs(self) -> bool:
        return self.path.name.startswith("configuration_")

    def _in_model(self) -> bool:
        return self.path.name.startswith("modeling_") and self.path.parent.parent.name == "models"


@cache
def parsed(path: Path) -> File:
    return File(path)


@cache
def reads_of(path: Path) -> Reads:
    return parsed(path).reads()


def sources(folder: Path) -> list[Path]:
    """Config and model files of a model, and those of others that they take something from."""
    open_files = sorted([*folder.glob("configuration_*.py"), *folder.glob("modeling_*.py")])
    found: list[Path] = []
    while open_files:
        path = open_files.pop()
        if path in found or not path.exists() or path.parent.name == "auto":
            continue
        found.append(path)
        for other, name in parsed(path).imports():
            of_model = other.name.startswith(("configuration_", "modeling_"))
            elsewhere = other.parent.parent.name == "models" and other.parent != path.parent
            if of_model and elsewhere and needed(path, name):
                open_files.append(other)
    return sorted(found)


@cache
def needed(path: Path, name: str) -> bool:
    """Whether an imported name is used for more than annotations."""
    uses = [n for n in parsed(path).nodes if isinstance(n, ast.Name) and n.id == name]
    return bool(uses)


def class_of(name: str, path: Path) -> tuple[ast.ClassDef, Path] | None:
    """The class that a file defines or imports from another model."""
    if not path.exists():
        return None
    file = parsed(path)
    if name in file.classes:
        return file.classes[name], path
    for other, imported in file.imports():
        if imported == name and other != path:
            return class_of(name, other)
    return None


def declared(name: str, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """(defaults of the fields of a config class, its attribute map), base classes first."""
    found = class_of(name, path)
    if found is None:
        return {}, {}
    node, where = found
    defaults: dict[str, Any] = {}
    renamed: dict[str, str] = {}
    for base in node.bases:
        if isinstance(base, ast.Name):
            inherited, names = declared(base.id, where)
            defaults |= inherited
            renamed |= names
    for inner in node.body:
        match inner:
            case ast.AnnAssign(target=ast.Name(id=key), annotation=said, value=value):
                if "ClassVar" not in ast.unparse(said):
                    defaults[key] = literal(value)
            case ast.Assign(targets=[ast.Name(id="attribute_map")], value=value):
                names = literal_map(value)
                renamed = {**renamed, **names} if any(isinstance(b, ast.Name) for b in node.bases) else names
            case ast.FunctionDef(name="__init__"):
                parameters, given = inner.args.args[1:], inner.args.defaults
                for arg, value in zip(parameters[len(parameters) - len(given) :], given, strict=True):
                    defaults[arg.arg] = literal(value)
    return defaults, renamed


def is_key(name: str) -> bool:
    """Whether a key could be called so: words of messages stand beside computed names, too."""
    return name.replace("*", "").isidentifier()


def literals(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sorted(found.items()) if value is not UNKNOWN and value is not PLAIN}


def literal_map(node: ast.expr) -> dict[str, str]:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return {}
    return {str(key): str(other) for key, other in value.items()} if isinstance(value, dict) else {}


def shared(root: Path) -> Reads:
    """What code that all models go through reads of a config."""
    found = Reads()
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root).parts
        if not inside[0].startswith(tuple(ELSEWHERE)):
            found.join(reads_of(path))
    return found


def generation_keys(root: Path) -> list[str]:
    """Settings of generation, which transformers takes out of a model's config before it is one."""
    node = parsed(root / "generation" / "configuration_utils.py").classes["GenerationConfig"]
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef) and inner.name == "_get_default_generation_params":
            return sorted(
                str(key.value)
                for each in ast.walk(inner)
                if isinstance(each, ast.Dict)
                for key in each.keys
                if isinstance(key, ast.Constant)
            )
    raise SystemExit("GenerationConfig has no _get_default_generation_params any more")


def model_types(root: Path) -> dict[str, tuple[str, Path]]:
    """model_type -> (config class, its file), from the files themselves and from the registry's table."""
    found: dict[str, tuple[str, Path]] = {}
    for path in sorted((root / "models").glob("*/configuration_*.py")):
        for node in parsed(path).classes.values():
            for inner in node.body:
                match inner:
                    case ast.Assign(targets=[ast.Name(id="model_type")], value=ast.Constant(value=str(kind))):
                        found.setdefault(kind, (node.name, path))
                    case ast.AnnAssign(target=ast.Name(id="model_type"), value=ast.Constant(value=str(kind))):
                        found.setdefault(kind, (node.name, path))
    found.pop("", None)
    return found


@cache
def folder_reads(folder: Path) -> Reads:
    found = Reads()
    for source in sources(folder):
        found.join(reads_of(source))
    return found


def entry(name: str, path: Path, common: Reads) -> dict[str, Any] | None:
    """What the code of one model type reads beside what all read, None where it takes a config as a whole."""
    found = Reads()
    found.join(folder_reads(path.parent))
    if found.whole:
        return None
    defaults, renamed = declared(name, path)
    for key, other in renamed.items():
        if {key, other} & (found.keys.keys() | common.keys.keys()):
            found.add(key)
            found.add(other)
    own = sorted(key for key in found.keys.keys() - common.keys.keys() if is_key(key))
    known: dict[str, Any] = {}
    for key in sorted(found.keys.keys() | common.keys.keys()):
        if key in defaults:
            known[key] = defaults[key]
        elif key not in renamed and key in found.keys:
            both = Reads()
            both.join(Reads({key: found.keys[key]}))
            both.join(Reads({key: common.keys[key]} if key in common.keys else {}))
            known[key] = both.keys[key]
    usual, _ = declared("PreTrainedConfig", path.parents[2] / "configuration_utils.py")
    return {
        "reads": " ".join(own),
        "defaults": {
            key: value
            for key, value in known.items()
            if value is not UNKNOWN
            and value is not PLAIN
            and is_key(key)
            and not (key in usual and usual[key] == value)
        },
    }


def tasks(root: Path) -> dict[str, list[str]]:
    """model_type -> what the registry has it for: causal_lm, image_classification ..."""
    found: dict[str, list[str]] = {}
    for node in parsed(root / "models" / "auto" / "modeling_auto.py").tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(args=[ast.List(elts=pairs)])):
                task = name.removeprefix("MODEL_FOR_").removesuffix("_NAMES").removesuffix("_MAPPING").lower()
                for pair in pairs if name.startswith("MODEL_FOR_") else ():
                    if isinstance(pair, ast.Tuple) and isinstance(pair.elts[0], ast.Constant):
                        found.setdefault(str(pair.elts[0].value), []).append(task)
    return found


@cache
def built_on(folder: Path) -> tuple[str, ...]:
    """Folders of the models whose classes a model's own derive from, those of most classes first."""
    count: dict[str, int] = {}
    for path in sorted(folder.glob("modular_*.py")):
        origin = {name: other.parent.name for other, name in parsed(path).imports()}
        for node in parsed(path).classes.values():
            for base in node.bases:
                where = origin.get(base.id) if isinstance(base, ast.Name) else None
                if where is not None and where != folder.name and where != "transformers":
                    count[where] = count.get(where, 0) + 1
    return tuple(sorted(count, key=lambda name: (-count[name], name)))


def build(root: Path) -> dict[str, Any]:
    common = shared(root)
    kinds = model_types(root)
    models = {kind: entry(name, path, common) for kind, (name, path) in sorted(kinds.items())}
    does = tasks(root)
    for kind, found in models.items():
        folder = kinds[kind][1].parent
        if found is not None:
            more = {
                "tasks": " ".join(does.get(kind, ())),
                "built_on": " ".join(built_on(folder)),
                "of": folder.name,
            }
            found |= {key: value for key, value in more.items() if value and value != kind}
    usual, _ = declared("PreTrainedConfig", root / "configuration_utils.py")
    return {
        "transformers": version("transformers"),
        "generation": " ".join(generation_keys(root)),
        "shared": {
            "reads": " ".join(sorted(filter(is_key, common.keys))),
            "defaults": literals(common.keys | usual),
        },
        "models": {kind: found for kind, found in models.items() if found is not None},
        "whole": " ".join(sorted(kind for kind, found in models.items() if found is None)),
    }


def text(data: dict[str, Any]) -> str:
    """The file: one line for each model type, so that a change of one shows as such."""
    lines = [f'  "{kind}": {json.dumps(each, sort_keys=True)}' for kind, each in data["models"].items()]
    rest = {key: value for key, value in data.items() if key != "models"}
    head = ",\n".join(
        f" {json.dumps(key)}: {json.dumps(value, sort_keys=True)}" for key, value in rest.items()
    )
    return "{\n" + head + ',\n "models": {\n' + ",\n".join(lines) + "\n }\n}\n"


def main() -> None:
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        raise SystemExit("transformers is not installed; install the one that pyproject.toml pins")
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    output.write_text(text(build(Path(spec.origin).parent)))
    print(f"{output}: {output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
