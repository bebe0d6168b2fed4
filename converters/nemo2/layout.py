"""The parallel layout in a ``context/`` folder: read, and changed without touching anything else.

Both files are edited as documents: ``io.json`` and ``model.yaml`` that NeMo wrote come out byte for byte
the same but for the values that change (and keys that a new value needs).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from ...errors import CorruptCheckpoint, UsageError
from ...formats.text import fiddle, plain_json, plain_yaml
from ...formats.text.fiddle import Symbol
from ...resharding.layout_file import notation, parse_layout
from ...tensors.layout import Layout
from .context import NemoContext

_FIRST, _LAST = "num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage"
_COUNTED: Final = ("account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split")
_ONE_UNSAID: Final = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "expert_model_parallel_size",
)
_STAGES: Final = "pipeline_model_parallel_layout"
Setting: TypeAlias = "int | bool | str | Symbol | None"


def layout_of(context: NemoContext) -> Layout:
    """The layout of the run that wrote a checkpoint; sizes that nothing says are 1.

    Settings that contradict each other, which some NeMo accepted, leave only the sizes.
    """
    sizes, fields = context.trainer, {**context.yaml_fields, **context.fields}
    plain = Layout(
        sizes.tensor or 1,
        sizes.pipeline or 1,
        sizes.expert or 1,
        expert_tensor_parallel_size=sizes.expert_tensor,
    )
    said: dict[str, Any] = {
        "pipeline_parallel_size": plain.pipeline_parallel_size,
        "virtual_pipeline_parallel_size": sizes.virtual_pipeline,
        **{key: fields.get(key) for key in (_FIRST, _LAST)},
        **{key: fields.get(key) is True for key in _COUNTED},
        "stages": fields.get(_STAGES),
    }
    if isinstance(said["stages"], list):  # a list of the names of what each stage holds
        said["stages"] = [
            stage.count("decoder") if isinstance(stage, list) else stage for stage in said["stages"]
        ]
    try:
        return parse_layout(said, "context", plain)
    except UsageError:
        return plain


def settings(layout: Layout, num_layers: int, context: NemoContext) -> dict[str, Setting]:
    """What the fields of NeMo's config and strategy must say for a layout."""
    said: dict[str, Setting] = {
        "tensor_model_parallel_size": layout.tensor_parallel_size,
        "pipeline_model_parallel_size": layout.pipeline_parallel_size,
        "virtual_pipeline_model_parallel_size": _beyond_one(layout.virtual_pipeline_parallel_size),
        "expert_model_parallel_size": layout.expert_parallel_size,
        "expert_tensor_parallel_size": layout.expert_tensor_parallel_size,
        **_dealt(layout, num_layers),
    }
    fields = {**context.yaml_fields, **context.fields}
    dtype = fields.get("params_dtype")
    if layout.pipeline_parallel_size > 1 and fields.get("pipeline_dtype") is None:
        # megatron-core demands to be told what the stages exchange
        said["pipeline_dtype"] = dtype if isinstance(dtype, Symbol) else Symbol("torch", "float32")
    if layout.tensor_parallel_size == 1 and fields.get("sequence_parallel") is True:
        said["sequence_parallel"] = False  # megatron-core refuses it without tensor parallelism
    return said


def uneven_settings(layout: Layout, num_layers: int) -> dict[str, Setting]:
    """What a config and a strategy say besides the sizes, where a layout deals layers unevenly."""
    said = _dealt(layout, num_layers)
    return {name: value for name, value in said.items() if not _unsaid(name, value)}


def _dealt(layout: Layout, num_layers: int) -> dict[str, Setting]:
    return {
        _FIRST: layout.num_layers_in_first_pipeline_stage,
        _LAST: layout.num_layers_in_last_pipeline_stage,
        **{key: getattr(layout, key) for key in _COUNTED},
        _STAGES: notation(layout, num_layers) if layout.stages is not None else None,
    }


def _beyond_one(size: int) -> int | None:
    return size if size > 1 else None


def with_settings(
    data: bytes,
    where: str,
    config: Mapping[str, Setting],
    trainer: Mapping[str, Setting],
    devices: int,
    parts: Mapping[str, Mapping[str, Setting]] = MappingProxyType({}),
) -> bytes:
    """``io.json`` with settings of the model's config and the trainer's strategy changed.

    ``parts`` are settings of configs inside the model's config, by their names there. ``devices`` is
    the size of the world: a trainer whose number of devices it does not divide gets it.
    """
    document = plain_json.loads_object(data, where, allow_nonfinite=True)
    graph = _Graph(document, where)
    root = graph.follow(document.get("root"))
    model = graph.argument(root, "model")
    config_node = graph.argument(model, "config") if model is not None else None
    if config_node is None:
        raise CorruptCheckpoint(f"{where}: the model has no config")
    graph.set(config_node, config)
    for name, settings_of_part in parts.items():
        part = graph.argument(config_node, name)
        if part is not None:
            graph.set(part, settings_of_part)
    run = graph.argument(root, "trainer")
    strategy = graph.argument(run, "strategy") if run is not None else None
    if strategy is not None:
        graph.set(strategy, trainer)
    if run is not None:
        held, nodes = graph.leaf(run, "devices"), graph.leaf(run, "num_nodes")
        count = (held if isinstance(held, int) else 0) * (nodes if isinstance(nodes, int) else 1)
        if isinstance(held, int) and count % devices:
            graph.set(run, {"devices": devices, **({"num_nodes": 1} if nodes is not None else {})})
    return json.dumps(document).encode()


class _Graph:
    """The objects of a Fiddle document, changed in place."""

    def __init__(self, document: dict[str, Any], where: str) -> None:
        fiddle.parse(json.dumps(document).encode(), where)  # refuses what is malformed
        self.document, self.where = document, where
        self.objects: dict[str, Any] = document["objects"]

    def follow(self, value: Any) -> dict[str, Any] | None:
        """The object that a reference stands for."""
        if isinstance(value, dict) and value.get("type") == "ref":
            value = self.objects.get(str(value.get("key")))
        return value if isinstance(value, dict) and isinstance(value.get("items"), list) else None

    def argument(self, node: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
        item = self.item(node, name)
        return self.follow(item[1]) if item is not None else None

    def leaf(self, node: dict[str, Any], name: str) -> Any:
        item = self.item(node, name)
        return item[1].get("value") if item is not None and isinstance(item[1], dict) else None

    @staticmethod
    def item(node: dict[str, Any] | None, name: str) -> list[Any] | None:
        label = f"Attr(name={name!r})"
        return next((item for item in (node or {}).get("items", ()) if item[0] == label), None)

    def set(self, node: dict[str, Any], values: Mapping[str, Setting]) -> None:
        for name, value in values.items():
            item = self.item(node, name)
            if item is not None:
                if not _says(item[1], value):
                    item[1] = self.written(value, f"{self.path(node)}.{name}")
            elif not _unsaid(name, value):
                written = self.written(value, f"{self.path(node)}.{name}")
                node["items"].append([f"Attr(name={name!r})", written])
                self.name(node, name)

    @staticmethod
    def path(node: dict[str, Any]) -> str:
        paths = node.get("paths")
        return str(paths[0]) if isinstance(paths, list) and paths else "<root>"

    @staticmethod
    def written(value: Setting, path: str) -> dict[str, Any]:
        if isinstance(value, Symbol):
            return {"type": "pyref", "module": value.module, "name": value.name, "paths": [path]}
        return {"type": "leaf", "value": value, "paths": [path]}

    def name(self, node: dict[str, Any], name: str) -> None:
        """Add an argument's name to the metadata of its call; other calls may share the list."""
        metadata = self.follow(node.get("metadata"))
        item = self.item(metadata, "argument_names")
        if item is None:
            raise CorruptCheckpoint(f"{self.where}: an object whose arguments have no names")
        held = self.follow(item[1])
        items = [*(held["items"] if held is not None else ()), None]
        items[-1] = [f"Index(index={len(items) - 1})", name]
        kind = {"type": "pyref", "module": "builtins", "name": "tuple"}
        key = next(key for n in range(len(self.objects) + 1) if (key := f"tuple_{n + 1}") not in self.objects)
        # before the object that refers to it, as Fiddle orders them; loaders do not mind
        self.objects[key] = {"type": kind, "items": items, "metadata": None}
        item[1] = {"type": "ref", "key": key}
        counts = self.document.get("refcounts")
        if isinstance(counts, dict):
            counts[key] = 1


def _says(written: Any, value: Setting) -> bool:
    """Whether a written argument is this value already."""
    if not isinstance(written, dict):
        return False
    if isinstance(value, Symbol):
        return (written.get("module"), written.get("name")) == (value.module, value.name)
    if written.get("type") != "leaf":
        return False
    held = written.get("value")
    return type(held) is type(value) and held == value


def _unsaid(name: str, value: Setting) -> bool:
    """What counts as said when nothing is: such a value is not added where it is not there."""
    return value is None or value is False or (value == 1 and name in _ONE_UNSAID)


def with_yaml_settings(
    data: bytes,
    where: str,
    config: Mapping[str, Setting],
    parts: Mapping[str, Mapping[str, Setting]] = MappingProxyType({}),
) -> bytes:
    """``model.yaml`` with settings of the model's config, and of configs inside it, changed."""
    document = plain_yaml.loads_mapping(data, where)
    fields = document.get("config")
    if not isinstance(fields, dict):
        raise CorruptCheckpoint(f"{where}: no config")
    for name, changed in parts.items():
        if isinstance(inner := fields.get(name), dict):
            fields[name] = _changed(inner, changed)
    document["config"] = _changed(fields, config)
    return plain_yaml.dumps(document)


def _changed(fields: dict[str, Any], changed: Mapping[str, Setting]) -> dict[str, Any]:
    """Fields with others set, in alphabetical order if they were."""
    in_order = list(fields) == sorted(fields)
    for name, value in changed.items():
        if name in fields or not _unsaid(name, value):
            fields[name] = {"_call_": False, "_target_": str(value)} if isinstance(value, Symbol) else value
    return dict(sorted(fields.items())) if in_order else fields
