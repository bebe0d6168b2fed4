"""The ``context/`` folder of a NeMo 2 checkpoint: which classes, with which fields set.

``io.json`` is what NeMo loads: it holds only the fields that were set. ``model.yaml`` is written
beside it for people, with every default of the NeMo that wrote it filled in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ...errors import CorruptCheckpoint, UnsupportedFormat
from ...formats.text import fiddle, plain_yaml
from ...formats.text.fiddle import Node, Symbol, Value
from ...stores.files import SourceDir
from ...tensors.layout import Layout

AUTO_TOKENIZER = Symbol("nemo.collections.common.tokenizers.huggingface.auto_tokenizer", "AutoTokenizer")
TOKENIZER_FOLDER = "nemo_tokenizer"
GENERATION_FOLDER = "artifacts"
_GENERATION = Node(
    Symbol("nemo.lightning.io.artifact.hf_auto", "from_pretrained"),
    {
        "auto_cls": Symbol("transformers.generation.configuration_utils", "GenerationConfig"),
        "pretrained_model_name_or_path": f"./{GENERATION_FOLDER}",
    },
)
_TRAINER_CONTEXT = Symbol("nemo.lightning.io.pl", "TrainerContext")
_TRAINER = Symbol("nemo.lightning.pytorch.trainer", "Trainer")
_STRATEGY = Symbol("nemo.lightning.pytorch.strategies.megatron_strategy", "MegatronStrategy")
#: where the config of a model of several parts keeps that of its decoder
LANGUAGE = "language_transformer_config"
# Arguments of tokenizer classes that NeMo saves as files (nemo/lightning/io/registry.py).
_TOKENIZER_FILES = ("pretrained_model_name", "model_path", "vocab_file")


@dataclass(frozen=True, slots=True)
class TokenizerRef:
    """The tokenizer class and where its data lie.

    ``artifact`` is a file or folder of this checkpoint, relative to the context folder. ``name`` is
    what the writer left as a name instead: a model of the hub, or a path on its own machine.
    ``args`` are the other arguments.
    """

    symbol: Symbol
    artifact: str | None
    name: str | None
    args: dict[str, Value]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The parallel sizes of the run that wrote the checkpoint; None where nothing says."""

    tensor: int | None = None
    pipeline: int | None = None
    virtual_pipeline: int | None = None
    context: int | None = None
    expert: int | None = None
    expert_tensor: int | None = None


_SIZE_FIELDS = {
    "tensor": "tensor_model_parallel_size",
    "pipeline": "pipeline_model_parallel_size",
    "virtual_pipeline": "virtual_pipeline_model_parallel_size",
    "context": "context_parallel_size",
    "expert": "expert_model_parallel_size",
    "expert_tensor": "expert_tensor_parallel_size",
}


@dataclass(frozen=True, slots=True)
class NemoContext:
    """What a context folder says.

    ``fields`` are those set in io.json; ``yaml_fields`` all fields of the config in model.yaml, as
    of the NeMo that wrote it. ``folder`` is where both lie in the checkpoint: ``context``, or the
    empty string for the root. ``generation_config`` is a folder relative to it.
    """

    folder: str
    model: Symbol
    config_class: Symbol
    fields: dict[str, Value]
    yaml_fields: dict[str, Value]
    tokenizer: TokenizerRef | None
    generation_config: str | None
    trainer: Sizes
    peft: Node | None

    @property
    def given(self) -> dict[str, Value]:
        """All that is known to be set: io.json's word, and model.yaml's where io.json is silent."""
        return _over(self.yaml_fields, self.fields)

    @property
    def decoder_fields(self) -> dict[str, Value]:
        """The same of the config of the decoder, in a model that has other parts."""
        given = self.given
        language = given.get(LANGUAGE)
        return language.args if isinstance(language, Node) else given


def _over(below: Mapping[str, Value], above: Mapping[str, Value]) -> dict[str, Value]:
    """Fields with others laid over them; two configs of one class are one config."""
    merged = {**below, **above}
    for name, upper in above.items():
        lower = below.get(name)
        if isinstance(upper, Node) and isinstance(lower, Node) and upper.symbol == lower.symbol:
            merged[name] = Node(upper.symbol, _over(lower.args, upper.args), upper.kind)
    return merged


def read_context(directory: SourceDir, under: str = "context") -> NemoContext:
    """Read ``io.json`` and ``model.yaml`` of a checkpoint; either is enough.

    They are looked for in ``under``, then in the root, as NeMo does for older checkpoints.
    Raises UnsupportedFormat if neither is there, CorruptCheckpoint if they make no sense.
    """
    for folder in dict.fromkeys((under, "")):
        graph, described = _read_graph(directory, folder), _read_yaml(directory, folder)
        model = graph.args.get("model") if graph is not None else described
        if model is None:
            continue
        where = str(directory.path / folder / ("io.json" if graph else "model.yaml"))
        if not isinstance(model, Node):
            raise CorruptCheckpoint(f"{where}: no model")
        return _Reader(directory, folder, where).context(model, graph, described)
    raise UnsupportedFormat(
        f"{directory.path}: no {under}/io.json and no {under}/model.yaml",
        hint="a NeMo 2 checkpoint has a context folder beside weights",
    )


def _read_graph(directory: SourceDir, folder: str) -> Node | None:
    name = _join(folder, "io.json")
    if not directory.exists(name):
        return None
    where = str(directory.path / name)
    root = fiddle.parse(directory.read(name), where)
    if "model" not in root.args:
        raise CorruptCheckpoint(f"{where}: no model")
    return root


def _read_yaml(directory: SourceDir, folder: str) -> Node | None:
    name = _join(folder, "model.yaml")
    if not directory.exists(name):
        return None
    where = str(directory.path / name)
    value = _from_yaml(plain_yaml.loads_mapping(directory.read(name), where))
    if not isinstance(value, Node):
        raise CorruptCheckpoint(f"{where}: no '_target_', so no model")
    return value


def _from_yaml(value: object) -> Value:
    """``{_target_: a.b, ...}`` is a Node, or a Symbol where it is marked as not to be called."""
    if isinstance(value, list):
        return [_from_yaml(item) for item in value]
    if not isinstance(value, dict):
        return value  # type: ignore[return-value]  # plain_yaml has nothing else
    rest = {str(key): _from_yaml(item) for key, item in value.items() if key != "_target_"}
    target = value.get("_target_")
    if not isinstance(target, str):
        return rest
    if rest == {"_call_": False}:
        return Symbol.parse(target)
    rest.pop("_call_", None)
    partial = rest.pop("_partial_", False)
    return Node(Symbol.parse(target), rest, fiddle.PARTIAL if partial else fiddle.CONFIG)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


class _Reader:
    """One context folder; ``where`` names the file that decides."""

    def __init__(self, directory: SourceDir, folder: str, where: str) -> None:
        self.directory = directory
        self.folder = folder
        self.where = where

    def context(self, model: Node, graph: Node | None, described: Node | None) -> NemoContext:
        config = model.args.get("config")
        if not isinstance(config, Node):
            raise CorruptCheckpoint(f"{self.where}: the {model.symbol.name} has no config")
        known = described.args.get("config") if described is not None else None
        fields = dict(config.args) if graph is not None else {}
        yaml_fields = dict(known.args) if isinstance(known, Node) else {}
        self.check_finite({**yaml_fields, **fields})
        peft = model.args.get("model_transform")
        return NemoContext(
            folder=self.folder,
            model=model.symbol,
            config_class=config.symbol,
            fields=fields,
            yaml_fields=yaml_fields,
            tokenizer=self.tokenizer(model.args.get("tokenizer")),
            generation_config=self.generation_config(_generation_config(config)),
            trainer=self.sizes(graph, {**yaml_fields, **fields}),
            peft=_transform(peft),
        )

    def check_finite(self, fields: Mapping[str, Value]) -> None:
        """NaN and Infinity are no setting of a model; elsewhere in the graph they do no harm."""
        for name, value in fields.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise CorruptCheckpoint(f"{self.where}: the field {name!r} is {value}")
            if isinstance(value, Node):  # the config of a part of the model
                self.check_finite(value.args)

    def tokenizer(self, value: Value) -> TokenizerRef | None:
        if not isinstance(value, Node):
            return None
        args = dict(value.args)
        for key in _TOKENIZER_FILES:
            if (given := args.pop(key, None)) is not None:
                return TokenizerRef(value.symbol, *self.artifact(given), args)
        return TokenizerRef(value.symbol, None, None, args)

    def artifact(self, given: Value) -> tuple[str | None, str | None]:
        """(path in the context folder, name): NeMo wraps what is no path into ``attr=``."""
        if isinstance(given, Node):
            given = given.args.get("attr")
            return None, given if isinstance(given, str) else None
        if not isinstance(given, str):
            raise CorruptCheckpoint(f"{self.where}: the tokenizer's path is not text")
        if given.startswith("/"):
            return None, given
        path = _join(self.folder, given)
        self.directory.resolve(path)  # refuses what leads out of the checkpoint
        return (given, None) if self.directory.exists(path) else (None, given)

    def generation_config(self, value: Value) -> str | None:
        """The folder of generation_config.json, if the config refers to one that is there."""
        if not isinstance(value, Node):
            return None
        given = value.args.get("pretrained_model_name_or_path")
        if not isinstance(given, str) or given.startswith("/"):
            return None
        folder = given.removeprefix("./").rstrip("/")
        path = _join(self.folder, f"{folder}/generation_config.json")
        self.directory.resolve(path)
        return folder if self.directory.exists(path) else None

    def sizes(self, graph: Node | None, fields: Mapping[str, Value]) -> Sizes:
        """What the strategy says, else the model's config."""
        trainer = graph.args.get("trainer") if graph is not None else None
        strategy = trainer.args.get("strategy") if isinstance(trainer, Node) else None
        said = strategy.args if isinstance(strategy, Node) else {}
        return Sizes(
            **{
                size: self.size(field, said.get(field, fields.get(field)))
                for size, field in _SIZE_FIELDS.items()
            }
        )

    def size(self, field: str, value: Value) -> int | None:
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1 << 20:
            raise CorruptCheckpoint(f"{self.where}: {field} is {str(value)[:40]!r}")
        return value


def _generation_config(config: Node) -> Value:
    """Where it may be: in the model's config, or in that of its decoder."""
    language = config.args.get(LANGUAGE)
    inner = language.args.get("generation_config") if isinstance(language, Node) else None
    return config.args.get("generation_config", inner)


def _transform(value: Value) -> Node | None:
    """``model_transform``: an adapter such as LoRA; a bare class counts as one without settings."""
    if isinstance(value, Symbol):
        return Node(value, {})
    return value if isinstance(value, Node) else None


def build_context(
    model: Symbol,
    config: Symbol,
    fields: Mapping[str, Value],
    layout: Layout | None = None,
    *,
    uneven: Mapping[str, Value] = MappingProxyType({}),
    has_tokenizer: bool = True,
    has_generation_config: bool = False,
    model_transform: Node | None = None,
    model_arguments: Mapping[str, Value] | None = None,
) -> dict[str, bytes]:
    """``io.json`` and ``model.yaml`` for a ``model(config(**fields))``, as NeMo 2 writes them.

    The caller puts the tokenizer into ``nemo_tokenizer/`` and generation_config.json into
    ``artifacts/`` beside them. Parallel sizes in ``fields`` are overwritten with the layout's; ``uneven``
    are settings of stages that hold different numbers of layers.
    ``model_arguments`` are what ``model`` takes besides its config.
    """
    layout = layout or Layout()
    sizes: dict[str, Value] = {
        "tensor_model_parallel_size": layout.tensor_parallel_size,
        "pipeline_model_parallel_size": layout.pipeline_parallel_size,
        "virtual_pipeline_model_parallel_size": None,
        "expert_model_parallel_size": layout.expert_parallel_size,
    }
    if layout.virtual_pipeline_parallel_size > 1:
        sizes["virtual_pipeline_model_parallel_size"] = layout.virtual_pipeline_parallel_size
    if layout.expert_tensor_parallel_size is not None:
        sizes["expert_tensor_parallel_size"] = layout.expert_tensor_parallel_size
    sizes |= uneven
    if layout.pipeline_parallel_size > 1:  # megatron-core demands to be told what the stages exchange
        sizes["pipeline_dtype"] = fields.get("params_dtype", Symbol("torch", "float32"))
    settings: dict[str, Value] = {**fields, **sizes}
    if has_generation_config:
        language = settings.get(LANGUAGE)
        if isinstance(language, Node):
            args = {**language.args, "generation_config": _GENERATION}
            settings[LANGUAGE] = Node(language.symbol, args, language.kind)
        else:
            settings["generation_config"] = _GENERATION
    parts: dict[str, Value] = {"config": Node(config, settings), **(model_arguments or {})}
    if has_tokenizer:
        parts["tokenizer"] = Node(AUTO_TOKENIZER, {"pretrained_model_name": TOKENIZER_FOLDER})
    if model_transform is not None:
        parts["model_transform"] = model_transform
    built = Node(model, parts)
    ranks = layout.tensor_parallel_size * layout.pipeline_parallel_size * layout.expert_parallel_size
    root = Node(_TRAINER_CONTEXT, {"model": built, "trainer": _trainer(sizes, ranks), "extra": {}})
    return {"io.json": fiddle.emit(root), "model.yaml": plain_yaml.dumps(_to_yaml(built))}


def _trainer(sizes: Mapping[str, Value], ranks: int) -> Node:
    strategy = Node(_STRATEGY, {**sizes, "ckpt_save_optimizer": False})
    return Node(_TRAINER, {"accelerator": "cpu", "strategy": strategy, "devices": ranks, "num_nodes": 1})


def _to_yaml(value: Value) -> object:
    """The inverse of reading: keys in alphabetical order, as NeMo's own writer has them."""
    if isinstance(value, Symbol):
        return {"_call_": False, "_target_": str(value)}
    if isinstance(value, Node):
        args = {key: _to_yaml(value.args[key]) for key in sorted(value.args)}
        marker = {"_partial_": True} if value.kind == fiddle.PARTIAL else {}
        return {"_target_": str(value.symbol), **marker, **args}
    if isinstance(value, dict):
        return {key: _to_yaml(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_yaml(item) for item in value]
    return value
