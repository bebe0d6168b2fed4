"""Speech models: how the keys of a ``.nemo`` archive's model_config.yaml correspond to a model config.

Between model_config.yaml and config.json stands one flat dictionary, as for language models, here in the
names of NeMo's modules (``d_model``, ``n_layers``, ``pred_hidden``). Each :class:`Setting` owns some keys of
model_config.yaml, written with dots (``encoder.d_model``), and translates them both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol

from ...errors import UnsupportedConfig, UnsupportedFormat, some
from ...formats.text.fiddle import Symbol
from ..architecture import Architecture
from ..hf.fields import Value
from ..nemo2.fields import NemoClasses
from ..table import Table

if TYPE_CHECKING:
    import numpy

YAML: Final = "model_config.yaml"

#: sections that train, evaluate or decode, but do not enter what the modules compute
INERT: Final = frozenset(
    """
    adapters compute_eval_loss ctc_reduction ctc_loss_weight decoding exp_manager freeze_decoder
    freeze_encoder graph_module_cfg hydra init_from_nemo_model init_from_pretrained_model
    init_from_ptl_ckpt init_strategy initialize_weights interctc label_smoothing log_prediction loss
    metric_cfg model_defaults multitask_metrics_cfg name nemo_version normalize_decoder_norm
    normalize_encoder_norm normalize_joint_norm normalize_joint_txu optim prompt_defaults prompt_format
    restore_timestamps_model rnnt_reduction sampler skip_nan_grad spec_augment target
    test_ds timestamps_asr_model tokenizer train_ds trainer use_cer use_loss_mask_for_prompt
    validation_ds variational_noise
    """.split()
)


class Setting(Protocol):
    """Owns ``paths`` of model_config.yaml and ``fields`` of the model config."""

    @property
    def paths(self) -> frozenset[str]: ...

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        """Fill the model config; ``yaml`` is flat. A missing key takes NeMo's default."""
        ...

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        """Fill the flat model_config.yaml from the model config."""
        ...


_REQUIRED: Final = object()


@dataclass(frozen=True, slots=True)
class SpeechKey:
    """One key, one field. ``default`` is NeMo's; ``at_least`` bounds numbers."""

    path: str
    field: str
    default: Value = _REQUIRED
    kind: type = int
    at_least: float = 0

    @property
    def paths(self) -> frozenset[str]:
        return frozenset({self.path})

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        value = yaml.get(self.path, self.default)
        if value is _REQUIRED:
            raise UnsupportedConfig(f"{YAML}: has no {self.path}")
        config[self.field] = typed(self.path, value, self.kind, self.at_least)

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        yaml[self.path] = config[self.field]


@dataclass(frozen=True, slots=True)
class SpeechOnly:
    """A key that must have one of ``values``, because Hugging Face's class computes nothing else.

    ``default`` is what NeMo takes for a missing key, the first value unless given. The first value is
    written where NeMo would not take it by itself, or if ``written``: versions of NeMo before a key was
    there stop at it.
    """

    path: str
    values: tuple[Value, ...]
    default: Value = _REQUIRED
    written: bool = False

    @property
    def paths(self) -> frozenset[str]:
        return frozenset({self.path})

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        found = yaml.get(self.path, self.values[0] if self.default is _REQUIRED else self.default)
        if not any(found == value and type(found) is type(value) for value in self.values):
            raise UnsupportedConfig(
                f"{YAML}: {self.path}={found!r} has no counterpart in Hugging Face's class, "
                f"only {some(map(repr, self.values))}",
                hint="convert --to safetensors to have the weights under NeMo's names",
            )

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        if self.written or self.default is not _REQUIRED:
            yaml[self.path] = self.values[0]


@dataclass(frozen=True, slots=True)
class UnreadSection:
    """Keys of one section that change training, speed or memory, but no output."""

    section: str
    keys: tuple[str, ...]

    @property
    def paths(self) -> frozenset[str]:
        return frozenset(f"{self.section}.{key}" for key in self.keys)

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        pass

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Always:
    """Keys that a new model_config.yaml needs beside those that say something; read as they come."""

    entries: tuple[tuple[str, Value], ...]

    @property
    def paths(self) -> frozenset[str]:
        return frozenset(path for path, _ in self.entries)

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        pass

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        yaml.update(dict(self.entries))


@dataclass(frozen=True, slots=True)
class ClassOf:
    """``SECTION._target_``: the class of a module, known by its full name, of which the last part counts."""

    section: str
    target: str

    @property
    def paths(self) -> frozenset[str]:
        return frozenset({f"{self.section}._target_", f"{self.section}.cls"})

    def read(self, yaml: Mapping[str, Value], config: dict[str, Value]) -> None:
        found = yaml.get(f"{self.section}._target_", yaml.get(f"{self.section}.cls"))
        wanted = self.target.rpartition(".")[2]
        if not isinstance(found, str) or found.rpartition(".")[2] != wanted or not found.startswith("nemo."):
            raise UnsupportedConfig(
                f"{YAML}: {self.section} is a {found!r}, and only {wanted} has a counterpart",
                hint="convert --to safetensors to have the weights under NeMo's names",
            )

    def write(self, config: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        yaml[f"{self.section}._target_"] = self.target


def typed(path: str, value: Value, kind: type, at_least: float = 0) -> Value:
    """``value`` if it is of ``kind`` and a sane size; UnsupportedConfig that names ``path`` if not."""
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UnsupportedConfig(f"{YAML}: {path}={value!r} is not of type {kind.__name__}")
    number: Any = value
    if kind in (int, float) and not at_least <= number < 1 << 40:
        raise UnsupportedConfig(f"{YAML}: {path}={value!r} is out of range")
    return value


def flatten(value: Mapping[str, Value], prefix: str = "") -> Iterator[tuple[str, Value]]:
    """(dotted path, value) of every leaf; lists and empty mappings are leaves."""
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from flatten(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def nest(flat: Mapping[str, Value]) -> dict[str, Value]:
    """The inverse of :func:`flatten`."""
    nested: dict[str, Value] = {}
    for path, value in flat.items():
        *parents, last = path.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return nested


class ArchiveOnly(NemoClasses):
    """The NeMo class of a model that is kept in ``.nemo`` archives: NeMo 2 directories have none of it."""

    __slots__ = ()

    def fits(self, config_class: Symbol, given: Mapping[str, Value]) -> bool:
        return False

    def write(self, config: Mapping[str, Value]) -> tuple[str, dict[str, Value]]:
        raise UnsupportedFormat(
            f"NeMo 2 directories hold no {self.model}", hint="convert --to nemo, which writes a .nemo archive"
        )


Constants = Callable[[Mapping[str, Value], Mapping[str, Value]], "dict[str, numpy.ndarray[Any, Any]]"]


@dataclass(frozen=True, slots=True)
class SpeechTable(Table):
    """A table of a model that NeMo keeps in a ``.nemo`` archive, named after its class (``targets``).

    ``settings`` own the keys of model_config.yaml. ``head`` is what of a hybrid model the table takes,
    ``fits`` whether a model_config.yaml of one of the targets is meant. ``constants`` computes, from the
    model config and the feature extractor's, the tensors that NeMo keeps and Hugging Face does not;
    ``copies`` are pairs (name, original) that NeMo's state dict holds twice.
    """

    files: tuple[str, ...] = ("preprocessor_config.json", "processor_config.json", "nemo_config.yaml")
    targets: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()
    head: str = ""
    accepts: Callable[[Mapping[str, Value]], bool] = lambda _: True
    constants: Constants | None = None
    copies: tuple[tuple[str, str], ...] = ()
    decoder_type: str | None = None

    def fits(self, target: str, head: str | None, yaml: Mapping[str, Value]) -> bool:
        """Whether an archive of class ``target`` is of this architecture; ``head``: the one asked for."""
        known = target.startswith("nemo.collections.asr.") and target.rpartition(".")[2] in self.targets
        return known and head in (None, self.head) and self.accepts(yaml)


@dataclass(frozen=True)
class Speech(Architecture):
    """A speech model: other rooms, whose rules (``extra``) a family gives. ``nemo2`` names the class of its
    archives; what else there is, see :class:`SpeechTable`."""

    targets: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()
    head: str = ""
    accepts: Callable[[Mapping[str, Value]], bool] = lambda _: True
    constants: Constants | None = None
    copies: tuple[tuple[str, str], ...] = ()
    decoder_type: str | None = None

    @cached_property
    def table(self) -> SpeechTable:
        """What is asked of it, compiled. Always the same object."""
        assert isinstance(self.nemo2, ArchiveOnly)
        assert self.sizes is not None
        return SpeechTable(
            self.name,
            self.hf_class,
            self.config,
            self.extra,
            self.nemo2,
            ignored=self.ignored,
            tied=self.tied or (),
            sizes=self.sizes,
            layer_sets=self.layer_sets,
            verified=self.proofs,
            targets=self.targets,
            settings=self.settings,
            head=self.head,
            accepts=self.accepts,
            constants=self.constants,
            copies=self.copies,
            decoder_type=self.decoder_type,
        )


def read_settings(
    settings: tuple[Setting, ...], yaml: Mapping[str, Value], allow_ignored: Collection[str] = ()
) -> dict[str, Value]:
    """The model config of a flat model_config.yaml.

    Raises UnsupportedConfig for what changes the mathematics and has no counterpart, and for unknown keys.
    """
    owned = frozenset().union(*(setting.paths for setting in settings))
    unknown = [
        path
        for path in yaml
        if path not in owned
        and path.partition(".")[0] not in INERT
        and path not in allow_ignored
        and path.partition(".")[0] not in allow_ignored
    ]
    if unknown:
        raise UnsupportedConfig(
            f"{YAML} has {len(unknown)} key(s) that may change what the model computes: {some(unknown)}",
            hint="if you know that they do not, pass "
            + " ".join("--allow-ignored " + key for key in unknown[:10]),
        )
    config: dict[str, Value] = {}
    for setting in settings:
        setting.read(yaml, config)
    config["params_dtype"] = None
    return config


def write_settings(settings: tuple[Setting, ...], config: Mapping[str, Value]) -> dict[str, Value]:
    """The flat model_config.yaml that says what ``config`` says."""
    yaml: dict[str, Value] = {}
    for setting in settings:
        setting.write(config, yaml)
    return yaml
