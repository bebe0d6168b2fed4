"""Reads what NeMo 2's config classes take for fields that are not set, off NeMo itself.

    NEMO_PYTHON scripts/read_nemo2_classes.py mappings/nemo2/classes.json

Runs in an environment that has NeMo (tests/clients/real_nemo/README.md says how one is made) and writes anew
the modules of :data:`MODULES` that this version of NeMo is asked for; the file's others stay as they are.
The defaults are those that the classes' ``__init__`` takes: before any ``__post_init__``, and without the
annotations of a class that is no dataclass itself, which change nothing.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
import importlib.metadata
import json
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "clients" / "real_nemo"))

import stand_ins

stand_ins.install()

import torch  # noqa: E402

_LLM = "nemo.collections.llm."
_GPT = _LLM + "gpt.model."
_VLM = "nemo.collections.vlm."
#: version of NeMo -> modules whose config classes are read off it, those that others derive from first
MODULES = {
    "2.5.3": (
        "megatron.core.model_parallel_config",
        "megatron.core.transformer.transformer_config",
        *(_GPT + name for name in ("base", "llama", "llama_nemotron", "llama_embedding", "reranker")),
        *(_GPT + name for name in ("mistral", "mixtral", "qwen2", "qwen3", "phi3mini", "starcoder")),
        *(_GPT + name for name in ("starcoder2", "nemotron", "gemma", "gemma2", "gemma3", "chatglm")),
        *(_GPT + name for name in ("baichuan", "deepseek", "ssm")),
        *(_LLM + name for name in ("bert.model.base", "bert.model.bert", "t5.model.t5")),
        *(_VLM + name for name in ("vision.base", "neva.model.base", "neva.model.llava")),
        *(_VLM + name for name in ("qwen2vl.model.base", "qwen2vl.model.qwen2vl")),
    ),
    "2.7.3": (_GPT + "gpt_oss",),
}
#: packages that import every model and its data loading at their start
EAGER = ("vlm", "vlm.neva", "vlm.qwen2vl", "vlm.neva.data", "vlm.qwen2vl.data")
#: classes that hold a config without being one of megatron-core's
OTHERS = ("HFCLIPVisionConfig",)
#: functions without a name, by the field that holds them, and what they compute
UNNAMED = {"NemotronHConfigBase.activation_func": "megatron.core.activations.squared_relu"}
#: the layers of one published model as a text of 40 kB and more, which every checkpoint states anyway
LEFT_OUT = ("heterogeneous_layers_config_encoded_json",)


class Unspeakable(Exception):
    """A value that the file has no spelling for."""


class Call:
    """What a default_factory builds, as a call that was not made: some ask the hub for files."""

    def __init__(self, symbol: str, **arguments: Any) -> None:
        self.symbol, self.arguments = symbol, arguments


def name_of(thing: Any) -> str:
    name: str = f"{thing.__module__}.{thing.__qualname__}"
    return name


def spelled(value: Any) -> Any:
    """A default as JSON: a name is ``{"symbol": ...}``, a tuple ``{"tuple": [...]}``, a config inside another
    ``{"config": ..., "set": {...}}``, a function with arguments ``{"partial": ..., "set": {...}}``."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list():
            return [spelled(item) for item in value]
        case tuple():
            return {"tuple": [spelled(item) for item in value]}
        case torch.dtype():
            return {"symbol": str(value)}
        case enum.Enum():
            return {"symbol": f"{name_of(type(value))}.{value.name}"}
        case functools.partial() if not value.args:
            return {"partial": name_of(value.func), "set": spelled_all(value.keywords)}
        case Call():
            return {"config": value.symbol, "set": spelled_all(value.arguments)}
        case _ if callable(value) and "<" not in value.__qualname__:
            return {"symbol": name_of(value)}
    raise Unspeakable(repr(value)[:80])


def spelled_all(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: spelled(value) for name, value in values.items()}


def leave_out_eager_imports() -> None:
    """Let NeMo's packages have their modules without importing all of them."""
    import nemo.collections

    for name in EAGER:
        package = types.ModuleType(f"nemo.collections.{name}")
        package.__path__ = [str(Path(nemo.collections.__path__[0], *name.split(".")))]
        sys.modules[package.__name__] = package


def configs(module: types.ModuleType) -> Iterator[type]:
    """The config classes that a module defines, in its order."""
    from megatron.core.model_parallel_config import ModelParallelConfig

    for name, found in vars(module).items():
        ours = isinstance(found, type) and found.__module__ == module.__name__
        if ours and (issubclass(found, ModelParallelConfig) or name in OTHERS):
            yield found


def built(factory: Any) -> Any:
    """What a default_factory gives; for a config that it would build, the call."""
    if not isinstance(factory, types.FunctionType):
        return factory()
    scope = dict(factory.__globals__)
    for name in factory.__code__.co_names:
        found = scope.get(name)
        if isinstance(found, type) and dataclasses.is_dataclass(found):
            scope[name] = functools.partial(Call, name_of(found))
    return types.FunctionType(factory.__code__, scope)()


def defaults(cls: type) -> dict[str, Any]:
    """What a class takes for each field that is not set; nothing for one that must be."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        unnamed = [UNNAMED.get(f"{base.__name__}.{field.name}") for base in cls.__mro__]
        try:
            if field.name in LEFT_OUT:
                continue
            if any(unnamed):
                found[field.name] = {"symbol": next(filter(None, unnamed))}
            elif field.default is not dataclasses.MISSING:
                found[field.name] = spelled(field.default)
            elif field.default_factory is not dataclasses.MISSING:
                found[field.name] = spelled(built(field.default_factory))
        except Unspeakable as error:
            print(f"left out: {cls.__name__}.{field.name} = {error}", file=sys.stderr)
    return found


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and json.dumps(one) == json.dumps(other)


def entry(cls: type, known: Mapping[type, dict[str, Any]]) -> dict[str, Any]:
    """A class as the base that it differs least from, and what it has otherwise."""
    own = known[cls]
    changes = {
        base: {
            name: v for name, v in own.items() if name not in known[base] or not same(v, known[base][name])
        }
        for base in cls.__mro__[1:]
        if base in known
    }
    if not changes:
        return {"set": own}
    parent = min(changes, key=lambda base: len(changes[base]))
    return {"parent": parent.__name__, "set": changes[parent]}


def text(document: Mapping[str, Any]) -> str:
    """JSON with a line for each field, and one for each class without any."""

    def block(items: Mapping[str, str], indent: str, brackets: str = "{}") -> str:
        lines = (f"{indent}  {json.dumps(name)}: {value}" for name, value in items.items())
        return f"{brackets[0]}\n" + ",\n".join(lines) + f"\n{indent}{brackets[1]}"

    def of_class(found: Mapping[str, Any]) -> str:
        fields = {name: json.dumps(value) for name, value in found["set"].items()}
        inner = block(fields, "      ") if fields else "{}"
        parent = f'"parent": {json.dumps(found["parent"])}, ' if "parent" in found else ""
        return f'{{{parent}"set": {inner}}}'

    def of_module(found: Mapping[str, Any]) -> str:
        classes = {name: of_class(value) for name, value in found["classes"].items()}
        return block({"read_off": json.dumps(found["read_off"]), "classes": block(classes, "    ")}, "  ")

    return block({name: of_module(found) for name, found in document.items()}, "") + "\n"


def read(version: str) -> dict[str, Any]:
    """The modules of :data:`MODULES` of this version."""
    leave_out_eager_imports()
    packages = {"nemo-toolkit": version, "megatron-core": importlib.metadata.version("megatron-core")}
    document: dict[str, Any] = {}
    known: dict[type, dict[str, Any]] = {}
    for name in dict.fromkeys((*MODULES["2.5.3"][:3], *MODULES[version])):  # what all derive from, to compare
        found = {cls: defaults(cls) for cls in configs(importlib.import_module(name))}
        known |= found
        if name in MODULES[version] and found:
            document[name] = {
                "read_off": packages,
                "classes": {cls.__name__: entry(cls, known) for cls in found},
            }
    return document


def main(path: Path) -> None:
    version = importlib.metadata.version("nemo-toolkit")
    if version not in MODULES:
        sys.exit(f"nothing is read off NeMo {version}, only off {', '.join(MODULES)}")
    before = json.loads(path.read_text()) if path.exists() else {}
    found = {**before, **read(version)}
    order = [name for names in MODULES.values() for name in names if name in found]
    path.write_text(text({name: found[name] for name in order}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
