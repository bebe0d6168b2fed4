"""Config tables: how keys of ``config.json`` correspond to Megatron's config fields.

Between the two stands one flat dictionary in Megatron's names (``num_query_groups``,
``ffn_hidden_size``, ...), called the *model config*. Each :class:`ConfigRule` owns some Hugging Face
keys and some of its fields and translates both ways. A key that no rule owns is an error unless it is
known to change nothing that a model computes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ...errors import NemoconvError, UnsupportedConfig, some
from ...tensors.dtypes import BY_NAME
from .keys_read import judge

Value = Any  # what JSON holds: None, bool, int, float, str, list, dict

#: keys of transformers' PretrainedConfig and of well-known exporters that do not enter the forward pass
INERT = frozenset(
    """
    add_cross_attention architectures bad_words_ids begin_suppress_tokens bos_token_id
    chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty
    do_sample early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id id2label is_composition is_decoder
    is_encoder_decoder is_llama_config keys_to_ignore_at_inference label2id length_penalty max_length
    min_length model_type no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences
    output_attentions output_hidden_states output_router_logits output_scores pad_token_id prefix
    pretraining_tp problem_type pruned_heads remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate router_jitter_noise sep_token_id suppress_tokens task_specific_params
    temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torchscript
    transformers.js_config transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16
    use_cache
    """.split()
)
#: inert too, but never carried along: paths of the writer, and choices of kernels, which can name code
PRIVATE = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
    _flash_attn_2_enabled _from_model_config _name_or_path
    """.split()
)


#: what a value of an odd kind raises where a rule calculates with it or looks it up
_ODD = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)


class ConfigRule(Protocol):
    """Owns ``hf_keys`` of config.json and ``fields`` of the model config."""

    @property
    def hf_keys(self) -> frozenset[str]: ...

    @property
    def fields(self) -> frozenset[str]: ...

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        """Fill ``config`` from a config.json; a missing key takes transformers' default."""
        ...

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        """Fill a config.json from the model config."""
        ...


class OneKey:
    """What rules for one key of config.json share: they own ``hf``."""

    __slots__ = ()
    hf: str

    @property
    def hf_keys(self) -> frozenset[str]:
        return frozenset({self.hf})


class OneField(OneKey):
    """What rules for one key and one ``field`` of the model config (None: no field) share: what the field has
    is written under the key."""

    __slots__ = ()
    field: str | None

    @property
    def fields(self) -> frozenset[str]:
        return frozenset({self.field} if self.field else ())

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        assert self.field is not None
        hf[self.hf] = config[self.field]


def head_width(config: Mapping[str, Value]) -> int:
    """hidden_size / num_attention_heads. Raises UnsupportedConfig where that is no whole number."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if hidden % heads:
        raise UnsupportedConfig(f"config.json: hidden_size={hidden} is not a multiple of {heads} heads")
    return int(hidden // heads)


@dataclass(frozen=True, slots=True)
class Field(OneField):
    """One key, one field. ``default`` is what transformers takes for a missing key; with
    ``default_from`` a missing or null key takes the value of another field (set before this one)."""

    hf: str
    field: str
    default: Value = None
    default_from: str | None = None
    kind: type = int

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        value = hf.get(self.hf, self.default)
        if value is None and self.default_from is not None:
            value = config[self.default_from]
        config[self.field] = check_kind(self.hf, value, self.kind)


@dataclass(frozen=True, slots=True)
class HeadDim:
    """``head_dim`` <-> ``kv_channels``: hidden_size / num_attention_heads unless it is given."""

    hf_keys = frozenset({"head_dim"})
    fields = frozenset({"kv_channels"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        given = hf.get("head_dim")
        width = head_width(config) if given is None else given
        config["kv_channels"] = check_kind("head_dim", width, int)

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf["head_dim"] = config["kv_channels"]


@dataclass(frozen=True, slots=True)
class Fixed(OneField):
    """A key that must have one value here, because the tables describe no other mathematics.

    ``field`` and ``field_value`` say the same thing in Megatron's words, where it has words for it.
    """

    hf: str
    value: Value
    field: str | None = None
    field_value: Value = None

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        found = hf.get(self.hf, self.value)
        if found != self.value:
            raise UnsupportedConfig(
                f"config.json: {self.hf}={found!r} is not supported for this architecture, "
                f"only {self.value!r}"
            )
        if self.field:
            config[self.field] = self.field_value

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        if self.field:
            if config.get(self.field, self.field_value) != self.field_value:
                raise UnsupportedConfig(
                    f"{self.field}={config[self.field]!r} has no counterpart in config.json, "
                    f"only {self.field_value!r}"
                )
            hf[self.hf] = self.value


@dataclass(frozen=True, slots=True)
class Nullable(OneField):
    """One key, one field, either of which may be None. ``default`` is for a missing key only."""

    hf: str
    field: str
    default: Value = None
    kind: type = int

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        value = hf.get(self.hf, self.default)
        config[self.field] = None if value is None else check_kind(self.hf, value, self.kind)


@dataclass(frozen=True, slots=True)
class OneOf(OneKey):
    """A key that must have one of some values that mean the same here; the first is written."""

    hf: str
    values: tuple[Value, ...]
    fields = frozenset[str]()

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        found = hf.get(self.hf, self.values[0])
        if found not in self.values:
            raise UnsupportedConfig(
                f"config.json: {self.hf}={found!r} is not supported for this architecture, "
                f"only {some(map(repr, self.values))}"
            )

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf[self.hf] = self.values[0]


@dataclass(frozen=True, slots=True)
class Unread:
    """Keys that this architecture's model code does not read at inference, though another's might."""

    keys: tuple[str, ...]
    fields = frozenset[str]()

    @property
    def hf_keys(self) -> frozenset[str]:
        return frozenset(self.keys)

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        pass

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        pass


@dataclass(frozen=True, slots=True)
class FullAttention:
    """``use_sliding_window`` must be off: then the window's own keys mean nothing (Qwen 2 and 3)."""

    hf_keys = frozenset({"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"})
    fields = frozenset[str]()

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        kinds = hf.get("layer_types")
        if hf.get("use_sliding_window"):
            raise UnsupportedConfig(
                "config.json: use_sliding_window is on; Megatron has no window on some layers only"
            )
        if kinds is not None and (not isinstance(kinds, list) or set(map(str, kinds)) - {"full_attention"}):
            raise UnsupportedConfig("config.json: layer_types has layers that are not 'full_attention'")

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf["use_sliding_window"] = False


@dataclass(frozen=True, slots=True)
class AlternatingWindow:
    """``sliding_window`` of every second layer, the first among them (Gemma 2)."""

    default: int
    hf_keys = frozenset({"sliding_window", "layer_types"})
    fields = frozenset({"sliding_window"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        given = hf.get("sliding_window", self.default)
        config["sliding_window"] = check_kind("sliding_window", given, int)
        kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(config["num_layers"])]
        if hf.get("layer_types") not in (None, kinds):
            raise UnsupportedConfig("config.json: layer_types must alternate, sliding_attention first")

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        if config["sliding_window"] is None:
            raise UnsupportedConfig("window_size=None has no counterpart in config.json of this architecture")
        hf["sliding_window"] = config["sliding_window"]


@dataclass(frozen=True, slots=True)
class WindowPattern:
    """``sliding_window`` of all layers but every n-th (Gemma 3), where n is ``sliding_window_pattern``,
    or is told by ``layer_types``, <-> ``sliding_window`` and ``window_pattern``."""

    default: int
    hf_keys = frozenset(
        {"sliding_window", "sliding_window_pattern", "_sliding_window_pattern", "layer_types"}
    )
    fields = frozenset({"sliding_window", "window_pattern"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        given = hf.get("sliding_window", self.default)
        config["sliding_window"] = check_kind("sliding_window", given, int)
        kinds = hf.get("layer_types")
        first = kinds.index("full_attention") + 1 if kinds and "full_attention" in kinds else None
        told = hf.get("sliding_window_pattern", first or hf.get("_sliding_window_pattern", 6))
        pattern = check_kind("sliding_window_pattern", told, int)
        config["window_pattern"] = pattern
        if kinds is not None and kinds != _window_layers(config):
            raise UnsupportedConfig(
                f"config.json: layer_types must have full_attention at every {pattern}th layer, "
                "sliding_attention at the others"
            )

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        hf["sliding_window"] = config["sliding_window"]
        hf["sliding_window_pattern"] = config["window_pattern"]
        hf["layer_types"] = _window_layers(config)


def _window_layers(config: Mapping[str, Value]) -> list[str]:
    return [
        "sliding_attention" if (i + 1) % config["window_pattern"] else "full_attention"
        for i in range(config["num_layers"])
    ]


@dataclass(frozen=True, slots=True)
class Biases:
    """``attention_bias`` and ``mlp_bias`` <-> ``add_bias_linear``, which in Megatron means both.

    A model with one kind only is written with zeros for the other, which computes the same.
    """

    hf_keys = frozenset({"attention_bias", "mlp_bias"})
    fields = frozenset({"attention_bias", "mlp_bias", "add_bias_linear"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        for key in sorted(self.hf_keys):
            config[key] = check_kind(key, hf.get(key, False), bool)
        config["add_bias_linear"] = config["attention_bias"] or config["mlp_bias"]

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        for key in self.hf_keys:
            hf[key] = config[key]


@dataclass(frozen=True, slots=True)
class Dtype:
    """``dtype`` (transformers 5) and ``torch_dtype`` (4) <-> ``params_dtype``; both are written.

    Either may be spelled as torch prints it, or be a dictionary of parts (``""`` for what it does not name).
    """

    hf_keys = frozenset({"dtype", "torch_dtype"})
    fields = frozenset({"params_dtype"})

    def read(self, hf: Mapping[str, Value], config: dict[str, Value]) -> None:
        new, old = (_plain_dtype(hf.get(key)) for key in ("dtype", "torch_dtype"))
        if new is not None and old is not None and new != old:
            raise UnsupportedConfig(f"config.json: dtype={new!r} and torch_dtype={old!r} disagree")
        value = new if new is not None else old
        if value is not None and (not isinstance(value, str) or value not in BY_NAME):
            raise UnsupportedConfig(f"config.json: unknown dtype {value!r}")
        config["params_dtype"] = value

    def write(self, config: Mapping[str, Value], hf: dict[str, Value]) -> None:
        if config.get("params_dtype"):
            hf["dtype"] = hf["torch_dtype"] = config["params_dtype"]


def _plain_dtype(value: Value) -> Value:
    if isinstance(value, dict):
        parts = [value[""]] if "" in value else list(value.values())
        value = parts[0] if parts and all(part == parts[0] for part in parts) else value
    return None if value == "auto" else value.removeprefix("torch.") if isinstance(value, str) else value


def check_kind(name: str, value: Value, kind: type) -> Value:
    """``value`` if it is of ``kind`` (int, float, bool, str), with sane bounds for sizes."""
    ok = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not ok:
        raise UnsupportedConfig(f"config.json: {name}={value!r} is not of type {kind.__name__}")
    if kind is int and not 0 < value < 1 << 40:
        raise UnsupportedConfig(f"config.json: {name}={value!r} is out of range")
    if kind is float and not abs(value) < 1e30:  # also refuses NaN
        raise UnsupportedConfig(f"config.json: {name}={value!r} is out of range")
    return value


def read_config(
    rules: tuple[ConfigRule, ...], hf: Mapping[str, Value], allow_ignored: Collection[str] = ()
) -> tuple[dict[str, Value], list[str]]:
    """(model config, keys that no rule owns) of a config.json.

    Raises UnsupportedConfig for what a rule refuses, then for keys that the code of this ``model_type``
    reads, or may read, and nothing here knows, unless they are in ``allow_ignored``.
    """
    owned = frozenset().union(*(rule.hf_keys for rule in rules))
    unknown = sorted(key for key in hf if key not in owned and key not in INERT and key not in PRIVATE)
    config: dict[str, Value] = {}
    for rule in rules:
        instead: Mapping[str, Value] = getattr(rule, "when_ignored", {})
        ignored = {key: value for key, value in instead.items() if key in allow_ignored}
        try:
            rule.read({**hf, **ignored} if ignored else hf, config)
        except NemoconvError:
            raise
        except _ODD as error:
            given = [f"{key}={hf[key]!r}"[:200] for key in sorted(rule.hf_keys) if key in hf]
            raise UnsupportedConfig(
                f"config.json: {some(given) or some(sorted(rule.hf_keys))} cannot be read: a value is of "
                "another kind than any model has"
            ) from error
    left = [key for key in unknown if key not in allow_ignored]
    refused = judge(hf, left, hf.get("model_type")).doubtful if left else []
    if refused:
        raise UnsupportedConfig(
            f"config.json has {len(refused)} key(s) that may change what the model computes: {some(refused)}",
            hint="if you know that they do not, pass "
            + " ".join("--allow-ignored " + key for key in refused[:10]),
        )
    return config, sorted(key for key in hf if key not in owned)


def write_config(rules: tuple[ConfigRule, ...], config: Mapping[str, Value]) -> dict[str, Value]:
    """The config.json (without inert keys) that says what ``config`` says."""
    hf: dict[str, Value] = {}
    for rule in rules:
        rule.write(config, hf)
    return hf
