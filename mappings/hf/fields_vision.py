"""Config rules of vision-language models: configs inside config.json, and what their towers have in common.

The model config of such a model is that of its decoder; what is said of the vision tower and of the projector
stands in dictionaries of its own, ``vision`` and ``projection``, again in Megatron's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import UnsupportedConfig, some
from ...formats.text.special_floats import tagged
from .fields import INERT, PRIVATE, ConfigRule, Dtype, OneKey, Value, check_kind
from .keys_read import Judged, judge

TEXT = "text_config"
TIED = "tie_word_embeddings"
#: where inert keys of inner configs travel in the model config, by the name of the inner config
INNER_INERT = "inner_inert"
#: keys of inner configs that repeat the outer one's
_REPEATED = frozenset({"dtype", "torch_dtype", "model_type", TIED})


@dataclass(frozen=True, slots=True)
class InnerConfig:
    """A config inside config.json, whose keys ``rules`` own.

    ``model_types`` are what it may say it is, the first for one that does not say. ``field`` is where its
    model config stands, None for the outer one. ``absent`` is what the outer class takes for a config that is
    not there at all. ``flat``: its keys may stand in the outer config instead, and are written there
    (transformers before 4.52 has no other form, and later ones read it). ``kept`` are further keys that no
    model code reads.
    """

    key: str
    model_types: tuple[str, ...]
    rules: tuple[ConfigRule, ...]
    field: str | None = None
    absent: tuple[tuple[str, Value], ...] = ()
    flat: bool = False
    kept: tuple[str, ...] = ()

    @property
    def _owned(self) -> frozenset[str]:
        return frozenset().union(*(rule.hf_keys for rule in self.rules))

    @property
    def hf_keys(self) -> frozenset[str]:
        return frozenset({self.key, *(self._owned if self.flat else ())})

    @property
    def fields(self) -> frozenset[str]:
        if self.field is not None:
            return frozenset({self.field})
        return frozenset().union(*(rule.fields for rule in self.rules))

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        given = hf.get(self.key)
        if given is None:
            given = hf if self.flat else dict(self.absent)
        elif not isinstance(given, dict):
            raise UnsupportedConfig(f"config.json: {self.key} is not a dictionary")
        else:
            outer = hf.get("model_type")
            self._check(given, outer)
            config.setdefault(INNER_INERT, {})[self.key] = self._inert(given, outer)
        inner = self._read(given)
        if self.flat and given is not hf:
            self._compare(inner, self._read({**given, **{key: hf[key] for key in self._owned & hf.keys()}}))
        if self.field is None:
            config |= inner
        else:
            config[self.field] = inner

    def _read(self, given: Mapping[str, Value]) -> dict[str, Value]:
        inner: dict[str, Value] = {}
        for rule in self.rules:
            rule.read(given, inner)
        return inner

    def _compare(self, inner: Mapping[str, Value], outer: Mapping[str, Value]) -> None:
        """transformers 4.52 and 4.53 write the keys twice."""
        if twice := sorted(key for key in inner.keys() | outer.keys() if inner.get(key) != outer.get(key)):
            raise UnsupportedConfig(
                f"config.json: {self.key} and the outer config disagree about {some(twice)}",
                hint="remove what is wrong",
            )

    def _check(self, given: Mapping[str, Value], outer: str | None) -> None:
        kind = given.get("model_type", self.model_types[0])
        if kind not in self.model_types:
            raise UnsupportedConfig(
                f"config.json: {self.key}.model_type={kind!r} is not supported for this architecture, "
                f"only {self.model_types[0]!r}"
            )
        if unknown := self._judged(given, outer).doubtful:
            raise UnsupportedConfig(
                f"config.json: {self.key} has {len(unknown)} key(s) that may change what the model computes: "
                f"{some(unknown)}"
            )

    def _judged(self, given: Mapping[str, Value], outer: str | None) -> Judged:
        """The keys that are neither owned nor known to be inert, by what the code of both models reads."""
        known = self._owned | INERT | PRIVATE | _REPEATED | set(self.kept)
        kind = given.get("model_type", self.model_types[0])
        return judge(given, sorted(given.keys() - known), kind, *([outer] if outer else []))

    def _inert(self, given: Mapping[str, Value], outer: str | None) -> dict[str, Value]:
        judged = self._judged(given, outer)
        carried = INERT.union(self.kept, judged.unread, judged.default) - self._owned - PRIVATE - _REPEATED
        return {key: tagged(value) for key, value in given.items() if key in carried}

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        inner = config if self.field is None else config[self.field]
        if self.flat:
            for rule in self.rules:
                rule.write(inner, hf)
            return
        inert = config.get(INNER_INERT, {}).get(self.key)
        nested = {
            **(self._inert(inert, hf.get("model_type")) if isinstance(inert, dict) else {}),
            "model_type": self.model_types[0],
        }
        for rule in (*self.rules, Dtype()):
            rule.write({**inner, "params_dtype": config.get("params_dtype")}, nested)
        hf[self.key] = dict(sorted(nested.items()))


def carried_inside(rules: tuple[ConfigRule, ...], config: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    """Keys of inner configs that travel along and that no rule names as kept, by the inner config's name."""
    kept = {rule.key: rule.kept for rule in rules if isinstance(rule, InnerConfig)}
    found: dict[str, dict[str, Value]] = {}
    for part, values in config.get(INNER_INERT, {}).items():
        found[part] = {key: value for key, value in values.items() if key not in kept.get(part, ())}
    return found


@dataclass(frozen=True, slots=True)
class TiedEmbeddings:
    """``tie_word_embeddings`` of the outer config or of the decoder's: transformers 4 asks the decoder's,
    5 ties where either says so."""

    hf_keys = frozenset({TIED})
    fields = frozenset({"share_embeddings_and_output_weights"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        inner = hf.get(TEXT)
        places = [hf, inner if isinstance(inner, dict) else {}]
        tied = any(check_kind(TIED, place.get(TIED, False), bool) for place in places)
        config["share_embeddings_and_output_weights"] = tied

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf[TIED] = config["share_embeddings_and_output_weights"]
        if isinstance(hf.get(TEXT), dict):
            hf[TEXT] = {**hf[TEXT], TIED: hf[TIED]}


@dataclass(frozen=True, slots=True)
class Must(OneKey):
    """A key that must have one value, for which NeMo has no setting. ``otherwise`` is what transformers takes
    for a missing key; a null one means the value where ``null`` is set."""

    hf: str
    value: Value
    otherwise: Value
    null: bool = False
    fields = frozenset[str]()

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        found = hf.get(self.hf, self.otherwise)
        if found != self.value and not (self.null and found is None):
            raise UnsupportedConfig(
                f"config.json: {self.hf}={found!r} has no counterpart in NeMo 2, which always takes "
                f"{self.value!r}"
            )

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf[self.hf] = self.value


@dataclass(frozen=True, slots=True)
class Carried(OneKey):
    """A number of which NeMo 2 knows nothing, since its input says the same otherwise: the token id in whose
    place an image comes. It travels in the manifest."""

    hf: str
    default: int

    @property
    def fields(self) -> frozenset[str]:
        return frozenset({self.hf})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        config[self.hf] = check_kind(self.hf, hf.get(self.hf, self.default), int)

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf[self.hf] = config.get(self.hf, self.default)
