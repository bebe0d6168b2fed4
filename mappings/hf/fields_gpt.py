"""Config rules of the GPT-2 family and of models whose code came with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ...errors import UnsupportedConfig
from .fields import OneField, OneKey, Value, check_kind, head_width
from .rope import PartialRope

#: transformers' names for GELU by tanh, which differ in rounding only
TANH_GELUS: Final = frozenset({"gelu_new", "gelu_pytorch_tanh", "gelu_fast"})


@dataclass(frozen=True, slots=True)
class Gelu(OneKey):
    """The activation of an MLP without a gate <-> ``hidden_act``: ``gelu`` or ``gelu_pytorch_tanh``.

    ``spelling`` is what the architecture calls GELU by tanh.
    """

    hf: str
    default: str
    spelling: str
    fields = frozenset({"hidden_act"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        found = hf.get(self.hf, self.default)
        if found not in TANH_GELUS and found != "gelu":
            raise UnsupportedConfig(
                f"config.json: {self.hf}={found!r} is not supported for this architecture, "
                f"only 'gelu' and {self.spelling!r}"
            )
        config["hidden_act"] = "gelu" if found == "gelu" else "gelu_pytorch_tanh"

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf[self.hf] = "gelu" if config["hidden_act"] == "gelu" else self.spelling


@dataclass(frozen=True, slots=True)
class EvenHeads:
    """Heads that share the hidden size evenly: config.json has no key for ``kv_channels``."""

    hf_keys = frozenset[str]()
    fields = frozenset({"kv_channels"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        config["kv_channels"] = head_width(config)

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        if config["kv_channels"] * config["num_attention_heads"] != config["hidden_size"]:
            raise UnsupportedConfig(
                f"kv_channels={config['kv_channels']} of {config['num_attention_heads']} heads is not "
                f"hidden_size={config['hidden_size']}, which config.json of this architecture cannot say"
            )


@dataclass(frozen=True, slots=True)
class PlainHeads:
    """As many key heads as query heads, which share the hidden size evenly: config.json has no key for
    ``num_query_groups`` and ``kv_channels``. With ``multi_query``, a key of that name says whether there
    is one key head only."""

    multi_query: bool = False
    fields = frozenset({"num_query_groups", "kv_channels"})

    @property
    def hf_keys(self) -> frozenset[str]:
        # transformers 5 works num_key_value_heads out and writes it down
        return frozenset({"multi_query", "num_key_value_heads"} if self.multi_query else ())

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        config["kv_channels"], heads = head_width(config), config["num_attention_heads"]
        one = self.multi_query and check_kind("multi_query", hf.get("multi_query", True), bool)
        config["num_query_groups"] = 1 if one else heads
        said = hf.get("num_key_value_heads", config["num_query_groups"])
        if self.multi_query and said != config["num_query_groups"]:
            raise UnsupportedConfig(
                f"config.json: num_key_value_heads={said!r} and multi_query={one} disagree"
            )

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        EvenHeads().write(config, hf)
        heads, groups = config["num_attention_heads"], config["num_query_groups"]
        if groups != heads and not (self.multi_query and groups == 1):
            raise UnsupportedConfig(
                f"num_query_groups={groups} of {heads} heads has no counterpart in config.json of this "
                "architecture"
            )
        if self.multi_query:
            hf["multi_query"] = groups == 1


@dataclass(frozen=True, slots=True)
class GptInnerWidth:
    """``n_inner`` <-> ``ffn_hidden_size``: four times the hidden size unless it is given."""

    hf_keys = frozenset({"n_inner"})
    fields = frozenset({"ffn_hidden_size"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        given = hf.get("n_inner")
        config["ffn_hidden_size"] = check_kind(
            "n_inner", 4 * config["hidden_size"] if given is None else given, int
        )

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf["n_inner"] = config["ffn_hidden_size"]


@dataclass(frozen=True, slots=True)
class OnlyValue(OneField):
    """A key that must have one value here, which is not what transformers takes for a missing key.

    ``field`` says the same in Megatron's words.
    """

    hf: str
    value: Value
    default: Value
    why: str = ""
    field: str | None = None

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        found = hf.get(self.hf, self.default)
        if found != self.value:
            raise UnsupportedConfig(
                f"config.json: {self.hf}={found!r} is not supported, only {self.value!r}"
                + (f": {self.why}" if self.why else "")
            )
        if self.field:
            config[self.field] = self.value

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        if self.field and config[self.field] != self.value:
            raise UnsupportedConfig(
                f"{self.field}={config[self.field]!r} has no counterpart here, only {self.value!r}"
                + (f": {self.why}" if self.why else "")
            )
        hf[self.hf] = self.value


@dataclass(frozen=True, slots=True)
class NeoXRope(PartialRope):
    """:class:`PartialRope` that transformers 4 calls ``rotary_pct`` and ``rotary_emb_base``."""

    default_factor: float = 0.25
    hf_keys = PartialRope.hf_keys | {"rotary_pct", "rotary_emb_base"}

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        rest = dict(hf)
        for old, new in (("rotary_pct", "partial_rotary_factor"), ("rotary_emb_base", "rope_theta")):
            value = rest.pop(old, None)
            if value is not None and rest.setdefault(new, value) != value:
                raise UnsupportedConfig(
                    f"config.json: {old}={value!r} and {new}={rest[new]!r} disagree",
                    hint="remove the one that is wrong",
                )
        PartialRope.read(self, rest, config)

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        PartialRope.write(self, config, hf)
        hf["rotary_pct"], hf["rotary_emb_base"] = config["rotary_percent"], config["rotary_base"]


@dataclass(frozen=True, slots=True)
class AutoMap:
    """``auto_map`` of models whose class came with them and is described by the table: it must name the
    released code, here or in another repository (``owner/name--module.Class``). It is never run, and its
    files are not copied."""

    config_class: str
    model_class: str
    #: other names of the same, in older releases
    others: tuple[str, ...] = ()
    auto_class: str = "AutoModelForCausalLM"
    hf_keys = frozenset({"auto_map"})
    fields = frozenset[str]()

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        given = hf.get("auto_map")
        if given is None:
            return
        known = self._map()
        if not isinstance(given, dict) or any(
            str(given[key]).rpartition("--")[2] not in (known[key], *self.others)
            for key in known.keys() & given.keys()
        ):
            raise UnsupportedConfig(
                f"config.json: auto_map={given!r} names other code than the released {self.model_class}, "
                "and code that comes with a model is never run",
                hint="if it computes the same, pass --allow-ignored auto_map",
            )

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf["auto_map"] = self._map()

    def _map(self) -> dict[str, str]:
        return {"AutoConfig": self.config_class, self.auto_class: self.model_class}


@dataclass(frozen=True, slots=True)
class MultiQueryGroups:
    """``multi_query_attention`` and ``multi_query_group_num`` <-> ``num_query_groups`` (ChatGLM)."""

    hf_keys = frozenset({"multi_query_attention", "multi_query_group_num"})
    fields = frozenset({"num_query_groups"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        grouped = check_kind("multi_query_attention", hf.get("multi_query_attention", False), bool)
        groups = hf.get("multi_query_group_num", 1) if grouped else config["num_attention_heads"]
        config["num_query_groups"] = check_kind("multi_query_group_num", groups, int)

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf["multi_query_attention"] = True
        hf["multi_query_group_num"] = config["num_query_groups"]


@dataclass(frozen=True, slots=True)
class RopeRatio:
    """``rope_ratio``, by which ChatGLM multiplies a base of 10000, <-> ``rotary_base``; half of each head
    is turned."""

    hf_keys = frozenset({"rope_ratio"})
    fields = frozenset({"rotary_base", "rope_scaling", "rotary_percent"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        ratio = check_kind("rope_ratio", hf.get("rope_ratio", 1.0), float)
        if ratio <= 0:
            raise UnsupportedConfig(f"config.json: rope_ratio={ratio!r} is not positive")
        config |= {"rotary_base": 10_000.0 * ratio, "rope_scaling": None, "rotary_percent": 0.5}

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        if config["rope_scaling"] is not None or config["rotary_percent"] != 0.5:
            raise UnsupportedConfig(
                f"rope_scaling={config['rope_scaling']} with rotary_percent={config['rotary_percent']} has "
                "no counterpart in config.json of this architecture, only 0.5 without scaling"
            )
        hf["rope_ratio"] = config["rotary_base"] / 10_000.0
