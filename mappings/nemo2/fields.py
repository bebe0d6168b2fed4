"""Model configs <-> the fields of NeMo 2's config classes.

io.json holds only fields that were set; for the rest NeMo takes the class's defaults, so those are
known as data (:mod:`nemoconv.mappings.nemo2.classes`). Every field is owned by a rule here, known to be
harmless, or refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from ...errors import CorruptCheckpoint, UnsupportedArchitecture, UnsupportedConfig, some
from ...formats.text.fiddle import Node, Symbol
from ..hf.fields import Value
from .known import INERT, OFF, ONLY_WITH


class NemoRule(Protocol):
    """Owns ``names`` of a NeMo config class and translates them from and to the model config."""

    @property
    def names(self) -> frozenset[str]: ...

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        """Fill the model config from all fields, defaults included."""
        ...

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        """Set the fields that say what the model config says."""
        ...


class OneName:
    """What rules for one field of NeMo's config share: they own ``name``."""

    __slots__ = ()
    name: str

    @property
    def names(self) -> frozenset[str]:
        return frozenset({self.name})


@dataclass(frozen=True, slots=True)
class Same(OneName):
    """A field of the same name and meaning. ``otherwise`` says what NeMo's ``__post_init__`` takes for
    None: another field, or a product of (field, factor)."""

    name: str
    otherwise: str | None = None
    factor: int = 1
    divided_by: str | None = None

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        value = fields[self.name]
        if value is None and self.otherwise is not None:
            value = config[self.otherwise] * self.factor
            if self.divided_by is not None:
                value //= config[self.divided_by]
        config[self.name] = value

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields[self.name] = config[self.name]


@dataclass(frozen=True, slots=True)
class Count(Same):
    """A :class:`Same` field that must be a positive number."""

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        Same.read(self, fields, config)
        value = config[self.name]
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise CorruptCheckpoint(f"the NeMo config says {self.name}={value!r}")


@dataclass(frozen=True, slots=True)
class NemoFixed(OneName):
    """A field that must have one value, since config.json of these models has no word for another."""

    name: str
    value: Value
    written: bool = False

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        found = plain(fields.get(self.name, self.value))
        if found != self.value:
            raise UnsupportedConfig(
                f"the NeMo config says {self.name}={text(found)}, which has no counterpart; "
                f"only {text(self.value)} has"
            )

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        if self.written:
            fields[self.name] = self.value


@dataclass(frozen=True, slots=True)
class Unused:
    """Fields that mean nothing in this architecture, whatever their value."""

    fields: tuple[str, ...]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.fields)

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        pass

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Base:
    """``rotary_base``, an int or a float in NeMo."""

    names = frozenset({"rotary_base"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        base = fields["rotary_base"]
        if isinstance(base, bool) or not isinstance(base, (int, float)):
            raise UnsupportedConfig(f"rotary_base={text(base)} is not a number")
        config["rotary_base"] = float(base)

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields["rotary_base"] = config["rotary_base"]


_LLAMA3: Final = {
    "factor": "scale_factor",
    "high_freq_factor": "high_freq_factor",
    "low_freq_factor": "low_freq_factor",
    "original_max_position_embeddings": "old_context_len",
}


@dataclass(frozen=True, slots=True)
class NemoRotaryScaling:
    """``rope_scaling`` <-> ``seq_len_interpolation_factor`` (linear) or, in classes that have it, the
    four fields of ``Llama31Config`` (llama3). NeMo's config classes express no other type."""

    names = frozenset({"seq_len_interpolation_factor", *_LLAMA3.values()})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        linear, llama3 = fields.get("seq_len_interpolation_factor"), fields.get("scale_factor")
        if linear is not None and llama3 is not None:
            raise UnsupportedConfig(
                "the NeMo config has both scale_factor and seq_len_interpolation_factor, "
                "which config.json cannot say"
            )
        config["rope_scaling"] = None
        if linear is not None:
            config["rope_scaling"] = {"rope_type": "linear", "factor": float(linear)}
        if llama3 is not None:
            values = {hf: fields[nemo] for hf, nemo in _LLAMA3.items()}
            config["rope_scaling"] = {
                "rope_type": "llama3",
                **{hf: int(v) if hf.startswith("original") else float(v) for hf, v in values.items()},
            }

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        scaling = config["rope_scaling"]
        kind = scaling["rope_type"] if scaling else None
        if kind == "linear":
            fields["seq_len_interpolation_factor"] = scaling["factor"]
        elif kind == "llama3":
            fields |= {nemo: scaling[hf] for hf, nemo in _LLAMA3.items()}
        elif kind is not None:
            raise UnsupportedConfig(
                f"config.json: NeMo 2 has no rotary scaling of type {kind!r} for this architecture; "
                "it knows 'llama3' and 'linear'"
            )


@dataclass(frozen=True, slots=True)
class Llama3Scaling(NemoRotaryScaling):
    """:class:`NemoRotaryScaling` of config classes that always scale as Llama 3.1 does."""

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        kind = (config["rope_scaling"] or {}).get("rope_type")
        if kind != "llama3":
            raise UnsupportedConfig(
                f"config.json: rotary scaling of type {kind!r} has no counterpart in NeMo's config class for "
                "this architecture, which always scales by 'llama3'"
            )
        NemoRotaryScaling.write(self, config, fields)


@dataclass(frozen=True, slots=True)
class BiasLinear:
    """``add_bias_linear`` <-> ``attention_bias`` and ``mlp_bias``, which NeMo cannot tell apart."""

    names = frozenset({"add_bias_linear"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        biases = bool(fields["add_bias_linear"])
        config |= dict.fromkeys(("add_bias_linear", "attention_bias", "mlp_bias"), biases)

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields["add_bias_linear"] = config["add_bias_linear"]


@dataclass(frozen=True, slots=True)
class ParamsDtype:
    """``params_dtype`` and the flags ``bf16`` and ``fp16``: NeMo builds by the one, exports by the others."""

    names = frozenset({"params_dtype", "bf16", "fp16"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        dtype = fields.get("params_dtype")
        config["params_dtype"] = dtype.name if isinstance(dtype, Symbol) and dtype.module == "torch" else None

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        dtype = config["params_dtype"]
        fields["bf16"], fields["fp16"] = dtype == "bfloat16", dtype == "float16"
        fields["params_dtype"] = Symbol("torch", dtype)


@dataclass(frozen=True, slots=True)
class NemoWindow:
    """``window_size``, how many tokens back and ahead a layer sees, <-> ``sliding_window``, how many it
    sees with its own. Every layer has the window, so ``window_attn_skip_freq`` must be off."""

    names = frozenset({"window_size", "window_attn_skip_freq"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        size = plain(fields["window_size"])
        config["sliding_window"] = None
        if size is None or size in ((-1, 0), (-1, -1)):
            return
        back = size[0] if isinstance(size, tuple) and len(size) == 2 and size[1] == 0 else None
        if not isinstance(back, int) or isinstance(back, bool) or back < 0:
            raise UnsupportedConfig(f"the NeMo config says window_size={text(size)}, not [n, 0]")
        if fields.get("window_attn_skip_freq") is not None:
            raise UnsupportedConfig("the NeMo config has window_attn_skip_freq, which has no counterpart")
        config["sliding_window"] = back + 1

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        window = config["sliding_window"]
        fields["window_size"] = None if window is None else [window - 1, 0]


@dataclass(frozen=True, slots=True)
class NemoLength:
    """``seq_length`` in a class that also has ``max_position_embeddings``, which NeMo exports instead."""

    names = frozenset({"seq_length", "max_position_embeddings"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        config["seq_length"] = fields["max_position_embeddings"]

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        fields["seq_length"] = fields["max_position_embeddings"] = config["seq_length"]


@dataclass(frozen=True, slots=True)
class FusedGelu:
    """``hidden_act`` of an MLP with biases, not gated. Megatron's kernel that adds the bias as well
    (``bias_activation_fusion``) computes GELU by tanh, though ``activation_func`` names the exact one.

    Source: megatron/core/fusions/fused_bias_gelu.py.
    """

    exact: Symbol
    by_tanh: Symbol
    names = frozenset({"activation_func", "bias_activation_fusion"})

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        function, fused = plain(fields["activation_func"]), bool(fields["bias_activation_fusion"])
        if function not in (self.exact, self.by_tanh):
            raise UnsupportedConfig(
                f"the NeMo config says activation_func={text(function)}; only {self.exact} has a counterpart"
            )
        config["hidden_act"] = "gelu" if function == self.exact and not fused else "gelu_pytorch_tanh"

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        kinds = {"gelu_pytorch_tanh": True, "gelu": False}
        if config["hidden_act"] not in kinds:
            raise UnsupportedConfig(
                f"config.json: hidden_act={config['hidden_act']!r} is not supported for this architecture, "
                f"only {some(map(repr, kinds))}"
            )
        fields["bias_activation_fusion"] = kinds[config["hidden_act"]]


@dataclass(frozen=True, slots=True)
class Gemma3Attention:
    """The fields by which Gemma 3's layers differ: ``window_size``, here one number of tokens back, of the
    first n - 1 layers of ``interleaved_attn_pattern``, two bases, one scaling, and ``softmax_scale``."""

    names = frozenset(
        """rotary_base rope_scaling_factor seq_len_interpolation_factor window_size softmax_scale
        interleaved_attn_pattern""".split()
    )

    def read(self, fields: Mapping[str, Value], config: dict[str, Value]) -> None:
        bases, (local, whole) = plain(fields["rotary_base"]), plain(fields["interleaved_attn_pattern"])
        window, scale = fields["window_size"], fields["softmax_scale"]
        factor = fields["seq_len_interpolation_factor"]
        if whole != 1 or not isinstance(window, int) or factor is not None:
            raise UnsupportedConfig(
                f"the NeMo config says interleaved_attn_pattern={(local, whole)}, "
                f"window_size={text(window)}, seq_len_interpolation_factor={text(factor)}: no counterpart"
            )
        config["rotary_base_local"], config["rotary_base"] = map(float, bases)
        config["sliding_window"], config["window_pattern"] = window + 1, local + 1
        scalar = config["kv_channels"] if scale is None else round(scale**-2)
        if scale is not None and abs(scalar * scale * scale - 1) > 1e-6:
            raise UnsupportedConfig(f"the NeMo config says softmax_scale={scale}, no root of 1/n")
        config["query_pre_attn_scalar"] = scalar
        scaling = float(fields["rope_scaling_factor"])
        config["rope_scaling"] = None if scaling == 1 else {"rope_type": "linear", "factor": scaling}

    def write(self, config: Mapping[str, Value], fields: dict[str, Value]) -> None:
        scaling = config["rope_scaling"] or {"rope_type": "linear", "factor": 1.0}
        if scaling["rope_type"] != "linear":
            raise UnsupportedConfig(
                f"config.json: NeMo 2 has no rotary scaling of type {scaling['rope_type']!r} "
                "for this architecture; it knows 'linear'"
            )
        scalar = config["query_pre_attn_scalar"]
        fields |= {
            "rotary_base": (config["rotary_base_local"], config["rotary_base"]),
            "rope_scaling_factor": scaling["factor"],
            "window_size": config["sliding_window"] - 1,
            "interleaved_attn_pattern": (config["window_pattern"] - 1, 1),
            "softmax_scale": None if scalar == config["kv_channels"] else scalar**-0.5,
        }


#: the fields of a decoder with RMSNorm, a gated SiLU and rotary embeddings
DECODER: Final[tuple[NemoRule, ...]] = (
    Count("num_layers"),
    Count("hidden_size"),
    Count("num_attention_heads"),
    Count("ffn_hidden_size", otherwise="hidden_size", factor=4),
    Count("num_query_groups", otherwise="num_attention_heads"),
    Count("kv_channels", otherwise="hidden_size", divided_by="num_attention_heads"),
    Same("vocab_size"),
    Count("seq_length"),
    Same("layernorm_epsilon"),
    Same("init_method_std"),
    Same("attention_dropout"),
    Same("share_embeddings_and_output_weights"),
    Base(),
    NemoRotaryScaling(),
    BiasLinear(),
    ParamsDtype(),
    NemoFixed("position_embedding_type", "rope"),
    NemoFixed("rotary_percent", 1.0),
    NemoFixed("normalization", "RMSNorm"),
    NemoFixed("activation_func", Symbol("torch.nn.functional", "silu")),
    NemoFixed("gated_linear_unit", True, written=True),
    NemoFixed("add_qkv_bias", False),
)


#: of an architecture whose linear layers have no biases
NO_BIASES: Final = NemoFixed("add_bias_linear", False, written=True)


def with_rules(base: tuple[NemoRule, ...], *rules: NemoRule) -> tuple[NemoRule, ...]:
    """``base`` with ``rules`` in place of those that own any of the same fields."""
    taken = frozenset().union(*(rule.names for rule in rules))
    return (*(rule for rule in base if not rule.names & taken), *rules)


#: fields that say nothing which another rule does not
_SAID_ELSEWHERE: Final = frozenset({"generation_config", "make_vocab_size_divisible_by"})


@dataclass(frozen=True, slots=True)
class NemoClasses:
    """The NeMo 2 classes of an architecture, all of ``module``.

    ``defaults`` gives what each config class takes for fields that are not set. ``config`` is the
    class to write, or ``scaled_config`` for a model with llama3 rotary scaling.
    """

    module: str
    model: str
    config: str
    defaults: Mapping[str, Mapping[str, Value]] = field(hash=False)
    rules: tuple[NemoRule, ...] = DECODER
    scaled_config: str | None = None
    #: further modules whose config classes ``defaults`` holds
    modules: tuple[str, ...] = ()
    #: what the model class takes besides its config
    arguments: tuple[tuple[str, Value], ...] = ()
    #: an architecture with the same config, which is meant where neither a field nor a manifest tells
    read_as: str = ""

    def fits(self, config_class: Symbol, given: Mapping[str, Value]) -> bool:
        """Whether a config class may be of this architecture: of its module, known or not."""
        known = config_class.name in self.defaults
        return config_class.module == self.module or (known and config_class.module in self.modules)

    def read(
        self,
        config_class: Symbol,
        given: Mapping[str, Value],
        where: str,
        allow_ignored: Collection[str] = (),
    ) -> dict[str, Value]:
        """The model config of a config class with these fields set.

        Raises UnsupportedArchitecture for an unknown class, UnsupportedConfig for fields that change
        the mathematics and have no counterpart.
        """
        defaults = self.defaults.get(config_class.name)
        if defaults is None:
            raise UnsupportedArchitecture(
                f"{where}: the config class {config_class.name} is not known",
                hint=f"known: {some(self.defaults)}",
            )
        fields = {**defaults, **given}
        owned = frozenset().union(*(rule.names for rule in self.rules))
        wrong = [
            f"{name}={text(value)}"
            for name, value in fields.items()
            if name not in owned and name not in allow_ignored and not harmless(name, fields)
        ]
        if wrong:
            raise UnsupportedConfig(
                f"{where}: {len(wrong)} field(s) may change what the model computes and have no counterpart: "
                f"{some(wrong)}",
                hint="if you know that they do not, pass --allow-ignored FIELD for each",
            )
        config: dict[str, Value] = {}
        for rule in self.rules:
            rule.read(fields, config)
        return config

    def write(self, config: Mapping[str, Value]) -> tuple[str, dict[str, Value]]:
        """(config class, fields to set) that make NeMo build this model.

        Raises UnsupportedConfig for what NeMo cannot express.
        """
        fields: dict[str, Value] = {}
        for rule in self.rules:
            rule.write(config, fields)
        if (config.get("rope_scaling") or {}).get("rope_type") != "llama3":
            return self.config, fields
        if self.scaled_config is None:
            raise UnsupportedConfig(
                f"config.json: NeMo's {self.config} has no rotary scaling of type 'llama3'"
            )
        return self.scaled_config, fields


@dataclass(frozen=True, slots=True)
class ArchivesOnly(NemoClasses):
    """The fields of a model that only a class of NeMo 1 computes: no NeMo 2 directory holds it."""

    def fits(self, config_class: Symbol, given: Mapping[str, Value]) -> bool:
        return False


def harmless(name: str, fields: Mapping[str, Value]) -> bool:
    """Whether a field that no rule owns changes nothing, or is switched off."""
    if name in INERT or name in _SAID_ELSEWHERE:
        return True
    if name in OFF:
        return plain(fields[name]) in OFF[name]
    return any(
        name in dependent and plain(fields.get(switch, OFF[switch][0])) in OFF[switch]
        for switch, dependent in ONLY_WITH.items()
    )


def plain(value: Value) -> Value:
    """A value that can be compared: functions that NeMo stores as nodes are their symbols."""
    return value.symbol if isinstance(value, Node) else tuple(value) if isinstance(value, list) else value


def text(value: Value) -> str:
    return str(value.symbol if isinstance(value, Node) else value)[:60]
