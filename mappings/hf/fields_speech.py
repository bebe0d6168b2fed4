"""Config rules of speech models: nested configs, and keys whose counterpart is another arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import UnsupportedConfig, some
from .fields import INERT, PRIVATE, ConfigRule, OneField, OneKey, Value, check_kind


@dataclass(frozen=True, slots=True)
class Nested:
    """A config inside config.json, whose keys ``rules`` own. ``model_type`` is what it must say it is.

    ``defaults`` are values that the outer class takes for missing keys, where they differ from the inner
    class's.
    """

    key: str
    model_type: str
    rules: tuple[ConfigRule, ...]
    defaults: tuple[tuple[str, Value], ...] = ()

    @property
    def hf_keys(self) -> frozenset[str]:
        return frozenset({self.key})

    @property
    def fields(self) -> frozenset[str]:
        return frozenset().union(*(rule.fields for rule in self.rules))

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        given = hf.get(self.key)
        given = {} if given is None else given
        if not isinstance(given, dict) or given.get("model_type", self.model_type) != self.model_type:
            raise UnsupportedConfig(f"config.json: {self.key} is no config of type {self.model_type!r}")
        owned = frozenset().union(*(rule.hf_keys for rule in self.rules))
        unknown = sorted(key for key in given if key not in owned and key not in INERT | PRIVATE)
        unknown = [key for key in unknown if key not in ("dtype", "torch_dtype")]
        if unknown:
            raise UnsupportedConfig(
                f"config.json: {self.key} has {len(unknown)} key(s) that may change what the model computes: "
                f"{some(unknown)}"
            )
        for rule in self.rules:
            rule.read({**dict(self.defaults), **given}, config)

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        nested: dict[str, Value] = {"model_type": self.model_type}
        for rule in self.rules:
            rule.write(config, nested)
        hf[self.key] = dict(sorted(nested.items()))


@dataclass(frozen=True, slots=True)
class Amount(OneField):
    """One key, one field: a number that may be 0 (:class:`Field` wants sizes). ``default`` is the class's."""

    hf: str
    field: str
    default: float

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        config[self.field] = check_kind(self.hf, hf.get(self.hf, self.default), float)


@dataclass(frozen=True, slots=True)
class Dropouts:
    """``activation_dropout``, which NeMo does not tell from ``dropout``. Both act in training only."""

    hf_keys = frozenset({"activation_dropout"})
    fields = frozenset[str]()

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        pass

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf["activation_dropout"] = config["dropout"]


@dataclass(frozen=True, slots=True)
class OneBias:
    """``attention_bias`` and ``convolution_bias`` <-> ``use_bias``, which in NeMo means both."""

    hf_keys = frozenset({"attention_bias", "convolution_bias"})
    fields = frozenset({"use_bias"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        values = [check_kind(key, hf.get(key, True), bool) for key in sorted(self.hf_keys)]
        if values[0] != values[1]:
            raise UnsupportedConfig(
                f"config.json: attention_bias={values[0]} and convolution_bias={values[1]}, "
                "which NeMo's encoder cannot tell apart"
            )
        config["use_bias"] = values[0]

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        for key in self.hf_keys:
            hf[key] = config["use_bias"]


@dataclass(frozen=True, slots=True)
class SameAs(OneKey):
    """A key that repeats a field under another name: it may be missing, and must not differ."""

    hf: str
    field: str
    offset: int = 0
    fields = frozenset[str]()

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        found = hf.get(self.hf)
        if found is not None and (type(found) is not int or found != config[self.field] + self.offset):
            raise UnsupportedConfig(
                f"config.json: {self.hf}={found!r} is not supported, only {config[self.field] + self.offset}"
            )

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf[self.hf] = config[self.field] + self.offset


@dataclass(frozen=True, slots=True)
class RepeatedKey(SameAs):
    """A key that other programs want beside ONNX graphs (onnx-asr): read like :class:`SameAs`, written there
    only."""

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        pass


#: what onnx-asr reads in config.json
FOR_ONNX_ASR = (
    RepeatedKey("features_size", "feat_in"),
    RepeatedKey("subsampling_factor", "subsampling_factor"),
)


@dataclass(frozen=True, slots=True)
class Durations:
    """``durations``: how many frames a token of a TDT model may last."""

    default: tuple[int, ...] = (0, 1, 2, 3, 4)
    hf_keys = frozenset({"durations"})
    fields = frozenset({"durations"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        value = hf.get("durations", list(self.default))
        if not isinstance(value, list) or not value or not all(type(n) is int and n >= 0 for n in value):
            raise UnsupportedConfig(f"config.json: durations={value!r} is not a list of frame counts")
        config["durations"] = value

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf["durations"] = config["durations"]
