"""Model configs <-> the fields of NeMo 2's config classes.

io.json holds only fields that were set; for the rest NeMo takes the class's defaults, so those of
every class of a family are known as data (:mod:`nemoconv.mappings.nemo_configs`). Every field is
mapped here, known to be harmless, or refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from nemoconv.errors import CorruptCheckpoint, UnsupportedArchitecture, UnsupportedConfig, some
from nemoconv.formats.fiddle import Node, Symbol
from nemoconv.mappings import architectures, load_table
from nemoconv.mappings.config_fields import Value
from nemoconv.mappings.nemo_configs import INERT, LLAMA_DEFAULTS, MAPPED, OFF, ONLY_WITH
from nemoconv.mappings.rules import largest_power_of_two_divisor
from nemoconv.mappings.table import Sizes, Table

#: fields with the same name and meaning in the model config
_SAME: Final = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "vocab_size",
    "seq_length",
    "layernorm_epsilon",
    "init_method_std",
    "attention_dropout",
    "share_embeddings_and_output_weights",
    "rotary_base",
)
#: mapped fields that must have one value, because config.json of these models has no word for another
_FIXED: Final[Mapping[str, tuple[object, ...]]] = {
    "position_embedding_type": ("rope",),
    "rotary_percent": (1.0,),
    "normalization": ("RMSNorm",),
    "activation_func": (Symbol("torch.nn.functional", "silu"),),
    "gated_linear_unit": (True,),
    "add_qkv_bias": (False,),
}
_LLAMA3: Final = {
    "factor": "scale_factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "old_context_len",
}
_DEFAULTS: Final = {"llama": LLAMA_DEFAULTS}


def read(
    config_class: Symbol,
    given: Mapping[str, Value],
    where: str,
    allow_ignored: Collection[str] = (),
) -> tuple[Table, dict[str, Value]]:
    """The table and the model config that a NeMo config class with these fields stands for.

    Raises UnsupportedArchitecture for config classes that no table knows, UnsupportedConfig for
    fields that change the mathematics and have no counterpart.
    """
    table = _table(config_class, where)
    defaults = _DEFAULTS[table.architecture].get(config_class)
    if defaults is None:
        raise UnsupportedArchitecture(
            f"{where}: the config class {config_class.name} is not known for {table.architecture!r}",
            hint=f"known: {some(symbol.name for symbol in _DEFAULTS[table.architecture])}",
        )
    fields: dict[str, Value] = {**defaults, **given}
    _refuse_unknown(fields, where, allow_ignored)
    config: dict[str, Value] = {name: fields[name] for name in _SAME}
    # what NeMo's __post_init__ fills in
    heads = _required(fields, "num_attention_heads", where)
    hidden = _required(fields, "hidden_size", where)
    _required(fields, "num_layers", where)
    config["num_query_groups"] = config["num_query_groups"] or heads
    config["kv_channels"] = config["kv_channels"] or hidden // heads
    config["ffn_hidden_size"] = config["ffn_hidden_size"] or 4 * hidden
    config["rotary_base"] = float(config["rotary_base"])
    config["rope_scaling"] = _read_scaling(fields)
    biases = bool(fields["add_bias_linear"])
    config |= dict.fromkeys(("add_bias_linear", "attention_bias", "mlp_bias"), biases)
    config["params_dtype"] = _read_dtype(fields)
    return table, config


def _table(config_class: Symbol, where: str) -> Table:
    for name in architectures():
        table = load_table(name)
        if table.nemo_module == config_class.module:
            return table
    raise UnsupportedArchitecture(
        f"{where}: no mapping table for {config_class}",
        hint=f"supported: {', '.join(architectures())}",
    )


def _required(fields: Mapping[str, Value], name: str, where: str) -> int:
    value = fields[name]
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise CorruptCheckpoint(f"{where}: {name}={value!r} is not a positive number")
    return value


def _refuse_unknown(fields: Mapping[str, Value], where: str, allow_ignored: Collection[str]) -> None:
    wrong = []
    for name, value in fields.items():
        if name in allow_ignored or name in INERT or name == "generation_config":
            continue
        if name in _FIXED or name in OFF:
            expected = _FIXED[name] if name in _FIXED else OFF[name]
            if _plain(value) not in expected:
                wrong.append(f"{name}={_text(value)}")
        elif name not in MAPPED and not _switched_off(name, fields):
            wrong.append(f"{name}={_text(value)}")
    if wrong:
        raise UnsupportedConfig(
            f"{where}: {len(wrong)} field(s) may change what the model computes and have no counterpart: "
            f"{some(wrong)}",
            hint="if you know that they do not, pass --allow-ignored FIELD for each",
        )


def _switched_off(name: str, fields: Mapping[str, Value]) -> bool:
    """Whether the field means nothing because the field it belongs to is off."""
    return any(
        name in dependent and _plain(fields.get(switch, OFF[switch][0])) in OFF[switch]
        for switch, dependent in ONLY_WITH.items()
    )


def _plain(value: Value) -> Value:
    """A value that can be compared: functions that NeMo stores as nodes are their symbols."""
    return value.symbol if isinstance(value, Node) else tuple(value) if isinstance(value, list) else value


def _text(value: Value) -> str:
    return str(value.symbol if isinstance(value, Node) else value)[:60]


def _read_scaling(fields: Mapping[str, Value]) -> dict[str, Value] | None:
    linear = fields.get("seq_len_interpolation_factor")
    if fields.get("scale_factor") is not None:
        if linear is not None:
            raise UnsupportedConfig(
                "both scale_factor and seq_len_interpolation_factor scale the rotary embedding"
            )
        scaling: dict[str, Value] = {"rope_type": "llama3"}
        for hf, nemo in sorted(_LLAMA3.items()):
            scaling[hf] = int(fields[nemo]) if hf.startswith("original") else float(fields[nemo])
        return scaling
    return None if linear is None else {"rope_type": "linear", "factor": float(linear)}


def _read_dtype(fields: Mapping[str, Value]) -> str | None:
    dtype = fields.get("params_dtype")
    if isinstance(dtype, Symbol) and dtype.module == "torch":
        return dtype.name
    return "bfloat16" if fields.get("bf16") else "float16" if fields.get("fp16") else None


def write(table: Table, config: Mapping[str, Value], sizes: Sizes) -> tuple[str, dict[str, Value]]:
    """(config class, fields to set) that make NeMo build this model.

    ``vocab_size`` is the number of rows written: NeMo builds what it says and pads nothing itself.
    Raises UnsupportedConfig for rotary scalings that NeMo cannot express.
    """
    fields: dict[str, Value] = {name: config[name] for name in _SAME}
    fields["vocab_size"] = sizes["vocab"]
    fields["make_vocab_size_divisible_by"] = largest_power_of_two_divisor(sizes["vocab"])
    fields["gated_linear_unit"] = True
    fields["add_bias_linear"] = config["add_bias_linear"]
    dtype = config["params_dtype"]
    fields |= {
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "params_dtype": Symbol("torch", dtype),
    }
    scaling = config["rope_scaling"]
    if scaling is None:
        return table.nemo_config, fields
    if scaling["rope_type"] == "linear":
        return table.nemo_config, {**fields, "seq_len_interpolation_factor": scaling["factor"]}
    if scaling["rope_type"] == "llama3":
        fields |= {nemo: scaling[hf] for hf, nemo in _LLAMA3.items()}
        return "Llama31Config", fields
    raise UnsupportedConfig(
        f"config.json: NeMo's {table.nemo_config} has no rotary scaling of type {scaling['rope_type']!r}; "
        "it knows 'llama3' and 'linear'"
    )
