"""The kinds of rules that own keys of NeMo 1's ``model_config.yaml``, whichever model class reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ...errors import CorruptCheckpoint, UnsupportedConfig, some
from ..hf.fields import Value
from ..nemo2.fields import text


class YamlRule(Protocol):
    """Owns ``keys`` of model_config.yaml and translates them to and from ``fields`` of GPTConfig."""

    @property
    def keys(self) -> frozenset[str]: ...

    @property
    def fields(self) -> frozenset[str]: ...

    def read(self, yaml: Mapping[str, Value], fields: dict[str, Value]) -> None: ...

    def write(self, fields: Mapping[str, Value], yaml: dict[str, Value]) -> None: ...


class OneYamlKey:
    """What rules for one key of model_config.yaml share: they own ``name``."""

    __slots__ = ()
    name: str

    @property
    def keys(self) -> frozenset[str]:
        return frozenset({self.name})


class Needed:
    """Marks rules whose keys no config can leave out, so that an empty one has no default for them."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class YamlKey:
    """One key, one field; ``default`` is what NeMo 1 takes where the key is absent."""

    key: str
    field: str
    default: Value = None

    @property
    def keys(self) -> frozenset[str]:
        return frozenset({self.key})

    @property
    def fields(self) -> frozenset[str]:
        return frozenset({self.field})

    def read(self, yaml: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields[self.field] = yaml.get(self.key, self.default)

    def write(self, fields: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        value = fields.get(self.field, self.default)
        yaml[self.key] = list(value) if isinstance(value, tuple) else value


def key(name: str, default: Value = None) -> YamlKey:
    """A key of the field's own name, whose default NeMo 1 states."""
    return YamlKey(name, name, default)


@dataclass(frozen=True, slots=True)
class Rare(YamlKey):
    """A key that is written only where it says something."""

    def write(self, fields: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        if fields.get(self.field, self.default) != self.default:
            YamlKey.write(self, fields, yaml)


def rare(name: str, default: Value = None) -> YamlKey:
    return Rare(name, name, default)


@dataclass(frozen=True, slots=True)
class Required(YamlKey, Needed):
    """A key without which NeMo 1 builds nothing."""

    def read(self, yaml: Mapping[str, Value], fields: dict[str, Value]) -> None:
        if yaml.get(self.key) is None:
            raise CorruptCheckpoint(f"model_config.yaml: has no {self.key}")
        YamlKey.read(self, yaml, fields)


@dataclass(frozen=True, slots=True)
class YamlOnly(OneYamlKey):
    """A key that NeMo 2 has no word for: only these values say what every GPTConfig means. The first is
    NeMo 1's default."""

    name: str
    values: tuple[Value, ...]
    fields = frozenset[str]()

    def read(self, yaml: Mapping[str, Value], fields: dict[str, Value]) -> None:
        found = yaml.get(self.name, self.values[0])
        if found not in self.values:
            raise UnsupportedConfig(
                f"model_config.yaml: {self.name}={text(found)} has no counterpart, "
                f"only {some([repr(value) for value in self.values])} has"
            )

    def write(self, fields: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        """Nothing: NeMo 1's default says it."""


@dataclass(frozen=True, slots=True)
class Says(OneYamlKey, Needed):
    """A key that must have this value, which is not what NeMo 1 takes for an absent one."""

    name: str
    value: Value
    default: Value
    why: str = ""
    fields = frozenset[str]()

    def read(self, yaml: Mapping[str, Value], fields: dict[str, Value]) -> None:
        found = yaml.get(self.name, self.default)
        if found != self.value:
            raise UnsupportedConfig(
                f"model_config.yaml: {self.name}={text(found)} has no counterpart, only {self.value!r} has"
                + (f": {self.why}" if self.why else "")
            )

    def write(self, fields: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        yaml[self.name] = self.value


@dataclass(frozen=True, slots=True)
class Means(OneYamlKey, Needed):
    """A key that must have this value, which says that a field has that one; ``default`` is what NeMo 1 takes
    where the key is absent."""

    name: str
    value: Value
    default: Value
    field: str
    meant: Value

    @property
    def fields(self) -> frozenset[str]:
        return frozenset({self.field})

    def read(self, yaml: Mapping[str, Value], fields: dict[str, Value]) -> None:
        Says(self.name, self.value, self.default).read(yaml, fields)
        fields[self.field] = self.meant

    def write(self, fields: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        if fields[self.field] != self.meant:
            raise UnsupportedConfig(f"NeMo 1 has no word for {self.field}={text(fields[self.field])}")
        yaml[self.name] = self.value


@dataclass(frozen=True, slots=True)
class Unspoken:
    """Fields that mean nothing in a class's models, and that NeMo 1 needs no word for."""

    names: tuple[str, ...]
    keys = frozenset[str]()

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(self.names)

    def read(self, yaml: Mapping[str, Value], fields: dict[str, Value]) -> None:
        """Nothing."""

    def write(self, fields: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Word(OneYamlKey):
    """A key by which NeMo 1 is told what NeMo 2 has a class of its own for. ``values`` are those that are
    known: the first is the one of every plain model, and so are those in ``plain``."""

    name: str
    values: tuple[Value, ...]
    plain: tuple[Value, ...] = ()

    @property
    def fields(self) -> frozenset[str]:
        return frozenset({self.name})

    def read(self, yaml: Mapping[str, Value], fields: dict[str, Value]) -> None:
        found = yaml.get(self.name, self.values[0])
        if found not in (*self.values, *self.plain):
            raise UnsupportedConfig(
                f"model_config.yaml: {self.name}={text(found)} has no counterpart, "
                f"only {some([repr(value) for value in self.values])} has"
            )
        fields[self.name] = self.values[0] if found in self.plain else found

    def write(self, fields: Mapping[str, Value], yaml: dict[str, Value]) -> None:
        if fields.get(self.name, self.values[0]) != self.values[0]:
            yaml[self.name] = fields[self.name]
